"""One round at a site, as pure steps: check, gate, reserve, train, commit, upload.

The order is the guarantee. The policy and the gate are asked before anything is charged; the
charge is durable before the first private forward pass; what leaves goes into the outbox first and
is uploaded from there, so that a retry sends the same bytes and never a second draw.
What the site's operator decided is asked at the steps between (``fl_core.rounds.site_consent``).
Training and the gate are handed in, so that this file needs neither torch nor great_expectations.
"""

import logging
from dataclasses import dataclass, replace
from typing import Literal

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.errors import (
    BudgetExhausted,
    PolicyRefused,
    RoundClosed,
    RoundError,
    StoreError,
)
from fl_core.privacy.policy import require_allowed
from fl_core.rounds.adapters import read_base
from fl_core.rounds.client_noise import protected_update, zero_update
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.site import Site, SiteWork
from fl_core.rounds.site_charge import Reserves, commit_round, reserve_round
from fl_core.rounds.site_consent import (
    consent,
    exchange_prefix,
    note,
    note_after,
    objection,
)
from fl_core.rounds.site_memory import exchange_of, keep_read_out, with_state
from fl_core.rounds.site_update import signed_files, upload_files
from fl_core.rounds.site_witness import (
    require_outbox_kept,
    require_witnesses,
    void_idle_reserves,
    witness_coordinator,
    witness_ledgers,
)
from fl_core.rounds.upload_time import require_own_time
from fl_core.updates.manifest import Declined, DeclineReason
from fl_core.updates.signing import sign
from fl_core.updates.work import Exchange, Trained

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SiteOutcome:
    """What the site did in a round; ``detail`` stays at the site.

    ``held``: ready in the outbox until the operator's word; to be asked again, and nobody else to
    be asked before the plan's upload time. ``withheld``: nothing leaves, not even a refusal.
    """

    status: Literal["uploaded", "declined", "ignored", "held", "withheld"]
    reason: str = ""
    detail: str = ""


def client_round(
    site: Site, work: SiteWork, *, assembly: Assembly, store: ObjectStore, plan: RoundPlan
) -> SiteOutcome:
    """Take part in one round, or decline; running it again sends the same bytes.

    Raises:
        FedloomError: A cause that another try can mend (store away, ledger busy); nothing was
            sent, and the round's reserve stands.
        LedgerCorrupt: The ledger does not hold, or an update in the outbox has no charge on it.
    """
    require_own_plan(site, assembly, plan)
    # Witnesses are looked at whole once, at the round's first question to them.
    site = replace(site, witnessed={})
    prefix = exchange_prefix(site, assembly, plan)
    committed = site.outbox.committed(prefix)
    try:
        if committed is None:
            why = _stopped(site, assembly, plan, files=None)
            if why is not None:
                return _in_time(site, plan, why)
            committed = _make_update(site, work, assembly=assembly, store=store, plan=plan)
        else:
            _require_same_round(site, assembly, store, plan)
    except _Refusal as refusal:
        return _decline(site, assembly, store, plan=plan, refusal=refusal)
    # Twice, because an update that is held is shown at once, not when its time to leave has come.
    why = _stopped(site, assembly, plan, files=committed)
    if why is None:
        # Here, because the ledger's commit goes to witnesses with its time: it would tell when
        # training ended.
        _await_upload(site, plan)
        why = _stopped(site, assembly, plan, files=committed)
    if why is not None:
        return _in_time(site, plan, why)
    # After the outbox: what is committed there can be sent again, what is only noted here cannot.
    commit_round(site, assembly, plan)
    witness_ledgers(site)
    note(site, assembly, plan, "sending")
    upload_files(assembly, store, plan, site=site.name, files=committed)
    note_after(site, assembly, plan, "uploaded")
    return SiteOutcome("uploaded")


def _stopped(
    site: Site, assembly: Assembly, plan: RoundPlan, *, files: dict[str, bytes] | None
) -> SiteOutcome | None:
    if files is None and not site.outbox.is_begun(exchange_prefix(site, assembly, plan)):
        # Nothing has been trained, so that a refusal may still say so.
        return None
    given = consent(site, assembly, plan, files=files)
    return None if given.word == "send" else SiteOutcome(given.word, detail=given.why)


def _in_time(site: Site, plan: RoundPlan, outcome: SiteOutcome) -> SiteOutcome:
    if outcome.status == "withheld":
        # What the site does next, such as asking for the next plan, would tell when training ended.
        _await_upload(site, plan)
    return outcome


def require_own_plan(site: Site, assembly: Assembly, plan: RoundPlan) -> None:
    """Refuse a plan that is not one of the pinned campaign's rounds for this site.

    Raises:
        RoundError: Another campaign, a round outside it, a cohort without this site, or an upload
            time that is not the campaign's.
    """
    if plan.campaign_digest != assembly.digest:
        raise RoundError(f"plan of round {plan.round} names another campaign")
    if plan.round > assembly.campaign.max_rounds:
        raise RoundError(f"round {plan.round} is past max_rounds {assembly.campaign.max_rounds}")
    if site.name not in plan.cohort:
        raise RoundError(f"site {site.name!r} is not in the cohort of round {plan.round}")
    require_own_time(assembly.campaign, plan)


class _Refusal(Exception):
    def __init__(
        self, reason: DeclineReason, rules: tuple[str, ...], detail: str, error: str | None = None
    ) -> None:
        super().__init__(detail)
        self.reason, self.rules, self.detail, self.error = reason, rules, detail, error


def _make_update(
    site: Site, work: SiteWork, *, assembly: Assembly, store: ObjectStore, plan: RoundPlan
) -> dict[str, bytes]:
    prefix, plan_sha256 = exchange_prefix(site, assembly, plan), document_sha256(plan)
    _require_wanted(site, assembly, plan)
    try:
        require_allowed(site.policy, assembly.campaign)
        require_witnesses(site, assembly.campaign)
        witness_coordinator(site, assembly, store)
        site.outbox.require_plan(prefix, plan_sha256)
    except PolicyRefused as error:
        raise _Refusal("policy", (), str(error)) from error
    base = read_base(store, assembly.campaign, plan.base_hash)
    exchange = exchange_of(site, assembly, plan, base=base)
    gate = work.gate()
    if not gate.passed:
        raise _Refusal("gate", gate.failed, "gate")
    _require_time_left(site, assembly, plan)
    # Before anything is written: a ledger that was set back must not be written on.
    witness_ledgers(site)
    void_idle_reserves(site, assembly, store)
    # Again, and once more below: a witness may have taken any time, and no round that is over is
    # paid for. A charge that nothing is trained for is taken back.
    _require_time_left(site, assembly, plan)
    reserves = _reserve(site, assembly, plan, plan_sha256)
    require_outbox_kept(site, assembly, plan.round)
    witness_ledgers(site)
    _require_wanted(site, assembly, plan)
    _require_time_left(site, assembly, plan)
    try:
        site.outbox.begin_attempt(prefix)
    except RoundClosed as error:
        raise _Refusal("no_update", (), str(error)) from error
    try:
        trained = _train(site, work, assembly, exchange)
        files = signed_files(
            site, assembly, plan, delta=trained.delta, gate=gate, reserves=reserves
        )
        # Inside, because a draw that cannot be kept is a caught failure like any other: it ends
        # the exchange, and no second draw takes its place (SOUNDNESS, rule 11).
        committed = site.outbox.commit(prefix, with_state(files, trained))
    except Exception as error:
        # Whatever it was, outwardly it is one code: under DP a failure may depend on a row.
        log.exception("training failed round=%d", plan.round)
        _note_failure(site, prefix, type(error).__name__)
        name = type(error).__name__
        raise _Refusal("no_update", (), name, error=name) from error
    keep_read_out(site, assembly, plan, read_out=trained.read_out)
    return committed


def _require_same_round(
    site: Site, assembly: Assembly, store: ObjectStore, plan: RoundPlan
) -> None:
    """Send an update without noise a second time only for the plan that it was made for.

    A coordinator whose store was set back opens a released round anew. Noise of the site's own is
    in the bytes, so that they cost nothing more; noise of the coordinator's would be drawn a second
    time over the same update, on one charge (SOUNDNESS, rule 11).
    """
    if assembly.central_noise is None:
        return
    try:
        witness_coordinator(site, assembly, store)
        site.outbox.require_plan(exchange_prefix(site, assembly, plan), document_sha256(plan))
    except PolicyRefused as error:
        raise _Refusal("policy", (), str(error)) from error


def _require_wanted(site: Site, assembly: Assembly, plan: RoundPlan) -> None:
    if site.outbox.is_begun(exchange_prefix(site, assembly, plan)):
        # An exchange that was begun is finished, also while the site is paused.
        return
    found = objection(site, assembly, plan)
    if found is not None:
        raise _Refusal(found[0], (), found[1])


def _require_time_left(site: Site, assembly: Assembly, plan: RoundPlan) -> None:
    # Training now would end at a time that follows the rows, as late as a back-dated plan likes.
    # A round that was begun in time goes on, whatever it costs in time: its charge stays.
    if site.outbox.is_begun(exchange_prefix(site, assembly, plan)):
        return
    now = site.clock.now()
    if plan.upload_at is not None and now >= plan.upload_at:
        raise _Refusal("no_update", (), "the plan was found after its upload time")
    if now >= plan.deadline:
        raise _Refusal("no_update", (), "the round's deadline passed before its training began")


def _await_upload(site: Site, plan: RoundPlan) -> None:
    if plan.upload_at is not None:
        site.clock.wait_until(plan.upload_at)


def _note_failure(site: Site, prefix: str, code: str) -> None:
    try:
        site.outbox.mark_failed(prefix, code)
    except StoreError:
        # Raised on, a full disk would read as a cause to try again, which would draw again.
        log.exception("failure not noted code=%s", code)


def _reserve(site: Site, assembly: Assembly, plan: RoundPlan, plan_sha256: str) -> Reserves:
    try:
        return reserve_round(site, assembly, plan, plan_sha256=plan_sha256)
    except BudgetExhausted as error:
        raise _Refusal("budget", (), str(error)) from error
    except PolicyRefused as error:
        raise _Refusal("policy", (), str(error)) from error


def _train(site: Site, work: SiteWork, assembly: Assembly, exchange: Exchange) -> Trained:
    plan = assembly.client_noise
    if plan is None:
        return work.train(exchange)
    shapes = assembly.shapes(exchange.round_number)
    try:
        trained = work.train(exchange)
    except Exception:
        # The unit is the whole site: what its rows did to the training shows in nothing but the
        # update, and that counts as zero (SOUNDNESS, rules 2 and 18).
        log.exception("training failed, the update is zero round=%d", exchange.round_number)
        trained = Trained(delta=zero_update(shapes))
    protected = protected_update(trained.delta, shapes=shapes, plan=plan, stream=site.streams())
    return replace(trained, delta=protected)


def _decline(
    site: Site, assembly: Assembly, store: ObjectStore, *, plan: RoundPlan, refusal: _Refusal
) -> SiteOutcome:
    declined = Declined(
        campaign_digest=assembly.digest,
        round=plan.round,
        site=site.name,
        reason=refusal.reason,
        rules=refusal.rules,
        # Under a guarantee the one code is all that leaves, whatever failed.
        error=None if assembly.campaign.privacy.none is None else refusal.error,
    )
    # Whatever the reason: how long it took to read and judge the rows tells how many there are.
    _await_upload(site, plan)
    key = keys.declined(assembly.campaign.id, plan.round, site.name)
    store.put_once(key, to_bytes(sign(declined, site.key)))
    said = f"{refusal.reason}: {refusal.detail or ', '.join(refusal.rules)}"
    note_after(site, assembly, plan, "declined", text=said)
    log.info("round declined site=%s round=%d reason=%s", site.name, plan.round, refusal.reason)
    return SiteOutcome("declined", refusal.reason, refusal.detail)


def decline_round(
    site: Site, *, assembly: Assembly, store: ObjectStore, plan: RoundPlan, detail: str
) -> SiteOutcome:
    """Tell the coordinator ``no_update``, the one code for whatever cannot be mended in time.

    Args:
        site: The site.
        assembly: The campaign's parts.
        store: The campaign's store.
        plan: The round's plan.
        detail: Class of the error; it leaves under NoPrivacy only.
    """
    refusal = _Refusal("no_update", (), detail, error=detail)
    return _decline(site, assembly, store, plan=plan, refusal=refusal)
