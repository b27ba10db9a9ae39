"""Whether a version's privacy statement holds: made again from the store's signed documents.

Checks go from the campaign to the page, and the first that fails is named: campaign and plans,
the sites' signed manifests, the charges against the noise that this side builds from the campaign,
the budgets against their own events and the ledgers' copies, the adapter against the outcome, and
last the logged statement against the one that is made here. Nothing is taken from the statement.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fl_core.adapters.peft_layout import adapter_sha256 as files_hash
from fl_core.adapters.peft_layout import initial_state, to_files
from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, document_sha256, from_bytes, read_document
from fl_core.artifacts.store import ObjectStore, exists, is_buried
from fl_core.assembly import Assembly
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.roster import read_roster
from fl_core.errors import FedloomError, ObjectMissing
from fl_core.privacy.statement import PrivacyStatement
from fl_core.privacy.statement_text import to_markdown
from fl_core.rounds.adapters import read_adapter
from fl_core.rounds.collection import MAX_DOCUMENT_BYTES, expected_of
from fl_core.rounds.documents import Collected, Outcome, RoundCharge, RoundPlan
from fl_core.rounds.plan import read_outcome
from fl_core.rounds.statement_ledgers import (
    check_budgets,
    check_copies,
    check_federation,
    require,
)
from fl_core.rounds.version_statement import version_statement
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.verify import verify_manifest

# One statement is made twice by the same code; only the last digits may differ between machines.
_CLOSE = 1e-9
_NO_CENTRAL_NOISE = "nothing to check: the coordinator adds no noise in this campaign"


class Check(Document):
    """One thing that was checked; ``complaint`` is empty where it holds."""

    what: str
    complaint: str = ""
    note: str = ""


class Verification(Document):
    """What was checked of a statement, in order, up to the first thing that does not hold.

    Attributes:
        campaign: Id of the campaign.
        round: Round that released the version.
        checks: In order; only the last one may have a complaint.
    """

    campaign: str
    round: int
    checks: tuple[Check, ...]

    @property
    def broken(self) -> Check | None:
        """The first thing that does not hold; None if all holds."""
        return next((check for check in self.checks if check.complaint), None)


@dataclass(frozen=True, slots=True)
class Logged:
    """What was logged of a version, as it was found; None is not there.

    Attributes:
        statement: Bytes of ``statement.json``.
        markdown: Text of ``statement.md``.
        adapter_sha256: Adapter hash that the version is tagged with.
    """

    statement: bytes | None = None
    markdown: str | None = None
    adapter_sha256: str | None = None


@dataclass(slots=True)
class _Run:
    """What the checks share: each leaves what later ones need."""

    assembly: Assembly
    store: ObjectStore
    number: int
    logged: Logged
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    plans: dict[int, RoundPlan] = field(default_factory=dict)
    manifests: dict[int, dict[str, UpdateManifest]] = field(default_factory=dict)
    charges: list[RoundCharge] = field(default_factory=list)
    note: str = ""

    @property
    def campaign(self) -> Campaign:
        return self.assembly.campaign


def verify_version(
    assembly: Assembly,
    store: ObjectStore,
    round_number: int,
    *,
    logged: Logged | None = None,
    on_check: Callable[[str], None] = lambda _what: None,
) -> Verification:
    """Check the statement of the version that a round released.

    Args:
        assembly: The campaign's parts, as they lie in the store.
        store: The campaign's store.
        round_number: Round that released the version.
        logged: What was logged of the version; None checks the store's documents alone.
        on_check: Told of every check before it is made, for a progress display.
    """
    run = _Run(assembly, store, round_number, logged or Logged())
    checks = []
    for what, check in _CHECKS:
        on_check(what)
        run.note = complaint = ""
        try:
            check(run)
        except FedloomError as error:
            complaint = f"{error}"
        checks.append(Check(what=what, complaint=complaint, note=run.note))
        if complaint:
            break
    return Verification(campaign=assembly.campaign.id, round=round_number, checks=tuple(checks))


def _check_plans(run: _Run) -> None:
    campaign_id = run.campaign.id
    base = _initial_adapter(run.campaign)
    for number in range(1, run.number + 1):
        plan = read_document(run.store, keys.plan(campaign_id, number), RoundPlan)
        outcome = read_outcome(run.store, campaign_id, number)
        if outcome is None:
            raise ObjectMissing(f"round {number} has no outcome")
        require(
            f"the plan of round {number} is about another campaign or round",
            holds=(plan.campaign_digest, plan.round) == (run.assembly.digest, number),
        )
        strangers = sorted(set(plan.cohort) - set(run.campaign.sites))
        require(f"the plan of round {number} asks {strangers}, no sites of it", holds=not strangers)
        require(
            f"round {number} does not start from the adapter that the last release made",
            holds=(plan.base_hash, outcome.base_hash) == (base, base),
        )
        run.plans[number], run.outcomes[number] = plan, outcome
        base = outcome.result_hash or base
    released = run.outcomes[run.number].result_hash
    require(f"round {run.number} released no version", holds=released is not None)


def _initial_adapter(campaign: Campaign) -> str:
    files = to_files(
        initial_state(campaign.adapter, campaign.task),
        spec=campaign.adapter,
        task=campaign.task,
        base_name=campaign.base_model.name,
    )
    return files_hash(files)


def _check_manifests(run: _Run) -> None:
    for number, plan in run.plans.items():
        run.manifests[number] = {}
        if run.outcomes[number].status != "released":
            continue
        collected = read_document(run.store, keys.collected(run.campaign.id, number), Collected)
        require(
            f"the outcome of round {number} names other sites than were accepted",
            holds=run.outcomes[number].contributors == tuple(collected.accepted),
        )
        for site in collected.accepted:
            manifest = _manifest(run, plan, site)
            require(
                f"the manifest of {site!r} in round {number} is not the accepted one",
                holds=document_sha256(manifest) == collected.answers[site].manifest_sha256,
            )
            run.manifests[number][site] = manifest


def _manifest(run: _Run, plan: RoundPlan, site: str) -> UpdateManifest:
    key = keys.manifest(run.campaign.id, plan.round, site)
    manifest = read_document(run.store, key, UpdateManifest, max_bytes=MAX_DOCUMENT_BYTES)
    roster = read_roster(run.store, plan.roster_version)
    verify_manifest(manifest, expected_of(run.assembly, plan, site=site, roster=roster))
    return manifest


def _check_charges(run: _Run) -> None:
    for number, manifests in run.manifests.items():
        if not manifests:
            continue
        charge = read_document(run.store, keys.charge(run.campaign.id, number), RoundCharge)
        rows = {s: m.charge for s, m in manifests.items() if m.charge is not None}
        whole = {s: m.client_charge for s, m in manifests.items() if m.client_charge is not None}
        require(
            f"the charges of round {number} are not those that the sites signed",
            holds=(charge.round, charge.sites, charge.clients) == (number, rows, whole),
        )
        for event, charged in ((run.assembly.row_event, rows), (run.assembly.site_event, whole)):
            paid = all(site in charged and charged[site].event == event for site in manifests)
            require(
                f"round {number} is not paid for by every site as the campaign's noise asks",
                holds=paid or event is None,
            )
        run.charges.append(charge)


def _check_budgets(run: _Run) -> None:
    check_budgets(run.assembly, run.store, round_number=run.number, charges=run.charges)


def _check_copies(run: _Run) -> None:
    run.note = check_copies(run.assembly, run.store, round_number=run.number)


def _check_federation(run: _Run) -> None:
    if run.assembly.central_noise is None:
        run.note = _NO_CENTRAL_NOISE
        return
    check_federation(run.assembly, run.store, charges=run.charges)


def _check_raw_updates(run: _Run) -> None:
    if run.assembly.central_noise is None:
        run.note = _NO_CENTRAL_NOISE
        return
    for number, manifests in run.manifests.items():
        left = [
            site
            for site in sorted(manifests)
            if not is_gone(run.store, keys.payload(run.campaign.id, number, site))
        ]
        require(
            f"un-noised updates of round {number} are still in the store: {left}", holds=not left
        )


def _check_adapter(run: _Run) -> None:
    released = str(run.outcomes[run.number].result_hash)
    read_adapter(run.store, run.campaign.id, released)
    tagged = run.logged.adapter_sha256 or released
    require(
        f"the model version is of adapter {tagged[:16]}..., its round made {released[:16]}...",
        holds=tagged == released,
    )


def _check_statement(run: _Run) -> None:
    if run.logged.statement is None:
        run.note = "no logged statement was given; it can be made from the store alone"
        version_statement(run.assembly, run.store, run.number)
        return
    logged = from_bytes(PrivacyStatement, run.logged.statement, what="the logged statement")
    made = version_statement(run.assembly, run.store, run.number)
    known = {finding.number for finding in logged.audits}
    # An audit that came later is no fault of the statement; one that is gone or changed is.
    before = tuple(finding for finding in made.audits if finding.number in known)
    made = made.model_copy(update={"audits": before})
    difference = first_difference(
        logged.model_dump(mode="json"), made.model_dump(mode="json"), path=""
    )
    require(f"the logged statement differs from the store: {difference}", holds=not difference)
    require(
        "the logged page statement.md does not say what statement.json says",
        holds=run.logged.markdown in {None, to_markdown(logged)},
    )


def is_gone(store: ObjectStore, key: str) -> bool:
    """Say whether nothing lies under a key any more but, at most, the mark of its removal."""
    return is_buried(store, key) or not exists(store, key)


def first_difference(found: object, made: object, *, path: str) -> str:
    """Return where two plain values first differ, with both; empty if nowhere.

    Args:
        found: What was logged.
        made: What it should be.
        path: Where both are, for people.
    """
    if isinstance(found, dict) and isinstance(made, dict):
        for name in sorted({*found, *made}):
            inner = f"{path}.{name}" if path else name
            if difference := first_difference(found.get(name), made.get(name), path=inner):
                return difference
        return ""
    if isinstance(found, list) and isinstance(made, list) and len(found) == len(made):
        return next(_differences(found, made, path), "")
    if _is_number(found) and _is_number(made):
        is_same = math.isclose(float(str(found)), float(str(made)), rel_tol=_CLOSE)
    else:
        is_same = found == made and type(found) is type(made)
    return "" if is_same else f"{path} is {_short(found)}, it should be {_short(made)}"


def _differences(found: list[object], made: list[object], path: str) -> Iterator[str]:
    for number, (one, other) in enumerate(zip(found, made, strict=True)):
        if difference := first_difference(one, other, path=f"{path}[{number}]"):
            yield difference


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004  one line at a terminal


_CHECKS: tuple[tuple[str, Callable[[_Run], None]], ...] = (
    ("campaign and plans", _check_plans),
    ("signed manifests", _check_manifests),
    ("charges against the campaign's noise", _check_charges),
    ("budgets against their own events", _check_budgets),
    ("budgets against copies of the ledgers", _check_copies),
    ("the federation's ledger", _check_federation),
    ("un-noised updates are gone", _check_raw_updates),
    ("adapter", _check_adapter),
    ("logged statement", _check_statement),
)
