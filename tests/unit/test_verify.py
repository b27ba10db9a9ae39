"""Every reason for which an update is rejected, and the order in which reasons are looked for."""

from dataclasses import replace

import numpy as np
import pytest

from fl_core.artifacts.documents import sha256_hex
from fl_core.errors import UpdateRejected
from fl_core.updates.manifest import Declined, UpdateManifest
from fl_core.updates.payload import encode_tensors, shapes_of
from fl_core.updates.records import (
    BudgetStatement,
    Charge,
    GateReport,
    GaussianEvent,
    PoissonEvent,
    SelfComposedEvent,
)
from fl_core.updates.signing import generate_key, public_hex, sign
from fl_core.updates.verify import (
    Expected,
    verify_declined,
    verify_manifest,
    verify_payload,
    verify_statement,
    verify_tensors,
)

KEY = generate_key()
CAMPAIGN, BASE, SUITE = "c" * 64, "b" * 64, "e" * 64
TENSORS = {"head.bias": np.float32([1, 2]), "q.lora_B": np.ones((3, 2), np.float32)}
DATA = encode_tensors(TENSORS)
EVENT = SelfComposedEvent(
    event=PoissonEvent(sampling_rate=0.1, event=GaussianEvent(noise_multiplier=0.8)), count=8
)
WEAKER = SelfComposedEvent(
    event=PoissonEvent(sampling_rate=0.1, event=GaussianEvent(noise_multiplier=0.08)), count=8
)
EXPECTED = Expected(
    campaign_digest=CAMPAIGN,
    round=2,
    base_hash=BASE,
    site="north",
    public_key=public_hex(KEY),
    codec="float32",
    shapes=shapes_of(TENSORS),
    local_steps=8,
    max_payload_bytes=len(DATA),
    charge_event=EVENT,
    gate_suite_sha256=SUITE,
)
MANIFEST = UpdateManifest(
    campaign_digest=CAMPAIGN,
    round=2,
    site="north",
    base_hash=BASE,
    payload_sha256=sha256_hex(DATA),
    payload_bytes=len(DATA),
    codec="float32",
    shapes=shapes_of(TENSORS),
    local_steps=8,
    charge=Charge(event=EVENT, ledger_seq=4),
    gate=GateReport(suite_sha256=SUITE, passed=True),
    code_version="0.1.0",
)


def signed(**change: object) -> UpdateManifest:
    return sign(MANIFEST.model_copy(update=change), KEY)


def reason_of(check, *arguments) -> str:
    with pytest.raises(UpdateRejected) as caught:
        check(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.reason


def test_right_update_passes_every_check():
    manifest = signed()

    verify_manifest(manifest, EXPECTED)
    verify_payload(DATA, manifest)
    verify_tensors(TENSORS, EXPECTED)


def test_right_update_without_privacy_passes():
    verify_manifest(signed(charge=None), replace(EXPECTED, charge_event=None))


WRONG = {
    "a replay of an earlier round": (signed(round=1), "round"),
    "a replay from another campaign": (signed(campaign_digest="d" * 64), "campaign"),
    "an answer for another site": (signed(site="south"), "site"),
    "another base adapter": (signed(base_hash="a" * 64), "base"),
    "fewer local steps": (signed(local_steps=7), "campaign"),
    "another gate": (signed(gate=GateReport(suite_sha256="f" * 64, passed=True)), "campaign"),
    "a gate that failed": (
        signed(gate=GateReport(suite_sha256=SUITE, passed=False, failed=("dates",))),
        "campaign",
    ),
    "no charge": (signed(charge=None), "charge"),
    "a charge at a tenth of the noise": (
        signed(charge=Charge(event=WEAKER, ledger_seq=4)),
        "charge",
    ),
    "a tensor too few": (signed(shapes={"head.bias": (2,)}), "shape"),
    "a tensor too many": (signed(shapes=shapes_of(TENSORS) | {"x": (1,)}), "shape"),
    "another shape": (signed(shapes=shapes_of(TENSORS) | {"q.lora_B": (2, 3)}), "shape"),
    "a longer payload": (signed(payload_bytes=len(DATA) + 1), "too_large"),
    "another codec": (signed(codec="int8"), "payload"),
    "no signature": (MANIFEST, "signature"),
    "a signature by another key": (sign(MANIFEST, generate_key()), "signature"),
    "a field changed after signing": (
        signed().model_copy(update={"payload_sha256": "0" * 64}),
        "signature",
    ),
}


@pytest.mark.parametrize(("manifest", "reason"), WRONG.values(), ids=WRONG)
def test_wrong_manifest_is_rejected_with_its_reason(manifest, reason):
    assert reason_of(verify_manifest, manifest, EXPECTED) == reason


def test_charge_under_no_privacy_is_rejected():
    assert reason_of(verify_manifest, signed(), replace(EXPECTED, charge_event=None)) == "charge"


def test_another_sites_own_update_under_this_sites_key_is_a_forgery():
    theirs = sign(MANIFEST.model_copy(update={"site": "south"}), generate_key())

    assert reason_of(verify_manifest, theirs, EXPECTED) == "signature"


def test_reasons_are_looked_for_in_the_documented_order():
    faults = [
        ("site", {"site": "south"}),
        ("campaign", {"campaign_digest": "d" * 64}),
        ("round", {"round": 1}),
        ("base", {"base_hash": "a" * 64}),
        ("charge", {"charge": None}),
        ("shape", {"shapes": {}}),
        ("too_large", {"payload_bytes": len(DATA) + 1}),
        ("payload", {"codec": "int8"}),
    ]

    found = []
    for n in range(len(faults)):
        change = {k: v for _, fault in faults[n:] for k, v in fault.items()}
        found.append(reason_of(verify_manifest, signed(**change), EXPECTED))

    assert found == [reason for reason, _ in faults]


@pytest.mark.parametrize(
    "data", [DATA[:-1], DATA + b"\0", DATA[:-1] + b"\1"], ids=["short", "long", "one bit"]
)
def test_payload_that_is_not_the_signed_one_is_rejected(data):
    assert reason_of(verify_payload, data, signed()) == "payload"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"head.bias": TENSORS["head.bias"]}, "shape"),
        (TENSORS | {"x": np.float32([1])}, "shape"),
        (TENSORS | {"q.lora_B": np.ones((2, 3), np.float32)}, "shape"),
        (TENSORS | {"head.bias": np.float32([1, np.nan])}, "not_finite"),
        (TENSORS | {"head.bias": np.float32([1, -np.inf])}, "not_finite"),
        ({"head.bias": np.float32([np.nan])}, "shape"),
    ],
    ids=["missing", "unknown", "transposed", "nan", "inf", "shape before nan"],
)
def test_tensors_that_do_not_fit_are_rejected(tensors, reason):
    assert reason_of(verify_tensors, tensors, EXPECTED) == reason


DECLINED = Declined(campaign_digest=CAMPAIGN, round=2, site="north", reason="budget")
STATEMENT = BudgetStatement(
    site="north",
    campaign_digest=CAMPAIGN,
    round=2,
    dataset="orders",
    unit="row",
    epsilon=1.5,
    epsilon_limit=8,
    delta=1e-5,
    accountant="pld",
    rounds_left=4,
    ledger_seq=4,
    ledger_head_sha256="a" * 64,
)


@pytest.mark.parametrize(
    ("check", "answer"), [(verify_declined, DECLINED), (verify_statement, STATEMENT)]
)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"site": "south"}, "site"),
        ({"campaign_digest": "d" * 64}, "campaign"),
        ({"round": 1}, "round"),
    ],
)
def test_refusal_and_statement_are_bound_to_site_campaign_and_round(check, answer, change, reason):
    check(sign(answer, KEY), EXPECTED)

    assert reason_of(check, sign(answer.model_copy(update=change), KEY), EXPECTED) == reason
    assert reason_of(check, sign(answer, generate_key()), EXPECTED) == "signature"
    assert reason_of(check, sign(answer, KEY).model_copy(update=change), EXPECTED) == "signature"


WHOLE = GaussianEvent(noise_multiplier=1.5)
ROW = GaussianEvent(noise_multiplier=0.75)
LOCAL = replace(EXPECTED, charge_event=ROW, client_event=WHOLE)
CENTRAL = replace(EXPECTED, charge_event=None, norm_bound=0.5)


def test_right_updates_of_whole_sites_pass():
    own = {"charge": Charge(event=ROW, ledger_seq=4)}

    verify_manifest(signed(**own, client_charge=Charge(event=WHOLE, ledger_seq=2)), LOCAL)
    verify_manifest(signed(charge=None, norm_bound=0.5), CENTRAL)


@pytest.mark.parametrize(
    ("changes", "expected", "reason", "said"),
    [
        ({"client_charge": None}, LOCAL, "charge", "no charge for the whole site"),
        (
            {"client_charge": Charge(event=ROW, ledger_seq=2)},
            LOCAL,
            "charge",
            "for the whole site for another event",
        ),
        ({"charge": Charge(event=WHOLE, ledger_seq=4)}, LOCAL, "charge", "for another event"),
        ({"charge": None}, LOCAL, "charge", "no charge"),
        ({"norm_bound": 0.5}, LOCAL, "norm", "a norm bound of 0.5, expected no norm bound"),
        ({"norm_bound": None}, CENTRAL, "norm", "no norm bound, expected a norm bound of 0.5"),
        ({"norm_bound": 0.25}, CENTRAL, "norm", "a norm bound of 0.25"),
        (
            {"client_charge": Charge(event=WHOLE, ledger_seq=2)},
            CENTRAL,
            "charge",
            "the campaign promises no privacy there",
        ),
        ({"charge": Charge(event=ROW, ledger_seq=4)}, CENTRAL, "charge", "a charge"),
    ],
    ids=[
        "local without its own charge",
        "local at another noise",
        "row charged as the whole site",
        "local without a charge for rows",
        "bound that nobody enforces",
        "central without its bound",
        "central with a bound of its own",
        "central that charged the site",
        "central that charged rows",
    ],
)
def test_update_of_a_whole_site_must_state_what_is_charged_and_enforced(
    changes, expected, reason, said
):
    right = (
        {
            "charge": Charge(event=ROW, ledger_seq=4),
            "client_charge": Charge(event=WHOLE, ledger_seq=2),
        }
        if expected is LOCAL
        else {"charge": None, "norm_bound": 0.5}
    )

    with pytest.raises(UpdateRejected, match=said) as caught:
        verify_manifest(signed(**(right | changes)), expected)

    assert caught.value.reason == reason
