"""When a round goes on without the sites that have not answered.

Counts only: who they are and what they sent is decided before, so two coordinators that see the
same store decide alike.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """Where the answers of a round stand.

    Attributes:
        asked: Sites in the cohort.
        accepted: Updates that passed every check.
        pending: Sites that have not answered.
    """

    asked: int
    accepted: int
    pending: int


def required(asked: int, quorum: int | None) -> int:
    """Return how many accepted updates a round needs.

    Args:
        asked: Sites in the cohort.
        quorum: The campaign's number, also where fewer are asked; None is more than half of them.
    """
    return asked // 2 + 1 if quorum is None else quorum


def is_closed(tally: Tally, *, late: bool) -> bool:
    """Say whether collection ends: all have answered, or the deadline has passed."""
    return tally.pending == 0 or late


def has_quorum(tally: Tally, quorum: int | None) -> bool:
    """Say whether enough updates were accepted to release."""
    return tally.accepted >= required(tally.asked, quorum)
