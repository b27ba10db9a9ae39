"""One line of the doctor's report: what was looked at, a verdict, what was found, what to do.

A report is made to be pasted into a ticket, so no line holds a secret, a row, or a number of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fl_core.errors import FedloomError

# By its name alone, an index may hand out somebody else's package.
INSTALL = (
    "install the coordinator's wheel: `pip install './fedloom-VERSION-py3-none-any.whl[site]'`"
)

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        verdict: ``ok``, ``warn`` (somebody should look, rounds go on) or ``fail``.
        found: What is there.
        remedy: What to do, or empty.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def judged(name: str, found: str, *, is_good: bool, remedy: str) -> Check:
    """Return ``ok``, or ``fail`` with its remedy."""
    return Check(name, "ok", found) if is_good else Check(name, "fail", found, remedy)


def called(name: str, call: Callable[[], str], *, remedy: str) -> Check:
    """Return ``ok`` with what a call found, or ``fail`` with why it was refused.

    Args:
        name: What is looked at.
        call: Makes the call that campaigns make, and says what it found.
        remedy: What to do where the error itself has no hint.
    """
    try:
        return Check(name, "ok", call())
    except (FedloomError, OSError) as error:
        return refused(name, error, remedy=remedy)


def refused(name: str, error: FedloomError | OSError, *, remedy: str) -> Check:
    """Return ``fail`` with why something was refused, and the error's own hint if it has one."""
    if isinstance(error, FedloomError):
        return Check(name, "fail", str(error), error.hint or remedy)
    return Check(name, "fail", f"does not work: {error}", remedy)
