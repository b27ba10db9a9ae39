"""Compare fl_core with files of known answers: ``python -m tests.vectors FILE...``."""

import sys
from pathlib import Path

from tests.vectors.calls import CALLS, LATER
from tests.vectors.checks import fault_of, kind_of, read_cases


def main(paths: list[str]) -> int:
    """Print one line per failure and a summary; return 1 on a failure.

    Kinds that fl_core has no part for yet are counted as unknown. A kind that it should know, or
    that nobody has heard of, fails the run.
    """
    passed = failed = unknown = 0
    is_unheard_of = False
    for path in paths:
        for case in read_cases(Path(path)):
            kind = kind_of(case)
            if kind not in CALLS:
                unknown += 1
                if kind not in LATER:
                    is_unheard_of = True
                    sys.stdout.write(f"{path}: {case['id']}: kind {kind!r} is unknown\n")
                continue
            fault = fault_of(case)
            if fault is None:
                passed += 1
            else:
                failed += 1
                sys.stdout.write(f"{path}: {case['id']}: {fault}\n")
    sys.stdout.write(f"{passed} passed, {failed} failed, {unknown} unknown\n")
    return 1 if failed or is_unheard_of else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
