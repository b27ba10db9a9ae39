"""The site's policy: as a file, against a campaign, and its verdict on charges."""

from dataclasses import dataclass

import pytest
from worlds import NO_PRIVACY, NOW, campaign_of, policy_of

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import BudgetExhausted, CampaignError, ObjectCorrupt, PolicyRefused
from fl_core.privacy.accounting import epsilon
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.policy import (
    POLICY_TEMPLATE,
    approve,
    parse_policy,
    read_policy,
    require_allowed,
    spend,
    verdict,
)
from fl_core.privacy.policy_documents import ClientLimit, CoordinatorWitness, S3Witness
from fl_core.privacy.policy_template import WITNESS_EXAMPLE, policy_text
from fl_core.updates.records import NonPrivateEvent, Series

OTHER_HASH = "e" * 64
MINIMAL = 'dataset = "d"\nepsilon = 8\ndelta = 1e-5\nbase_models = "*"\nsuites = "*"\n'


def steps(count, *, noise=0.8, rate=0.1):
    return dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=count)


def demo_policy(**changes):
    series = {"noise_multiplier": 0.8, "sampling_rate": 0.1, "max_steps": 96}
    return policy_of(campaign_of(), "a", **({"epsilon": 11.0, "series": series} | changes))


# The demo policy: epsilon 11 at 1e-5, one series of 96 steps, which ends at 10.77 by PLD.
def test_series_is_spent_to_its_end_and_no_further():
    policy = demo_policy()

    after_half = verdict(policy, [steps(8)] * 5, steps(8))
    after_all = verdict(policy, [steps(8)] * 11, steps(8))

    assert after_half.accountant == after_all.accountant == "pld"
    assert after_half.epsilon == pytest.approx(7.93, abs=0.005)
    assert after_all.epsilon == pytest.approx(10.77, abs=0.005)
    assert (after_half.series_steps_left, after_all.series_steps_left) == (48, 0)
    with pytest.raises(BudgetExhausted):
        verdict(policy, [steps(8)] * 12, steps(8))


def test_refusal_says_what_was_found_and_what_is_left():
    policy = demo_policy(epsilon=8.0)

    with pytest.raises(BudgetExhausted) as caught:
        verdict(policy, [steps(8)] * 6, steps(8))

    text = str(caught.value)
    assert "would bring epsilon to 8.4" in text
    assert "budget is 8.00 at delta 1e-05" in text
    assert "7.93 is spent, 6 rounds are charged" in text


def test_without_a_series_rdp_at_the_policys_order_decides():
    policy = demo_policy(series=None, rdp_order=3.0)

    after = verdict(policy, [steps(8)] * 5, steps(8))

    assert after.accountant == "rdp"
    assert after.series_steps_left is None
    # dp_accounting's RdpAccountant([3.0]) for z .8, q .1, 48 steps at 1e-5.
    assert after.epsilon == pytest.approx(9.3645, abs=1e-3)


def test_one_step_of_another_kind_takes_the_whole_ledger_out_of_the_series():
    policy = demo_policy(rdp_order=3.0)

    spent = spend(policy, [steps(8), steps(1, noise=2.0)])

    assert spent.accountant == "rdp"
    assert spent.epsilon > epsilon([steps(8), steps(1, noise=2.0)], delta=policy.delta)


def test_leaving_a_series_that_may_use_all_of_delta_is_refused():
    policy = demo_policy(epsilon=10.0)

    with pytest.raises(BudgetExhausted) as caught:
        verdict(policy, [], steps(1, noise=50.0))

    assert "series may use all of delta" in caught.value.hint


def test_release_without_guarantee_ends_every_budget():
    policy = demo_policy(without_guarantee=True)

    after = verdict(policy, [steps(8)], NonPrivateEvent())

    assert after.epsilon == float("inf")
    with pytest.raises(BudgetExhausted):
        verdict(policy, [steps(8), NonPrivateEvent()], steps(8))


def test_release_without_guarantee_is_refused_unless_the_policy_says_so():
    with pytest.raises(PolicyRefused, match="without_guarantee"):
        verdict(demo_policy(), [], NonPrivateEvent())


# Orders of least epsilon, by dp_accounting over its default orders (z, q, steps):
# (.8, .1, 48) 2.8; (1.05, .1, 48) 3.9; (1.5, .1, 48) 6.5; (3.8, .1, 48) 20; (1, .01, 1000) 7.8.
@pytest.mark.parametrize(
    ("reached", "noise", "rate", "count"),
    [
        (9.1, 0.8, 0.1, 48),
        (5.27, 1.05, 0.1, 48),
        (2.8, 1.5, 0.1, 48),
        (0.79, 3.8, 0.1, 48),
        (2.1, 1.0, 0.01, 1000),
    ],
)
def test_default_order_costs_little_against_the_best(reached, noise, rate, count):
    events = [steps(count, noise=noise, rate=rate)]
    best = epsilon(events, delta=1e-5, accountant="rdp")

    at_default = spend(demo_policy(series=None, epsilon=reached), events).epsilon

    assert at_default < 1.05 * best


@pytest.mark.parametrize("limit", [20, 40, 100, 1e4])
def test_default_order_of_a_generous_limit_still_counts_steps(limit):
    policy = demo_policy(series=None, epsilon=limit)

    after = verdict(policy, [], steps(8))

    # Eight steps cost 6.9 by dp_accounting's RDP at its best order; 1.7 gives 15.1.
    assert after.epsilon < 16


@dataclass(frozen=True)
class Case:
    policy: dict
    campaign: dict
    field: str

    def __str__(self):
        return self.field


RECORD = campaign_of().privacy.record.model_dump()
CENTRAL = {
    "epsilon": 8,
    "delta": 1e-5,
    "clip_norm": 1,
    "mechanism": "gaussian",
    "noise_multiplier": 1,
}
LOCAL = CENTRAL | {"mechanism": "local_gaussian"}
LIMIT = {"epsilon": 8, "delta": 1e-5}


@pytest.mark.parametrize(
    "case",
    [
        Case({"campaigns": ()}, {}, "campaigns"),
        Case({"campaigns": (OTHER_HASH,)}, {}, "campaigns"),
        Case({"base_models": (OTHER_HASH,)}, {}, "base_models"),
        Case({"suites": (OTHER_HASH,)}, {}, "suites"),
        Case({"delta": 1e-6}, {}, "delta"),
        Case({"unit": "patient"}, {}, "unit"),
        Case({"max_rows_per_unit": 2}, {}, "max_rows_per_unit"),
        Case({"without_guarantee": False}, {"privacy": NO_PRIVACY}, "without_guarantee"),
        # What a [client] limit and a campaign say about the site's whole data must be the same.
        Case({"without_guarantee": False}, {"privacy": {"client": CENTRAL}}, "without_guarantee"),
        Case({"client": None}, {"privacy": {"client": LOCAL}}, "client"),
        Case({"client": None}, {"privacy": {"record": RECORD, "client": LOCAL}}, "client"),
        Case({"client": LIMIT}, {}, "client"),
        Case({"client": LIMIT}, {"privacy": {"client": CENTRAL}}, "client"),
        Case({"client": LIMIT}, {"privacy": NO_PRIVACY}, "client"),
        Case({"client": LIMIT | {"delta": 1e-6}}, {"privacy": {"client": LOCAL}}, "client.delta"),
    ],
    ids=str,
)
def test_campaign_is_refused_with_the_field_that_stands_against_it(case):
    campaign = campaign_of(**case.campaign)
    policy = policy_of(campaign, "a", **case.policy)

    with pytest.raises(PolicyRefused, match=case.field):
        require_allowed(policy, campaign)


@pytest.mark.parametrize(
    ("policy", "campaign"),
    [
        ({}, {}),
        ({"delta": 1e-4}, {}),
        ({"base_models": ("b" * 64,), "suites": (OTHER_HASH, "5" * 64)}, {}),
        ({}, {"privacy": NO_PRIVACY}),
        ({"without_guarantee": False}, {"privacy": {"client": LOCAL}}),
        ({}, {"privacy": {"record": RECORD, "client": LOCAL}}),
        ({}, {"privacy": {"record": RECORD, "client": CENTRAL}}),
    ],
    ids=[
        "as stated",
        "smaller delta",
        "listed content",
        "without guarantee",
        "local noise",
        "local noise on both levels",
        "records, and sites at the coordinator",
    ],
)
def test_campaign_within_the_policy_is_allowed(policy, campaign):
    frozen = campaign_of(**campaign)

    require_allowed(policy_of(frozen, "a", **policy), frozen)


def test_template_is_a_policy_and_so_is_every_option_in_it():
    text = (POLICY_TEMPLATE + WITNESS_EXAMPLE).replace("{dataset}", "rows-1")
    # An option is "#name = value" or "#[table]"; a remark starts with "# ".
    options = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in text.splitlines()
    )

    plain, full = parse_policy(text, source="p"), parse_policy(options, source="p")

    assert plain.dataset == "rows-1"
    assert plain.series is None
    assert plain.base_models == ("*",)
    assert full.series.max_steps == 48
    assert full.rdp_order == 3.0
    assert (plain.client, full.client.delta) == (None, 1e-2)
    assert [each.kind for each in full.witnesses] == ["coordinator", "folder", "s3"]
    assert plain.witnesses == ()


def test_filled_template_states_what_it_was_filled_with():
    whole = ClientLimit(epsilon=2.0, delta=0.05)
    series = Series(noise_multiplier=0.7, sampling_rate=0.2, max_steps=10)

    text = policy_text(
        epsilon=3,
        delta=1e-6,
        series=series,
        client=whole,
        witnesses=[CoordinatorWitness(), S3Witness(bucket="peer", prefix="a/b")],
    )

    policy = parse_policy(text.replace("{dataset}", "d"), source="p")
    assert (policy.epsilon, policy.delta, policy.series, policy.client) == (3, 1e-6, series, whole)
    assert policy.witnesses == (CoordinatorWitness(), S3Witness(bucket="peer", prefix="a/b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epsilon = ", "is not TOML"),
        (MINIMAL.replace("8", "0"), "epsilon is 0"),
        (MINIMAL.replace("1e-5", "1.5"), "delta is 1.5"),
        (MINIMAL.replace("delta = 1e-5\n", ""), "delta is missing"),
        (MINIMAL + "epsilom = 3\n", "unknown key 'epsilom'"),
        (MINIMAL + 'unit = "site"\n', 'unit is "site"'),
        (MINIMAL + "rdp_order = 1\n", "rdp_order is 1"),
        (MINIMAL + "[series]\nnoise_multiplier = 0.8\nsampling_rate = 0.1\n", "series.max_steps"),
        (MINIMAL.replace('suites = "*"', f'suites = ["*", "{OTHER_HASH}"]'), "suites"),
        (MINIMAL.replace('base_models = "*"', 'base_models = "minilm"'), "base_models"),
    ],
)
def test_wrong_file_gets_one_line_with_file_and_field(text, said):
    with pytest.raises(CampaignError) as caught:
        parse_policy(text, source="policy.toml")

    assert str(caught.value).startswith("policy.toml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_file_says_what_to_run(tmp_path):
    with pytest.raises(CampaignError) as caught:
        read_policy(tmp_path / "policy.toml")

    assert "site init" in caught.value.hint


def test_approval_adds_to_the_file_and_leaves_it_alone(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(MINIMAL + "# a remark\n")
    approvals, campaign = MemoryStore(), campaign_of()

    first = approve(approvals, campaign, NOW)
    again = approve(approvals, campaign, NOW.replace(year=2027))

    assert again == first
    assert read_policy(path, approvals=approvals).campaigns == (campaign.digest,)
    assert read_policy(path).campaigns == ()
    assert path.read_text() == MINIMAL + "# a remark\n"


def test_approval_under_another_name_is_corrupt(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(MINIMAL)
    approvals, campaign = MemoryStore(), campaign_of()
    approve(approvals, campaign, NOW)
    moved = MemoryStore()
    moved.put_once(keys.approval(OTHER_HASH), approvals.get(keys.approval(campaign.digest)))

    with pytest.raises(ObjectCorrupt):
        read_policy(path, approvals=moved)


def test_limit_for_the_whole_site_is_a_policy_of_its_own():
    policy = demo_policy(client={"epsilon": 3.0, "delta": 1e-3})

    whole = policy.client_policy()

    assert (whole.unit, whole.epsilon, whole.delta, whole.series) == ("site", 3.0, 1e-3, None)
    assert whole.dataset == policy.dataset
    assert demo_policy().client_policy() is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('kind = "peer"', "witness"),
        ('kind = "folder"', "path is missing"),
        ('kind = "s3"\nbucket = "Not A Bucket"', "bucket"),
        ('kind = "coordinator"\npath = "/x"', "path"),
    ],
)
def test_wrong_witness_gets_one_line(table, said):
    with pytest.raises(CampaignError) as caught:
        parse_policy(MINIMAL + f"[[witness]]\n{table}\n", source="policy.toml")

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
