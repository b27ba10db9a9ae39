"""Whether a round may be taken part in, and whether its update may leave: the operator's word.

Asked before anything is charged, once more before training, and before the first byte leaves. An
update that is held is ready in the outbox; it leaves when exactly its manifest was approved, and
not at all after the round's deadline. It stays charged: the training has happened, and what was
drawn under its noise is never drawn again.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from fl_core.artifacts import keys
from fl_core.artifacts.documents import sha256_hex
from fl_core.assembly import Assembly
from fl_core.errors import StoreError
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.site import Site
from fl_core.rounds.site_decision import standing
from fl_core.updates.outbox_record import LONGEST_TEXT, Note, NoteKind

log = logging.getLogger(__name__)

Word = Literal["send", "held", "withheld"]


@dataclass(frozen=True, slots=True)
class Consent:
    """The word on one update, and why; the reason stays at the site."""

    word: Word
    why: str = ""


def exchange_prefix(site: Site, assembly: Assembly, plan: RoundPlan) -> str:
    """Return the prefix of a round's exchange in the site's outbox."""
    return keys.exchange(site.policy.dataset, assembly.digest, plan.round)


def objection(
    site: Site, assembly: Assembly, plan: RoundPlan
) -> tuple[Literal["policy", "left"], str] | None:
    """Return why a round is not begun, as the coordinator hears it and as the site reads it.

    Only for a round whose training has not begun: what is said here cannot depend on one.
    """
    now = standing(site.decisions)
    why = now.refusal(assembly.digest, plan.round)
    if why:
        return ("left" if assembly.digest in now.left else "policy"), why
    return ("policy", "the site is paused") if now.is_paused else None


def consent(
    site: Site, assembly: Assembly, plan: RoundPlan, *, files: Mapping[str, bytes] | None
) -> Consent:
    """Return whether an update may leave now.

    Args:
        site: The site.
        assembly: The campaign's parts.
        plan: The round's plan.
        files: What is committed in the outbox; None while a training that was begun has ended
            with nothing yet.

    Raises:
        StoreUnavailable: The word cannot be noted; nothing may leave then.
    """
    now = standing(site.decisions)
    why = now.refusal(assembly.digest, plan.round)
    if why:
        return _withheld(site, assembly, plan, why)
    if files is None or not site.policy.hold:
        return Consent("send")
    if now.is_approved(assembly.digest, plan.round, sha256_hex(files[keys.MANIFEST])):
        return Consent("send")
    if site.clock.now() >= plan.deadline:
        return _withheld(site, assembly, plan, "it was not approved by the round's deadline")
    if note(site, assembly, plan, "held", until=plan.deadline):
        log.warning(
            "update held round=%d: fedloom site approve %s --round %d",
            plan.round,
            assembly.campaign.id,
            plan.round,
        )
    return Consent("held", "policy field 'hold' is true")


def withhold(site: Site, assembly: Assembly, plan: RoundPlan, why: str) -> None:
    """Note that nothing of an update leaves, and why."""
    _withheld(site, assembly, plan, why)


def _withheld(site: Site, assembly: Assembly, plan: RoundPlan, why: str) -> Consent:
    if note(site, assembly, plan, "withheld", text=why):
        log.warning("update withheld round=%d: %s", plan.round, why)
    return Consent("withheld", why)


def note(  # noqa: PLR0913  whose exchange, and the fields of a note
    site: Site,
    assembly: Assembly,
    plan: RoundPlan,
    kind: NoteKind,
    *,
    text: str = "",
    until: datetime | None = None,
) -> bool:
    """Note a step of a round's exchange; return whether it is the first note of its kind.

    Raises:
        StoreUnavailable: The site's disk does not take it.
    """
    made = Note(kind=kind, time=site.clock.now(), text=text[:LONGEST_TEXT], until=until)
    return site.outbox.note(exchange_prefix(site, assembly, plan), made) == made


def note_after(
    site: Site, assembly: Assembly, plan: RoundPlan, kind: NoteKind, *, text: str = ""
) -> None:
    """Note what has happened already; a disk that is full must not make it happen again."""
    try:
        note(site, assembly, plan, kind, text=text)
    except StoreError:
        log.exception("step not noted round=%d kind=%s", plan.round, kind)
