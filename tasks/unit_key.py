"""The site's secret that says which rows of a person take part.

32 random bytes in the site's folder, made on first use and never again. Without it nobody can tell
which rows of a person were drawn, and with it everybody can: it stays at the site, readable by its
owner alone. Losing it leaks nothing and breaks no bound, but the next draw is another one, so it
belongs into the site's backup.
"""

import contextlib
import os
import secrets

from fl_core.data.units import KEY_BYTES
from fl_core.errors import CampaignError
from tasks.site_config import SiteHome

FILE = "unit.key"


def read_unit_key(home: SiteHome) -> bytes:
    """Return the site's key of units, making it the first time.

    Two processes that both find none agree on the one that was first.

    Raises:
        CampaignError: The file is there and is no key, or cannot be read or written.
    """
    path = home.root / FILE
    try:
        if not path.exists():
            _make(home)
        key = path.read_bytes()
    except OSError as error:
        raise CampaignError(
            f"{path}: cannot be read or written: {error.strerror}",
            hint="let the site's user read and write the site's folder",
        ) from error
    if len(key) != KEY_BYTES:
        raise CampaignError(
            f"{path}: has {len(key)} bytes, expected a key of {KEY_BYTES}",
            hint="restore it from a backup; without one remove it, and rows are drawn anew",
        )
    return key


def _make(home: SiteHome) -> None:
    path = home.root / FILE
    partial = home.root / f"{FILE}.{secrets.token_hex(8)}.partial"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces a key that another process made meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
    folder = os.open(home.root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
