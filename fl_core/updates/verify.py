"""Every reason to reject an update, in one order.

Checks go from who speaks to what is said: signature, site, campaign, round, base, charge, norm,
shape, too_large, payload, not_finite. The first that fails names the reason, so that a replayed
manifest is reported as a replay and not as a wrong shape. A signature is checked before any other
field is believed, and the payload's hash before its bytes are parsed.

A manifest is bound to one campaign, round, base adapter and site; one that was right elsewhere is
refused here. What the campaign fixes for everybody (codec, steps, gate suite, noise event) is
compared with what the coordinator worked out itself, never taken from the manifest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from fl_core.artifacts.documents import sha256_hex
from fl_core.errors import RejectReason, UpdateRejected
from fl_core.updates.manifest import Declined, UpdateManifest
from fl_core.updates.payload import require_finite, shapes_of
from fl_core.updates.records import BudgetStatement, EventRecord
from fl_core.updates.signing import verify_signature
from fl_core.updates.update import Tensors

Shapes = Mapping[str, tuple[int, ...]]
Answer = UpdateManifest | Declined | BudgetStatement


@dataclass(frozen=True, slots=True)
class Expected:
    """What one site's answer in one round must say.

    Attributes:
        campaign_digest: Digest of the frozen campaign.
        round: Round, from 1.
        base_hash: Content hash of the adapter that the plan names.
        site: Site under whose key of the store the answer lies.
        public_key: That site's Ed25519 key in the plan's roster, hex.
        codec: Kind of the campaign's codec.
        shapes: Shape of every tensor by name, from the campaign's adapter.
        local_steps: Steps that the campaign fixes.
        max_payload_bytes: Longest payload that is read.
        charge_event: What a round costs one unit of the site's rows, by the coordinator's own
            NoisePlan; None where nothing is promised to it.
        gate_suite_sha256: Suite that the campaign names.
        client_event: What a round costs the site's whole data under local ClientDp, else None.
        norm_bound: Clip norm of central ClientDp, which the release builds on; else None.
    """

    campaign_digest: str
    round: int
    base_hash: str
    site: str
    public_key: str
    codec: str
    shapes: Shapes
    local_steps: int
    max_payload_bytes: int
    charge_event: EventRecord | None
    gate_suite_sha256: str
    client_event: EventRecord | None = None
    norm_bound: float | None = None


def verify_manifest(manifest: UpdateManifest, expected: Expected) -> None:
    """Check all that a manifest states, before the payload is read.

    Raises:
        UpdateRejected: ``signature`` (not by the site's key), ``site`` (answers for another one),
            ``campaign`` (of another campaign, or other steps or gate suite than it fixes, or a
            gate that did not pass), ``round``, ``base``, ``charge`` (missing, not asked for, or
            not the event of the round), ``norm`` (not the bound that is enforced), ``shape`` (of
            any tensor), ``too_large``, ``payload`` (another codec); the first that applies.
    """
    _verify_signed(manifest, expected)
    _verify_site_and_campaign(manifest, expected)
    _verify_fixed_by_campaign(manifest, expected)
    _verify_round(manifest, expected)
    if manifest.base_hash != expected.base_hash:
        _reject("base", expected, f"trained from adapter {manifest.base_hash[:12]}", "the plan's")
    _verify_charge(manifest, expected)
    if manifest.norm_bound != expected.norm_bound:
        # The sensitivity of a release follows from it, so it must be the bound that we enforce.
        found, wanted = map(_norm_text, (manifest.norm_bound, expected.norm_bound))
        _reject("norm", expected, found, wanted)
    _verify_shapes(manifest.shapes, expected)
    if manifest.payload_bytes > expected.max_payload_bytes:
        _reject(
            "too_large",
            expected,
            f"payload of {manifest.payload_bytes} bytes",
            f"at most {expected.max_payload_bytes}",
        )
    if manifest.codec != expected.codec:
        _reject("payload", expected, f"codec {manifest.codec!r}", repr(expected.codec))


def verify_payload(data: bytes, manifest: UpdateManifest) -> None:
    """Check that a payload is the one a (verified) manifest names.

    Raises:
        UpdateRejected: Reason ``payload``: another length or another SHA-256.
    """
    if len(data) != manifest.payload_bytes:
        raise UpdateRejected(
            "payload",
            f"site {manifest.site!r}: payload has {len(data)} bytes, "
            f"its manifest says {manifest.payload_bytes}",
        )
    if sha256_hex(data) != manifest.payload_sha256:
        raise UpdateRejected(
            "payload", f"site {manifest.site!r}: payload has another sha-256 than its manifest"
        )


def verify_tensors(tensors: Tensors, expected: Expected) -> None:
    """Check decoded tensors, whatever codec they came through.

    Raises:
        UpdateRejected: ``shape`` (a name or shape that the campaign does not have, or one
            missing), then ``not_finite``.
    """
    _verify_shapes(shapes_of(tensors), expected)
    for name in sorted(tensors):
        require_finite(name, tensors[name])


def verify_declined(declined: Declined, expected: Expected) -> None:
    """Check a site's refusal to take part.

    Raises:
        UpdateRejected: ``signature``, ``site``, ``campaign`` or ``round``; the first that applies.
    """
    _verify_answer(declined, expected)


def verify_statement(statement: BudgetStatement, expected: Expected) -> None:
    """Check the budget statement beside a manifest; its figures are the site's own word.

    Raises:
        UpdateRejected: ``signature``, ``site``, ``campaign`` or ``round``; the first that applies.
    """
    _verify_answer(statement, expected)


def _verify_answer(answer: Answer, expected: Expected) -> None:
    _verify_signed(answer, expected)
    _verify_site_and_campaign(answer, expected)
    _verify_round(answer, expected)


def _verify_signed(answer: Answer, expected: Expected) -> None:
    if not verify_signature(answer, expected.public_key):
        found = (
            "a signature by another key, or over other content"
            if answer.signature
            else "no signature"
        )
        _reject("signature", expected, found, f"one by the key of {expected.site!r} in the roster")


def _verify_site_and_campaign(answer: Answer, expected: Expected) -> None:
    if answer.site != expected.site:
        _reject("site", expected, f"an answer for site {answer.site!r}", repr(expected.site))
    if answer.campaign_digest != expected.campaign_digest:
        _reject(
            "campaign",
            expected,
            f"campaign {answer.campaign_digest[:12]}",
            expected.campaign_digest[:12],
        )


def _verify_round(answer: Answer, expected: Expected) -> None:
    if answer.round != expected.round:
        _reject("round", expected, f"an answer to round {answer.round}", str(expected.round))


def _verify_fixed_by_campaign(manifest: UpdateManifest, expected: Expected) -> None:
    if manifest.local_steps != expected.local_steps:
        _reject(
            "campaign", expected, f"{manifest.local_steps} local steps", str(expected.local_steps)
        )
    if manifest.gate.suite_sha256 != expected.gate_suite_sha256:
        _reject("campaign", expected, "rows judged by another suite", "the campaign's gate")
    if not manifest.gate.passed:
        _reject("campaign", expected, "rows that did not pass the gate", "a passed gate")


def _norm_text(bound: float | None) -> str:
    return "no norm bound" if bound is None else f"a norm bound of {bound:g}"


def _verify_charge(manifest: UpdateManifest, expected: Expected) -> None:
    levels = {
        "": (manifest.charge, expected.charge_event),
        " for the whole site": (manifest.client_charge, expected.client_event),
    }
    for level, (charge, event) in levels.items():
        charged = None if charge is None else charge.event
        if charged == event:
            continue
        if charged is None:
            _reject("charge", expected, f"no charge{level}", "the event of the round's noise")
        if event is None:
            _reject(
                "charge",
                expected,
                f"a charge{level}",
                "none, the campaign promises no privacy there",
            )
        _reject(
            "charge", expected, f"a charge{level} for another event", "that of the round's noise"
        )


def _verify_shapes(shapes: Shapes, expected: Expected) -> None:
    if missing := sorted(expected.shapes.keys() - shapes.keys()):
        _reject("shape", expected, f"no tensor {missing[0]!r}", f"{len(expected.shapes)} tensors")
    if unknown := sorted(shapes.keys() - expected.shapes.keys()):
        _reject("shape", expected, f"unknown tensor {unknown[0][:80]!r}", "the adapter's names")
    for name in sorted(shapes):
        if tuple(shapes[name]) != tuple(expected.shapes[name]):
            _reject(
                "shape",
                expected,
                f"tensor {name!r} of shape {tuple(shapes[name])}",
                str(tuple(expected.shapes[name])),
            )


def _reject(reason: RejectReason, expected: Expected, found: str, wanted: str) -> NoReturn:
    raise UpdateRejected(
        reason,
        f"site {expected.site!r} round {expected.round}: found {found}, expected {wanted}",
    )
