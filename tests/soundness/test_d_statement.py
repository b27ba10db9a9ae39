"""SOUNDNESS, rules 5 and 17: what a site sends is a closed list, and no count of rows is in it.

A field that is added to a document that leaves a site fails here until somebody has written down
how it depends on rows and the statement lists it.
"""

import dataclasses
import inspect

import pytest
from worlds import NO_PRIVACY, campaign_of

from fl_core.assembly import assemble
from fl_core.privacy.dpsgd import DpSgd
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger_documents import LedgerEntry
from fl_core.privacy.mechanism import NoisePlan, NoiseSetting
from fl_core.privacy.statement import privacy_statement, to_markdown
from fl_core.rounds.documents import RoundPlan
from fl_core.updates.manifest import Declined, UpdateManifest
from fl_core.updates.records import BudgetStatement, Charge, GateReport

# Field -> how it depends on the site's rows.
NAMES = "names what is answered"
PUBLIC = "a public number of the campaign"
KEYS = "a public key, drawn without a look at the rows"
LEDGER = "follows from public events of the ledger"
NOISED = "a hash of, or bound on, the noised update"
OUTSIDE = "depends on rows; listed outside the claim"
SIGNED = "signature over the rest"
# tests/unit/test_round_endings.py: the record of a round holds it under privacy.none alone.
WITHOUT_PROMISE = "depends on rows; sent where nothing is promised, and nowhere else"

LEAVES = {
    UpdateManifest: {
        "campaign_digest": NAMES,
        "round": NAMES,
        "site": NAMES,
        "base_hash": NAMES,
        "payload_sha256": NOISED,
        "payload_bytes": PUBLIC,
        "codec": PUBLIC,
        "shapes": PUBLIC,
        "local_steps": PUBLIC,
        "norm_bound": PUBLIC,
        "charge": LEDGER,
        "client_charge": LEDGER,
        "gate": OUTSIDE,
        "code_version": NAMES,
        "signature": SIGNED,
    },
    Charge: {"event": PUBLIC, "ledger_seq": LEDGER},
    GateReport: {"suite_sha256": NAMES, "passed": OUTSIDE, "failed": OUTSIDE},
    Declined: {
        "campaign_digest": NAMES,
        "round": NAMES,
        "site": NAMES,
        "reason": OUTSIDE,
        "rules": OUTSIDE,
        "error": WITHOUT_PROMISE,
        "signature": SIGNED,
    },
    BudgetStatement: {
        "site": NAMES,
        "campaign_digest": NAMES,
        "round": NAMES,
        "dataset": NAMES,
        "unit": PUBLIC,
        "epsilon": LEDGER,
        "epsilon_limit": LEDGER,
        "delta": LEDGER,
        "accountant": LEDGER,
        "rounds_left": LEDGER,
        "events": LEDGER,
        "terms": LEDGER,
        "client": LEDGER,
        "ledger_seq": LEDGER,
        "ledger_head_sha256": LEDGER,
        "signature": SIGNED,
    },
    # To the witnesses, of which the coordinator's store is one.
    LedgerEntry: {
        "seq": LEDGER,
        "dataset": NAMES,
        "unit": PUBLIC,
        "kind": LEDGER,
        "campaign_digest": NAMES,
        "round": NAMES,
        "plan_sha256": NAMES,
        "event": PUBLIC,
        "terms": LEDGER,
        "reserve_seq": LEDGER,
        "lost": LEDGER,
        "charges": LEDGER,
        "set_aside": LEDGER,
        "old_key": KEYS,
        "new_key": KEYS,
        "old_signature": SIGNED,
        "time": OUTSIDE,
        "previous_sha256": LEDGER,
        "signature": SIGNED,
    },
}


@pytest.mark.parametrize("document", LEAVES, ids=lambda d: d.__name__)
def test_rule_17_every_field_that_leaves_is_reviewed(document):
    assert set(document.model_fields) == set(LEAVES[document])


def statement():
    return privacy_statement(campaign_of(), budgets={}, round_number=1)


@pytest.mark.parametrize(
    "what",
    ["update", "manifest", "charge", "budget statement", "ledger head", "gate's bit", "refusal"],
)
def test_rule_17_the_statement_lists_what_leaves(what):
    assert any(what in item.what for item in statement().leaves_site)


RECORD = campaign_of().privacy.record.model_dump(exclude_none=True)
CLIENT = {"epsilon": 20.0, "delta": 1e-5, "clip_norm": 0.5, "noise_multiplier": 1.0}
PROMISES = {
    "rows": {"record": RECORD},
    "people": {"record": RECORD | {"unit": "patient_id", "max_rows_per_unit": 4}},
    "local": {"client": CLIENT | {"mechanism": "local_gaussian"}},
    "central": {"client": CLIENT | {"mechanism": "gaussian"}},
    "rows and central": {"record": RECORD, "client": CLIENT | {"mechanism": "gaussian"}},
}


@pytest.mark.parametrize("privacy", PROMISES.values(), ids=PROMISES)
@pytest.mark.parametrize("upload_after_s", [None, 60], ids=["when-ready", "fixed-time"])
def test_rule_17_what_depends_on_rows_is_noised_or_said_to_be_outside(privacy, upload_after_s):
    cohort = {"deadline_s": 300, "upload_after_s": upload_after_s}
    campaign = campaign_of(privacy=privacy, cohort=cohort)

    stated = privacy_statement(campaign, budgets={}, round_number=1)

    for protection in {item.protection for item in stated.leaves_site}:
        is_noised = "noised and charged" in protection
        is_outside = "outside the claim" in protection
        is_public = protection.startswith(("public numbers", "follows from public events"))
        assert is_noised or is_outside or is_public, protection


@pytest.mark.parametrize("privacy", PROMISES.values(), ids=PROMISES)
def test_rule_08_only_noise_at_the_site_is_claimed_against_the_coordinator(privacy):
    stated = privacy_statement(campaign_of(privacy=privacy), budgets={}, round_number=1)

    for claim in stated.claims:
        if claim.against == "the coordinator":
            is_central = claim.level == "client" and stated.client.charged_by == "coordinator"
            assert claim.holds.startswith("nothing" if is_central else "the same")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (14, "a ledger that is set back to an older copy"),
        (15, "by PLD (RDP "),
        (19, "timing: durations may reveal"),
        (20, "gate's bit"),
        (14, "together with all its witnesses"),
        (17, "signed entries, to the witnesses"),
        (22, "holdout 'tiny-holdout'"),
    ],
)
def test_rules_14_to_22_the_page_names_what_they_ask_for(rule, said):
    assert said in to_markdown(statement())


@pytest.mark.parametrize("who", ["reader", "another site", "the coordinator", "a site that cheats"])
def test_rule_08_the_statement_says_what_holds_against_each_adversary(who):
    assert any(who in claim.against for claim in statement().claims)


def test_rule_17_without_guarantee_nothing_is_claimed():
    plain = privacy_statement(campaign_of(privacy=NO_PRIVACY), budgets={}, round_number=1)

    assert [claim.holds for claim in plain.claims] == ["nothing is claimed"]
    assert plain.leaves_site[0].protection.startswith("none")
    errors = "the class of an error"
    assert any(item.what.startswith(errors) for item in plain.leaves_site)
    assert not any(item.what.startswith(errors) for item in statement().leaves_site)


# --- Rule 5: noise, event and divisor come from the frozen campaign alone.


def test_rule_05_noise_and_event_are_made_of_the_campaigns_numbers_only():
    assert list(inspect.signature(DpSgd.plan).parameters) == ["self", "guarantee", "setting"]
    assert [f.name for f in dataclasses.fields(NoiseSetting)] == ["steps", "sites", "dimension"]
    assert list(inspect.signature(dpsgd_event).parameters) == [
        "noise_multiplier",
        "sampling_rate",
        "steps",
    ]


def test_rule_05_every_machine_builds_the_same_noise_from_the_same_campaign():
    frozen = campaign_of()
    read_elsewhere = type(frozen).model_validate_json(frozen.model_dump_json())

    assert assemble(read_elsewhere).noise == assemble(frozen).noise


@pytest.mark.parametrize("document", [NoisePlan, RoundPlan, *LEAVES], ids=lambda d: d.__name__)
def test_rule_05_no_document_has_room_for_a_count_of_rows(document):
    suspicious = {"rows", "examples", "samples", "count", "batch", "units"}

    for name in document.model_fields:
        assert not suspicious & set(name.split("_")), name
