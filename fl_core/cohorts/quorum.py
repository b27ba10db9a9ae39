"""When a round goes on without the sites that have not answered.

Counts, public sizes and times only: who the sites are and what they sent is decided before, so two
coordinators that see the same store decide alike. None of the accepted is ever left out: a choice
among them could follow data, whatever it was meant to follow.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """Where the answers of a round stand.

    Attributes:
        wanted: Updates that the round wants; fewer than are asked where it asks more than it needs.
        accepted: Updates that passed every check.
        pending: Sites that have not answered.
        share: Declared examples of the accepted sites over those of all asked, in [0, 1]; None
            where the campaign does not ask for it.
    """

    wanted: int
    accepted: int
    pending: int
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """What ends the collection of one round.

    Attributes:
        quorum: Smallest number of accepted updates.
        share: Smallest share of declared examples; None asks for none.
        ends_at_wanted: Whether the round goes on as soon as it has what it wants.
        grace_s: Seconds that the rest have after the quorum is reached; None is until the deadline.
    """

    quorum: int
    share: float | None = None
    ends_at_wanted: bool = False
    grace_s: float | None = None


def required(wanted: int, quorum: int | None) -> int:
    """Return how many accepted updates a round needs.

    Args:
        wanted: Updates that the round wants.
        quorum: The campaign's number, also where fewer are asked; None is more than half of them.
    """
    return wanted // 2 + 1 if quorum is None else quorum


def has_quorum(tally: Tally, closing: Closing) -> bool:
    """Say whether enough updates were accepted to release, by count and by declared share."""
    return shortfall(tally, closing) == ""


def shortfall(tally: Tally, closing: Closing) -> str:
    """Say what an update too few means, for people; empty with a quorum."""
    if tally.accepted < closing.quorum:
        return f"{tally.accepted} of {tally.wanted} updates are in, {closing.quorum} are needed"
    if closing.share is not None and (tally.share is None or tally.share < closing.share):
        found = 0.0 if tally.share is None else tally.share
        return (
            f"the {tally.accepted} accepted sites declared {found:.0%} of the cohort's examples, "
            f"{closing.share:.0%} are needed"
        )
    return ""


def is_closed(
    tally: Tally, closing: Closing, *, late: bool, since_quorum_s: float | None = None
) -> bool:
    """Say whether collection ends.

    Args:
        tally: The answers so far.
        closing: The round's rule.
        late: Whether the deadline has passed.
        since_quorum_s: Seconds since the quorum was reached; None where it is not, or no grace
            time counts from it.
    """
    if tally.pending == 0 or late:
        return True
    if not has_quorum(tally, closing):
        return False
    if closing.ends_at_wanted and tally.accepted >= tally.wanted:
        return True
    return (
        closing.grace_s is not None
        and since_quorum_s is not None
        and since_quorum_s >= closing.grace_s
    )
