"""A coordinator that cheats: whatever it writes into the store, a site refuses or charges once.

The site is the product's own, in a folder of its own, with its ledger and outbox on the disk. Every
case ends in the same three looks: what was charged, what was trained, what left. Cases that stand
elsewhere: noise that is not the campaign's, a second plan, a larger delta, another unit, an upload
time of its own (rules 03, 09, 10, 19), and an adapter that overflows on one text (rule 02).
"""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from site_folders import SITE, site_folder
from worlds import campaign_of

from fl_core.adapters.peft_layout import adapter_sha256, from_files, initial_state, to_files
from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, to_bytes
from fl_core.artifacts.local import LocalStore
from fl_core.errors import FedloomError, ObjectCorrupt
from fl_core.privacy.budget import spend
from fl_core.rounds.adapters import read_adapter
from fl_core.rounds.plan import read_assembly
from fl_core.rounds.site_recovery import owed_by_site
from fl_core.updates.outbox import exclusive
from tasks.outbox_view import read_outbox
from tasks.session_steps import SessionRequest, is_due, serve
from tasks.site_config import open_site, site_policy
from tasks.site_decisions import outbox_of


@pytest.fixture
def site(tmp_path):
    return site_folder(tmp_path)


def trained_and_charged(site):
    ledger = open_site(site.home, site.config).ledger
    return site.work.trainings, len(ledger.events())


def answer_plan(site, **changes):
    """Answer a round's plan as the coordinator changed it for this site."""
    return site.session.answer(site.plan().model_copy(update=changes))


def now_and(**later):
    return datetime.now(UTC) + timedelta(**later)


def times(opened):
    return {"opened": opened, "deadline": opened + timedelta(seconds=600)}


OTHER = {"campaign_digest": "0" * 64}
PLANS = {
    "another campaign": {"campaign_digest": "0" * 64},
    "a cohort without the site": {"cohort": ("b",)},
    "a round past the last one": {"round": 7},
    "a round of years to come": {"round": 10**6},
    "a deadline that is not the campaign's": {"deadline": now_and(days=30)},
    "a deadline of the far past": {"deadline": now_and(days=-3000)},
    "opened tomorrow": times(now_and(days=1)),
    "opened in a hundred years": times(now_and(days=36500)),
    "an upload time that the campaign has not": {"upload_at": now_and(days=1)},
}


@pytest.mark.parametrize("changes", PLANS.values(), ids=PLANS)
def test_rule_09_plan_that_is_not_the_campaigns_is_ignored_and_costs_nothing(site, changes):
    answer = answer_plan(site, **changes)

    assert answer == "ignored"
    assert trained_and_charged(site) == (0, 0)
    assert site.left() == []
    with exclusive(site.home.root / "outbox.lock"):
        assert read_outbox(site.home).exchanges == ()


def test_rule_09_plan_of_the_past_is_not_due(site):
    plan = site.plan().model_copy(update=times(now_and(days=-1)))

    assert not is_due(site.session, plan)


def test_rule_09_clock_that_is_an_hour_behind_leaves_no_site_out(site):
    assert answer_plan(site, **times(now_and(minutes=60))) == "uploaded"


def test_rule_09_two_sites_with_two_plans_of_one_round_are_charged_once_each(tmp_path):
    # Nothing in a plan moves the noise, so a fork buys the coordinator no more than two rounds do.
    ones = [site_folder(tmp_path / name) for name in ("first", "second")]
    for one, roster_version in zip(ones, (1, 2), strict=True):
        answer_plan(one, roster_version=roster_version)

    for one in ones:
        (entry,) = [e for e in open_site(one.home, one.config).ledger.entries() if e.event]
        assert entry.event == one.assembly.noise.event
        assert trained_and_charged(one) == (1, 1)


def test_rule_11_rounds_in_any_order_and_again_are_trained_once_each(site):
    for number in (5, 3, 1, 1, 5, 2, 3):
        site.answer(number)

    assert trained_and_charged(site) == (4, 4)


def test_rule_11_plans_of_ten_thousand_rounds_cost_no_more_than_the_campaign_that_was_approved(
    site,
):
    plan, policy = site.plan(), site_policy(site.home)
    for number in (*range(1, 40), *range(9_900, 10_000)):
        answer = site.session.answer(plan.model_copy(update={"round": number}))
        assert answer == ("uploaded" if number <= 6 else "ignored")

    spent = spend(policy, open_site(site.home, site.config).ledger.events())
    assert trained_and_charged(site) == (6, 6)
    # tests/vectors: 48 steps at noise 0.8, rate 0.1, delta 1e-5 are epsilon 7.93 by PLD.
    assert spent.epsilon == pytest.approx(7.93, abs=0.01)


def test_rule_14_invented_plans_make_no_recovery_charge_more_than_the_campaigns_rounds(site):
    plan = site.plan(1)
    site.answer(1)
    invented = [plan.model_copy(update={"round": 1 + number % 9}) for number in range(2, 400)]
    for number, one in enumerate(invented, start=2):
        site.store.put_once(keys.plan("tiny", number), to_bytes(one))
    site.store.put_once(keys.plan("tiny", 9_000), to_bytes(plan.model_copy(update=OTHER)))

    policy = site_policy(site.home)
    owed = owed_by_site(
        site.store, outbox_of(site.home), site=SITE, dataset=policy.dataset, unit=policy.unit
    )

    assert {charge.round for charge in owed.plans} == {1, 2, 3, 4, 5, 6}
    assert {charge.campaign_digest for charge in owed.plans} == {site.assembly.digest}


def with_adapter(site, files):
    """Put an adapter of the coordinator's making into the store, and start a round from it."""
    sha256 = adapter_sha256(files)
    for name, data in files.items():
        site.store.put_once(keys.adapter("tiny", sha256) + name, data)
    return {"base_hash": sha256}


def honest_files(site):
    return read_adapter(site.store, "tiny", site.plan().base_hash)


def files_of(site, change):
    """Return an adapter with tensors that ``change`` made of the honest ones."""
    spec, task = site.assembly.campaign.adapter, site.assembly.campaign.task
    tensors = {n: change(n, t) for n, t in initial_state(spec, task).tensors().items()}
    from fl_core.adapters import peft_layout
    from fl_core.updates.payload import encode_tensors

    files = dict(honest_files(site))
    pairs = {peft_layout._peft_name(n): t for n, t in tensors.items() if not n.startswith("head.")}
    files[keys.ADAPTER_FILE] = encode_tensors(pairs)
    return files


HUGE = b'{"pad":"' + b" " * (8 << 20) + b'"}'
ADAPTERS = {
    "a file of megabytes": lambda s: honest_files(s) | {keys.ADAPTER_CONFIG: HUGE},
    "tensors of megabytes": lambda s: files_of(s, lambda _, t: np.tile(t, (2000, 300))),
    "a shape of another rank": lambda s: files_of(s, lambda _, t: np.repeat(t, 2, axis=0)),
    "values that are not finite": lambda s: files_of(s, lambda _, t: t + np.float32(np.inf)),
    "a file more": lambda s: honest_files(s) | {"model.py": b"import os"},
    "a hundred files": lambda s: honest_files(s) | {f"part{n}.json": b"{}" for n in range(100)},
    "a file less": lambda s: {
        name: data for name, data in honest_files(s).items() if name != keys.HEAD_FILE
    },
    "a pickle": lambda s: honest_files(s) | {keys.ADAPTER_FILE: b"\x80\x04cos\nsystem\n"},
    "another alpha": lambda s: (
        honest_files(s)
        | {
            keys.ADAPTER_CONFIG: honest_files(s)[keys.ADAPTER_CONFIG].replace(
                b'"lora_alpha": 4.0', b'"lora_alpha": 4000000.0'
            )
        }
    ),
    "a header that claims terabytes": lambda s: (
        honest_files(s) | {keys.ADAPTER_FILE: (1 << 50).to_bytes(8, "little") + b"{}"}
    ),
}


class Hungry:
    """A store that notes the largest object that was read into memory."""

    def __init__(self, inner):
        self._inner, self.largest = inner, 0
        self.list, self.put_once = inner.list, inner.put_once

    def get(self, key, *, max_bytes=None):
        data = self._inner.get(key, max_bytes=max_bytes)
        self.largest = max(self.largest, len(data))
        return data


@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
def test_rule_11_adapter_that_is_not_the_campaigns_is_refused_before_anything_is_charged(
    site, make
):
    changes = with_adapter(site, make(site))
    session = site.session
    session.store = hungry = Hungry(site.store)

    answer = session.answer(site.plan().model_copy(update=changes))

    (one,) = read_outbox(site.home).exchanges
    assert answer == "declined"
    assert b'"reason":"no_update"' in site.store.get(keys.declined("tiny", 1, SITE))
    assert trained_and_charged(site) == (0, 0)
    assert one.progress == "declined"
    assert one.why.startswith("no_update: ")
    assert hungry.largest < 2 << 20


def test_rule_11_adapter_under_a_hash_that_is_not_its_own_is_refused(site):
    sha256 = "e" * 64
    for name, data in honest_files(site).items():
        site.store.put_once(keys.adapter("tiny", sha256) + name, data)

    assert answer_plan(site, base_hash=sha256) == "declined"
    assert trained_and_charged(site) == (0, 0)


def test_rule_09_adapter_of_an_earlier_round_or_of_its_choosing_costs_what_any_round_costs(site):
    # The noise is for the worst adapter, so which one it is cannot make a round cheaper.
    campaign = site.assembly.campaign
    first = site.plan().base_hash
    state = initial_state(campaign.adapter, campaign.task)
    chosen = {n: t + np.float32(3.0) for n, t in state.tensors().items()}
    from fl_core.adapters.peft_layout import state_from_tensors

    files = to_files(
        state_from_tensors(chosen, spec=campaign.adapter, task=campaign.task),
        spec=campaign.adapter,
        task=campaign.task,
        base_name=campaign.base_model.name,
    )
    assert from_files(files, spec=campaign.adapter, task=campaign.task)
    for number, changes in enumerate([with_adapter(site, files), {"base_hash": first}], start=1):
        plan = site.plan().model_copy(update={"round": number, **changes})
        assert site.session.answer(plan) == "uploaded"

    events = open_site(site.home, site.config).ledger.events()
    assert events == [site.assembly.noise.event] * 2


def test_rule_09_campaign_that_was_changed_in_the_store_waits_for_another_approval(site, tmp_path):
    weaker = campaign_of(
        sites=(SITE,),
        privacy={
            "record": site.assembly.campaign.privacy.record.model_dump()
            | {"noise_multiplier": 0.08, "epsilon": 1e6}
        },
    )
    other = LocalStore(tmp_path / "forked")
    for key in site.store.list(""):
        other.put_once(
            key, to_bytes(weaker) if key == keys.campaign("tiny") else site.store.get(key)
        )
    config = site.config.model_copy(
        update={
            "idle_s": 0.5,
            "store": site.config.store.model_copy(update={"url": f"file://{tmp_path}/forked"}),
        }
    )
    request = SessionRequest("tiny", "run", site.home, config)

    with pytest.raises(FedloomError, match="not approved in time"):
        serve(request, make_work=lambda *_: site.work)

    assert trained_and_charged(site) == (0, 0)


def test_plan_and_campaign_of_any_length_are_not_read_into_memory(site):
    long = b" " * (16 << 20)
    store = Hungry(LocalStore(site.home.root / "other"))
    for key in (keys.campaign("tiny"), keys.plan("tiny", 1)):
        store.put_once(key, long)

    with pytest.raises(ObjectCorrupt, match="at most"):
        read_assembly(store, "tiny")

    assert store.largest == 0


def test_what_was_refused_is_in_the_sites_own_log_and_outside_is_one_word(site, caplog):
    changes = with_adapter(site, files_of(site, lambda _, t: t + np.float32(np.nan)))

    answer_plan(site, **changes)

    assert "holds inf or nan" in caplog.text
    declined = json.loads(site.store.get(keys.declined("tiny", 1, SITE)))
    del declined["signature"]
    assert declined == {
        "campaign_digest": site.assembly.digest,
        "reason": "no_update",
        "round": 1,
        "rules": [],
        "site": SITE,
    }
    assert document_sha256(site.plan()) not in str(declined)
