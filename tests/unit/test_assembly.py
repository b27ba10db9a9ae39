"""A campaign whose parts cannot keep its promise is refused before any site is asked."""

import pytest

from fl_core.assembly import assemble, build_parts, site_weights
from fl_core.campaign.roster import Roster, RosterEntry
from fl_core.errors import CampaignError, IncompatibleParts, UnknownComponent
from tests.worlds import NO_PRIVACY, NOW, campaign_of

RECORD = campaign_of().privacy.record.model_dump()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": NO_PRIVACY, "weights": "noise_aware"}, '"noise_aware" weigh signal'),
        (
            {"training": {"local_steps": 8, "batch_size": {"a": 16}, "learning_rate": 0.1}},
            r"batch_size names other sites.*\(b, c\)",
        ),
        ({"cohort": {"quorum": 4}}, "quorum is 4 and at most 3 sites are asked"),
        (
            {"cohort": {"quorum": 3, "selection": {"kind": "uniform", "size": 2}}},
            "quorum is 3 and at most 2 sites are asked",
        ),
    ],
    ids=["weights without noise", "batch sizes", "quorum", "quorum of a draw"],
)
def test_parts_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(IncompatibleParts, match=said):
        build_parts(campaign_of(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": {"kind": "krum"}},
        {"codec": {"kind": "int8"}},
        {"cohort": {"selection": {"kind": "stratified"}}},
        {"cohort": {"selection": {"kind": "uniform", "sise": 2}}},
    ],
    ids=["aggregation", "codec", "selection", "parameter"],
)
def test_part_that_no_registry_holds_is_refused(changes):
    with pytest.raises(UnknownComponent):
        build_parts(campaign_of(**changes))


@pytest.mark.parametrize(
    ("changes", "has_noise"),
    [({}, True), ({"privacy": NO_PRIVACY}, False)],
    ids=["record", "none"],
)
def test_noise_is_built_where_a_record_is_promised(changes, has_noise):
    assert (assemble(campaign_of(**changes)).noise is not None) == has_noise


def test_campaign_that_is_not_locked_is_refused():
    with pytest.raises(CampaignError, match="lock"):
        assemble(campaign_of(base_model={"name": "tiny-base"}))


@pytest.mark.parametrize("weights", ["declared", "noise_aware"])
def test_weights_by_size_need_a_declared_size(weights):
    entry = RosterEntry(site="a", signing_key="0" * 64, since=NOW)

    with pytest.raises(IncompatibleParts, match="site 'a' declared no size"):
        site_weights(campaign_of(weights=weights), Roster(version=1, entries=(entry,)))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("uniform", {"a": 1.0, "b": 1.0, "c": 1.0}),
        ("declared", {"a": 64.0, "b": 512.0, "c": 1024.0}),
        # Size times divisor, by hand.
        ("noise_aware", {"a": 64 * 6.0, "b": 512 * 50.0, "c": 1024 * 50.0}),
    ],
)
def test_weights_follow_public_numbers(weights, expected):
    sizes = {"a": 64, "b": 512, "c": 1024}
    entries = tuple(
        RosterEntry(site=site, signing_key=f"{n}" * 64, since=NOW, declared_examples=size)
        for n, (site, size) in enumerate(sizes.items())
    )
    batches = {"a": 6.0, "b": 50.0, "c": 50.0}
    training = {"local_steps": 8, "learning_rate": 0.1, "batch_size": batches}
    campaign = campaign_of(weights=weights, training=training)

    assert site_weights(campaign, Roster(version=1, entries=entries)) == expected
