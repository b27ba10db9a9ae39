"""SOUNDNESS, section C, rules 10, 13 and 15: whose numbers count, and who decides adaptively."""

import math
import shutil

import pytest
from worlds import NOW, campaign_of, policy_of

from fl_core.artifacts.local import LocalStore
from fl_core.errors import BudgetExhausted, PolicyRefused
from fl_core.privacy.accounting import delta_of, epsilon, rdp_epsilon_at_order
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_entries import ChainReader, LedgerEntry
from fl_core.privacy.policy import require_allowed, spend, verdict
from fl_core.updates.signing import generate_key, public_hex

KEY = generate_key()
DELTA = 1e-5
SERIES = {"noise_multiplier": 0.8, "sampling_rate": 0.1, "max_steps": 80}


def steps(count, *, noise=0.8, rate=0.1):
    return dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=count)


def policy(**changes):
    return policy_of(campaign_of(), "a", **({"epsilon": 10.0, "series": SERIES} | changes))


def is_allowed(limits, events, new):
    try:
        verdict(limits, events, new)
    except BudgetExhausted:
        return False
    return True


# --- Rule 10. The run of 7.93 at 1e-5 is 1.64 at delta .1.


def test_rule_10_whoever_chooses_delta_passes_any_cap_so_a_larger_one_is_refused():
    record = campaign_of().privacy.record.model_dump() | {"delta": 0.1, "epsilon": 2.0}
    generous = campaign_of(privacy={"record": record})

    assert epsilon([steps(48)], delta=0.1) == pytest.approx(1.64, abs=0.005)
    with pytest.raises(PolicyRefused, match="delta"):
        require_allowed(policy_of(generous, "a"), generous)


def test_rule_10_the_ledger_is_evaluated_at_the_sites_delta():
    assert spend(policy(), [steps(48)]).epsilon == pytest.approx(7.93, abs=0.005)


def test_rule_10_epsilon_is_derived_and_never_stored():
    names = set(LedgerEntry.model_fields)

    assert "event" in names
    assert not {name for name in names if "epsilon" in name or "delta" in name}


# --- Rule 13. The replay of lost writes is test_durable_objects; here, what a ledger builds on it.


def test_rule_13_a_charge_is_in_the_folder_when_reserve_returns(tmp_path):
    store = LocalStore(tmp_path / "ledger")
    ledger = Ledger.create(store, dataset="d", unit="row", key=KEY, now=NOW)

    entry = ledger.reserve(
        campaign_digest="c" * 64,
        round_number=1,
        plan_sha256="a" * 64,
        event=steps(8),
        require=lambda _events: None,
    )
    shutil.copytree(tmp_path / "ledger", tmp_path / "copy")

    copy = LocalStore(tmp_path / "copy")
    assert ChainReader(public_hex(KEY)).read(copy).findings == []
    assert Ledger(copy, dataset="d", unit="row", key=KEY).entries()[-1] == entry


# --- Rule 15. After 48 steps at 7.93, each of two ways to go on passes PLD at (10, 1e-5):
# 32 more steps of the same kind (9.90), or one plain Gaussian release at z 1.2 (8.86).

MORE_OF_THE_SAME = steps(32)
SOMETHING_ELSE = steps(1, noise=1.2, rate=1.0)


@pytest.mark.parametrize("series", [SERIES, None], ids=["a series", "no series"])
def test_rule_15_two_alternatives_that_each_pass_pld_are_not_both_allowed(series):
    limits, so_far = policy(series=series), [steps(8)] * 6
    passes_pld = [
        epsilon([*so_far, new], delta=DELTA) <= limits.epsilon
        for new in (MORE_OF_THE_SAME, SOMETHING_ELSE)
    ]

    allowed = [is_allowed(limits, so_far, new) for new in (MORE_OF_THE_SAME, SOMETHING_ELSE)]

    assert passes_pld == [True, True]
    assert allowed == [series is not None, False]


def test_rule_15_pld_decides_only_inside_the_series():
    within = spend(policy(), [steps(80)])
    beyond = spend(policy(), [steps(81)])
    beside = spend(policy(), [steps(40), steps(1, noise=0.81)])

    assert [s.accountant for s in (within, beyond, beside)] == ["pld", "rdp", "rdp"]


# Outcomes split into those that stayed in the series and those that left it. Each part adds at
# most its own delta at the limit, so the two together keep the policy's delta.
def test_rule_15_staying_in_the_series_and_leaving_it_together_keep_delta():
    limits = policy(epsilon=11.0)
    events = [steps(8)] * 3 + [steps(4, noise=1.5)]

    spent = spend(limits, events)

    stayed = delta_of([steps(80)], epsilon=limits.epsilon)
    left = DELTA - stayed
    order = limits.terms.rdp_order
    assert 0 < stayed < DELTA
    assert spent.epsilon == rdp_epsilon_at_order(events, delta=left, order=order)
    assert spent.epsilon > rdp_epsilon_at_order(events, delta=DELTA, order=order)


def test_rule_15_a_series_that_uses_all_of_delta_cannot_be_left():
    limits = policy(epsilon=9.5)

    assert is_allowed(limits, [], steps(8))
    assert spend(limits, [steps(1, noise=100.0)]).epsilon == math.inf


def charged(limits, ledger, number):
    event = steps(8)
    return ledger.reserve(
        campaign_digest="c" * 64,
        round_number=number,
        plan_sha256="a" * 64,
        event=event,
        require=lambda events: verdict(limits, events, event),
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"series": SERIES | {"max_steps": 96}}, "series"),
        ({"series": None}, "series"),
        ({"rdp_order": 3.5}, "rdp_order"),
        ({"epsilon": 50.0}, "rdp_order"),
    ],
    ids=["longer series", "no series", "another order", "an order that follows epsilon"],
)
def test_rule_15_terms_are_fixed_by_the_first_charge(changes, field, tmp_path):
    store = LocalStore(tmp_path)
    ledger = Ledger.create(store, dataset="data-a", unit="row", key=KEY, now=NOW)
    charged(policy(), ledger, 1)

    with pytest.raises(PolicyRefused, match=field):
        charged(policy(**changes), ledger, 2)

    assert charged(policy(), ledger, 2).seq == 3


def test_rule_15_a_limit_may_be_raised_where_the_order_is_written_down(tmp_path):
    ledger = Ledger.create(LocalStore(tmp_path), dataset="data-a", unit="row", key=KEY, now=NOW)
    charged(policy(rdp_order=2.6), ledger, 1)

    assert charged(policy(rdp_order=2.6, epsilon=11.0), ledger, 2).seq == 3


def test_rule_15_terms_may_change_until_something_is_charged(tmp_path):
    ledger = Ledger.create(LocalStore(tmp_path), dataset="data-a", unit="row", key=KEY, now=NOW)
    spend(policy(series=None), ledger.events())

    assert charged(policy(), ledger, 1).terms == policy().terms
