"""Compare fl_core with files of known answers: ``python -m tests.vectors FILE...``."""

import json
import sys
from pathlib import Path

from fl_core.errors import FedloomError
from tests.vectors.checks import CHECKS, Case, kind_of


def main(paths: list[str]) -> int:
    """Print one line per failure and a summary; return 1 on a failure.

    Kinds that fl_core has no part for yet are counted as unknown.
    """
    passed = failed = unknown = 0
    for path in paths:
        for case in json.loads(Path(path).read_text())["cases"]:
            kind = kind_of(case)
            if kind not in CHECKS:
                unknown += 1
                continue
            fault = _fault(kind, case)
            if fault is None:
                passed += 1
            else:
                failed += 1
                sys.stdout.write(f"{path}: {case['id']}: {fault}\n")
    sys.stdout.write(f"{passed} passed, {failed} failed, {unknown} unknown\n")
    return 1 if failed else 0


def _fault(kind: str, case: Case) -> str | None:
    try:
        return CHECKS[kind](case)
    except FedloomError as error:
        return f"refused: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
