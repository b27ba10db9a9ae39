"""The site's own log file: everything that may not leave the site ends here.

Texts of exceptions, reasons of refusals and figures of training are written here and nowhere else
(SOUNDNESS, rule 18), so the folder is closed to everybody but its owner.
"""

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_BYTES = 10_000_000
KEPT = 5


def keep_log(path: Path) -> None:
    """Write the log lines of fedloom at this site to a file that its owner alone may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file that rotation opens has the mode of the process; nobody else gets through the folder.
    path.parent.chmod(0o700)
    path.touch(mode=0o600, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for package in ("fl_core", "tasks", "flows"):
        logging.getLogger(package).addHandler(handler)
