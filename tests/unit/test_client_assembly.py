"""A promise to whole sites is refused before any site is asked where its parts cannot keep it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist

import pytest

from fl_core.aggregation.aggregator import AGGREGATORS, Aggregate, Cohort
from fl_core.aggregation.mean import Mean
from fl_core.assembly import assemble, build_parts
from fl_core.campaign.components import Part
from fl_core.errors import CampaignError, IncompatibleParts
from fl_core.privacy.forecast import (
    client_schedule,
    locked_client_noise,
    require_campaign_budget,
    with_noise,
)
from fl_core.privacy.round_events import round_costs
from tests.worlds import NO_PRIVACY, campaign_of

RECORD = campaign_of().privacy.record.model_dump()
CLIENT = {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "mechanism": "gaussian"}
LOCAL = CLIENT | {"mechanism": "local_gaussian"}


def client_campaign(client=CLIENT, *, record=None, **changes):
    privacy = {"client": client} if record is None else {"client": client, "record": record}
    return campaign_of(privacy=privacy, **changes)


@pytest.fixture
def rules():
    """Rules as somebody outside would add them; gone after the test."""

    class Unbounded(Part):
        def aggregate(
            self, cohort: Cohort, weights: Mapping[str, float], divisor: float | None
        ) -> Aggregate:
            return replace(Mean().aggregate(cohort, weights, divisor), l2_sensitivity=None)

    class Realised(Part):
        """Divides by one site less than planned, as if one had not come."""

        def aggregate(
            self, cohort: Cohort, weights: Mapping[str, float], divisor: float | None
        ) -> Aggregate:
            assert divisor is not None
            return Mean().aggregate(cohort, weights, divisor - 1)

    added = {"unbounded": Unbounded, "realised": Realised}
    for kind, rule in added.items():
        AGGREGATORS.register(kind)(rule)
    yield
    for kind in added:
        AGGREGATORS._parts.pop(kind)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"client": CLIENT | {"mechanism": "dpsgd"}}, r"'dpsgd' protects records"),
        (
            {"record": RECORD | {"mechanism": "gaussian"}},
            r"'gaussian' protects clients and is named under privacy\.record",
        ),
        (
            {"record": RECORD | {"mechanism": "local_gaussian"}},
            r"'local_gaussian' protects clients",
        ),
        ({"weights": "declared"}, r'weights \'declared\' .*use weights = "uniform"'),
        ({"client": LOCAL, "weights": "declared"}, "weights 'declared'"),
        ({"weights": "noise_aware"}, "weights 'noise_aware'"),
        ({"client": CLIENT | {"delta": 0.34}}, r"delta 0\.34 is not below 1 / 3 sites"),
        ({"client": CLIENT | {"delta": 1 / 3}}, "not below 1 / 3 sites"),
        ({"sites": ("a",)}, "the campaign has one site"),
    ],
    ids=[
        "record mechanism",
        "client mechanism under record",
        "local mechanism under record",
        "declared weights",
        "declared weights, local",
        "noise-aware weights",
        "delta",
        "delta of exactly one site",
        "one site",
    ],
)
def test_promise_to_whole_sites_that_cannot_be_kept_is_refused(changes, said):
    with pytest.raises(IncompatibleParts, match=said):
        build_parts(client_campaign(**changes))


@pytest.mark.parametrize("client", [CLIENT, LOCAL], ids=["central", "local"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("unbounded", "'unbounded' has no finite l2_sensitivity"),
        # C / (n - 1) with C = 1 and 3 sites, where the noise covers 1/3.
        ("realised", r"l2_sensitivity 0\.5 where the noise of privacy\.client covers 0\.333333"),
    ],
)
@pytest.mark.usefixtures("rules")
def test_rule_without_a_bounded_sensitivity_is_refused(client, kind, said):
    with pytest.raises(IncompatibleParts, match=said):
        build_parts(client_campaign(client, aggregation={"kind": kind}))


@pytest.mark.usefixtures("rules")
def test_the_same_rule_is_allowed_where_records_are_protected():
    build_parts(campaign_of(aggregation={"kind": "unbounded"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"secure_aggregation": {"kind": "pairwise"}},
        {"server_optimizer": {"kind": "adam"}},
        {"diagnostics": ["update_norms"]},
        {"buffer": {"size": 2}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_parts_of_later_versions_are_unknown_fields(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        client_campaign(**changes)


@pytest.mark.parametrize(
    ("client", "record", "kinds"),
    [
        (CLIENT, None, (None, None, "release")),
        (CLIENT, RECORD, ("self_composed", None, "release")),
        (LOCAL, None, ("gaussian", "gaussian", "update")),
        (LOCAL, RECORD, ("self_composed", "gaussian", "update")),
    ],
    ids=["central", "central and record", "local", "local and record"],
)
def test_each_level_is_charged_where_its_noise_is_added(client, record, kinds):
    assembly = assemble(with_noise(client_campaign(client, record=record)))

    row, site = assembly.row_event, assembly.site_event
    found = (
        None if row is None else row.kind,
        None if site is None else site.kind,
        assembly.client_noise.stage,
    )
    assert found == kinds
    assert (assembly.central_noise is None) == (kinds[2] == "update")
    assert (assembly.local_noise is None) == (kinds[2] == "release")


def test_one_row_can_move_a_clipped_update_by_twice_its_norm_and_is_charged_so():
    assembly = assemble(client_campaign(LOCAL | {"noise_multiplier": 4.0}))

    assert assembly.site_event.noise_multiplier == 4.0
    assert assembly.row_event.noise_multiplier == 2.0


def test_locking_calibrates_client_noise_to_all_rounds():
    campaign = with_noise(client_campaign())

    # Balle and Wang 2018, theorem 8, for six releases, which are one of z / sqrt(6).
    z, phi = campaign.privacy.client.noise_multiplier / math.sqrt(6), NormalDist().cdf
    delta = phi(1 / (2 * z) - 8 * z) - math.exp(8) * phi(-1 / (2 * z) - 8 * z)
    assert delta == pytest.approx(1e-3, rel=1e-4)
    assert delta <= 1e-3
    spent = client_schedule(campaign)
    assert spent == sorted(spent)
    assert 7.99 < spent[-1] <= 8.0


def test_stated_client_noise_is_kept_and_refused_where_it_is_too_little():
    stated = client_campaign(CLIENT | {"noise_multiplier": 2.0})

    assert locked_client_noise(stated) == 2.0
    with pytest.raises(IncompatibleParts, match=r"0\.5 brings .* use 1\.17579"):
        require_campaign_budget(client_campaign(CLIENT | {"noise_multiplier": 0.5}))
    with pytest.raises(IncompatibleParts, match=r"client\.noise_multiplier 0\.5"):
        assemble(client_campaign(CLIENT | {"noise_multiplier": 0.5}))


def test_twenty_rounds_of_noise_1_are_epsilon_28_at_delta_1e_5():
    # SOUNDNESS, rule 8: client level, 20 rounds, z 1: 28.
    client = CLIENT | {"epsilon": 30.0, "delta": 1e-5, "noise_multiplier": 1.0}

    spent = client_schedule(client_campaign(client, max_rounds=20))

    assert spent[-1] == pytest.approx(28.0, abs=0.5)


def test_no_client_level_without_the_promise():
    for privacy in ({"record": RECORD}, NO_PRIVACY):
        campaign = campaign_of(privacy=privacy)

        assert client_schedule(campaign) == []
        assert locked_client_noise(campaign) is None
        assert assemble(campaign).client_noise is None


def test_campaign_with_open_client_noise_is_not_locked():
    with pytest.raises(CampaignError, match=r"privacy\.client\.noise_multiplier open"):
        assemble(client_campaign())


@pytest.mark.parametrize(("multiplier", "clip_norm"), [(1.0, 1.0), (2.76, 0.1), (2.82, 0.1)])
def test_ledger_and_plan_charge_rows_under_local_noise_the_same(multiplier, clip_norm):
    # 2.76 x 0.1 / 0.1 is not 2.76 in floating point; a plan with another event than the ledger's
    # would find that the site states fewer charges than its own round.
    noise = {"noise_multiplier": multiplier, "clip_norm": clip_norm, "epsilon": 50.0}
    campaign = client_campaign(LOCAL | noise)

    planned = {cost.level: cost.event for cost in round_costs(campaign)}

    assembly = assemble(campaign)
    assert planned == {"record": assembly.row_event, "client": assembly.site_event}
