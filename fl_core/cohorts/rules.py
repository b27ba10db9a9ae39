"""The campaign's cohort rule: whether it fits, who is asked, and what ends a round.

A rule by which the speed of a site decides whether it counts may not be joined with a guarantee:
speed follows rows. Where all answers leave at one public time it follows nothing but the network,
so the guarantee then asks for that (SOUNDNESS, rule 19).
"""

from collections.abc import Collection, Mapping, Sequence

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.specs import CohortRule
from fl_core.cohorts.quorum import Closing, required
from fl_core.cohorts.selection import Selection, in_public_order
from fl_core.errors import IncompatibleParts


def require_rule_fits(campaign: Campaign, selection: Selection) -> None:
    """Check that a campaign's rounds can close as its cohort rule says, and keep its promise.

    Raises:
        IncompatibleParts: A quorum above those asked, nobody left to ask besides, or sites that
            count by their speed under a guarantee.
    """
    rule = campaign.cohort
    wanted = len(selection.select(campaign.sites, coins=campaign.id))
    if rule.quorum is not None and rule.quorum > wanted:
        raise IncompatibleParts(
            f"cohort.quorum is {rule.quorum} and at most {wanted} sites are asked in a round; "
            "ask more sites, or lower the quorum"
        )
    left = len(campaign.sites) - wanted
    if rule.over_select is not None and rule.over_select > left:
        raise IncompatibleParts(
            f"cohort.over_select asks {rule.over_select} sites besides the {wanted} that the "
            f"selection names, and the campaign has {left} more; lower it, or use "
            'selection.kind = "uniform" with a smaller size'
        )
    for name, value in (("grace_s", rule.grace_s), ("over_select", rule.over_select)):
        if value is not None:
            require_speed_says_nothing(campaign, name=name)


def require_speed_says_nothing(campaign: Campaign, *, name: str) -> None:
    """Refuse a rule that lets fast sites count and slow ones not, where speed follows rows.

    Raises:
        IncompatibleParts: The campaign has a guarantee and its answers leave when they are ready.
    """
    if campaign.privacy.none is None and campaign.cohort.upload_after_s is None:
        raise IncompatibleParts(
            f"cohort.{name} lets the speed of a site decide whether it counts, and speed follows "
            "its rows; state cohort.upload_after_s as well, so that all answers leave at one "
            f"public time, or leave out cohort.{name}"
        )


def draw_cohort(
    selection: Selection, available: Sequence[str], *, coins: str, over_select: int | None
) -> tuple[tuple[str, ...], int | None]:
    """Return who is asked, sorted, and how many accepted updates end the round early.

    The sites asked besides are drawn uniformly from those that are left, so that two coordinators
    draw alike. None as the number: the round waits for all.

    Args:
        selection: The campaign's.
        available: Sites that may be asked.
        coins: As for ``Selection.select``.
        over_select: Sites to ask besides; fewer where fewer are left.
    """
    drawn = selection.select(available, coins=coins)
    if over_select is None:
        return drawn, None
    besides = in_public_order(set(available) - set(drawn), coins=f"{coins}/besides")
    return tuple(sorted([*drawn, *besides[:over_select]])), len(drawn)


def closing_of(
    rule: CohortRule, *, wanted: int, quorum: int | None, grace_s: float | None
) -> Closing:
    """Return what ends one round.

    Args:
        rule: The campaign's.
        wanted: Accepted updates that the round wants.
        quorum: What the round's run asks for besides; it can only be stricter.
        grace_s: The round's grace time, as its plan states it.
    """
    return Closing(
        quorum=max(required(wanted, rule.quorum), quorum or 0),
        share=rule.quorum_share,
        ends_at_wanted=rule.over_select is not None,
        grace_s=grace_s,
    )


def declared_share(
    sizes: Mapping[str, int], *, accepted: Collection[str], asked: Collection[str]
) -> float:
    """Return the accepted sites' part of the examples that all asked sites declared, in [0, 1]."""
    return sum(sizes[site] for site in accepted) / sum(sizes[site] for site in asked)
