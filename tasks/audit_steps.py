"""What an audit runs on, and where its report goes.

By default the rows are public or made up, so the report may be published: in the store, and in
MLflow as ``audit/lower_bound``, never as epsilon. A site may audit on its own rows; then nothing is
connected to, and the report stays in the site's folder (SOUNDNESS, rule 23).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import noise_plan
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import ROW, RecordDp
from fl_core.data.rows import Rows, rows_of, take_rows
from fl_core.errors import CampaignError, DataGateFailed
from fl_core.privacy.audit_documents import AuditReport
from fl_core.privacy.audits import keep_audit, write_audit
from fl_core.privacy.forecast import epsilon_after, with_noise
from tasks.locking import Shelves
from tasks.site_config import SiteHome, read_site_config

if TYPE_CHECKING:
    from fl_core.data.prompts import EncodedRows
    from fl_core.models.loading import LoadedBase
    from fl_core.privacy.randomness import NoiseStream
    from fl_core.training.canaries import Vocabulary

SYNTHETIC_ROWS = 512
MOST_ROWS, MOST_TOKENS = 1024, 65_536
FEWEST_ROWS = 32


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an audit.

    Attributes:
        campaign: As people wrote it, locked, or frozen.
        site: Whose public divisor is used; None is the campaign's first.
        canaries: Gradient canaries; None is as many as the claim asks for.
        text_canaries: How many.
        confidence: Of every bound.
        threads: CPU threads of training.
    """

    campaign: Campaign
    site: str | None = None
    canaries: int | None = None
    text_canaries: int = 200
    confidence: float = 0.95
    threads: int = 1


def audit_public(
    request: Request,
    rows: Rows | None,
    *,
    shelves: Shelves,
    on_progress: Callable[[str], None],
) -> AuditReport:
    """Audit a campaign on public rows, or on made-up ones where ``rows`` is None.

    Raises:
        CampaignError: The campaign states no record guarantee, or the rows do not fit it.
        ModelMismatch: The base model is absent or another one.
    """
    on_progress("loading the model")
    from fl_core.data.units import KEY_BYTES, encode_units
    from fl_core.privacy.randomness import SecureStream

    campaign, base = _with_model(request.campaign, shelves.base_models)
    stream = SecureStream()
    kind: Literal["public", "synthetic"] = "synthetic" if rows is None else "public"
    chosen = (
        made_up_rows(campaign, base.tokenizer, stream)
        if rows is None
        else _some(rows, stream, campaign.task.max_tokens)
    )
    # Nobody protects these rows, so the draw of a unit's rows needs no secret that lasts.
    encoded = encode_units(chosen, campaign, base.tokenizer, key=bytes(KEY_BYTES))
    return _audit(
        request, campaign, base, encoded, source=(kind, chosen.source), on_progress=on_progress
    )


def audit_at_site(
    request: Request, home: SiteHome, *, on_progress: Callable[[str], None]
) -> tuple[AuditReport, int]:
    """Audit a locked campaign on a site's own rows; return the report and its number.

    Nothing is charged, because nothing leaves: the model is dropped, and the report is kept in the
    site's folder only.

    Raises:
        CampaignError: No site there, a campaign that is not locked, or rows that do not fit it.
        DataGateFailed: The rows do not pass the campaign's gate.
        ModelMismatch: The base model is absent or another one.
    """
    _require_locked(request.campaign)
    on_progress("reading rows, loading the model")
    from fl_core.data.units import encode_units, unit_of
    from tasks.row_gate import cached_gate
    from tasks.site_rows import read_rows
    from tasks.suite_files import load_locked_suite
    from tasks.unit_key import read_unit_key

    config = read_site_config(home)
    campaign, base = _with_model(request.campaign, config.base_models)
    suite = load_locked_suite(campaign.gate, folder=config.suites)
    rows = read_rows(home.root / config.data)
    verdict = cached_gate(
        rows, suite, task=campaign.task, store=home.store("gate"), unit=unit_of(campaign)
    )
    if not verdict.report.passed:
        raise DataGateFailed(
            verdict.report.failed,
            f"the rows break {', '.join(verdict.report.failed)} of gate {suite.name!r}",
        )
    kept, key = take_rows(rows, verdict.kept), read_unit_key(home)
    encoded = encode_units(kept, campaign, base.tokenizer, key=key)
    name = config.site if config.site in campaign.sites else None
    report = _audit(
        Request(
            campaign=request.campaign,
            site=request.site or name,
            canaries=request.canaries,
            text_canaries=request.text_canaries,
            confidence=request.confidence,
            threads=config.threads,
        ),
        campaign,
        base,
        encoded,
        source=("private", "rows of this site"),
        on_progress=on_progress,
    )
    return report, keep_audit(home.store("audits"), report)


def _require_locked(campaign: Campaign) -> None:
    if campaign.unlocked_fields:
        raise CampaignError(
            f"campaign {campaign.id!r} is not locked, so no gate and no base model is fixed for "
            "the site's rows",
            hint="`fedloom check FILE --lock` writes FILE.lock.json; audit that, or an id",
        )


def publish_audit(
    store: ObjectStore, report: AuditReport, *, tracking_uri: str | None
) -> dict[str, Any]:
    """Write a report into the store, and into MLflow if the campaign has a run there.

    Returns:
        ``number`` in the store, and ``mlflow_run_id`` or None.

    Raises:
        PrivacyError: It speaks of private rows.
        StoreError: Store or MLflow refuse it.
    """
    number = write_audit(store, report)
    run_id = None
    if tracking_uri is not None:
        from tasks.tracking_audit import log_audit

        run_id = log_audit(report, number=number, tracking_uri=tracking_uri)
    return {"number": number, "mlflow_run_id": run_id}


def require_same_campaign(written: Campaign, frozen: Campaign) -> Campaign:
    """Return the frozen campaign, if what a file states is what was frozen.

    Raises:
        CampaignError: A field differs; names it.
    """
    plain = (written.model_dump(mode="json"), frozen.model_dump(mode="json"))
    other = _first_difference(*plain)
    if other is not None:
        raise CampaignError(
            f"campaign {written.id!r} in the store has another {other} than the file, so a report "
            "on the file would not be about it",
            hint="audit the one in the store by its id, or give the file's campaign another id",
        )
    return frozen


def _audit(  # noqa: PLR0913  what is asked, and what it was resolved to
    request: Request,
    campaign: Campaign,
    base: "LoadedBase",
    rows: "EncodedRows",
    *,
    source: tuple[Literal["public", "synthetic", "private"], str],
    on_progress: Callable[[str], None],
) -> AuditReport:
    import torch

    from fl_core.adapters.peft_layout import initial_state
    from fl_core.models.peft_state import attach
    from fl_core.privacy.randomness import SecureStream
    from fl_core.training.audit_report import Source, audit
    from fl_core.training.audit_run import Claim, Setting, canaries_for

    torch.set_num_threads(request.threads)
    record = _record(campaign)
    if len(rows) < FEWEST_ROWS:
        raise CampaignError(
            f"{source[1]} has fewer than {FEWEST_ROWS} usable rows, too few to audit on",
            hint="give more rows, or none: then rows are made up",
        )
    claim = Claim(
        epsilon=epsilon_after(campaign, campaign.max_rounds),
        delta=record.delta,
        confidence=request.confidence,
    )
    noise = noise_plan(campaign)
    if noise is None:
        raise CampaignError("there is no noise on gradients to audit")
    setting = Setting(
        campaign=campaign,
        noise=noise,
        site=_site(request, campaign),
        model=attach(
            base,
            campaign.adapter,
            campaign.task,
            initial_state(campaign.adapter, campaign.task),
        ),
        rows=rows,
        texts=_text_canaries(request, campaign, base),
        n_gradient_canaries=request.canaries or min(canaries_for(claim), _most(campaign)),
        streams=SecureStream,
    )
    digest = None if campaign.unlocked_fields else campaign.digest
    return audit(setting, claim, Source(*source, digest), on_progress=on_progress)


def _with_model(campaign: Campaign, folders: Mapping[str, Path]) -> tuple[Campaign, "LoadedBase"]:
    """Return the campaign with its noise and its modules stated, and its base model."""
    from fl_core.models.loading import adapter_layout, load_base, resolve_base

    _record(campaign)
    path = resolve_base(campaign.base_model.name, folders=folders)
    base = load_base(path, campaign.task, sha256=campaign.base_model.sha256)
    if campaign.adapter.modules is None:
        modules, head_inputs = adapter_layout(base, campaign.adapter.targets, campaign.task)
        layout = {"modules": modules, "head_inputs": head_inputs}
        adapter = campaign.adapter.model_copy(update=layout)
        campaign = campaign.model_copy(update={"adapter": adapter})
    return with_noise(campaign), base


def _record(campaign: Campaign) -> RecordDp:
    record = campaign.privacy.record
    if record is None:
        raise CampaignError(
            f"campaign {campaign.id!r} states no privacy.record, so there is no claim about single "
            "rows to audit",
            hint="an audit attacks the private training of rows; whole sites are not covered",
        )
    return record


def _site(request: Request, campaign: Campaign) -> str:
    site = request.site or campaign.sites[0]
    if site not in campaign.sites:
        raise CampaignError(
            f"site {site!r} is not of campaign {campaign.id!r}; its sites are "
            f"{', '.join(campaign.sites)}"
        )
    return site


def _most(campaign: Campaign) -> int:
    """Return half of the weights that the smaller kind of round trains."""
    from fl_core.adapters.peft_layout import tensor_shapes
    from fl_core.adapters.rules import kinds_of_rounds

    sizes = [
        sum(int(np.prod(shape)) for shape in shapes.values() if len(shape) > 1)
        for shapes in (
            tensor_shapes(campaign.adapter, campaign.task, round_number=number)
            for number in kinds_of_rounds(campaign.adapter)
        )
    ]
    return min(sizes) // 2


def _text_canaries(request: Request, campaign: Campaign, base: "LoadedBase") -> "EncodedRows":
    from fl_core.data.prompts import encode_rows
    from fl_core.privacy.randomness import SecureStream
    from fl_core.training.canaries import text_canaries, words_of

    words = words_of(base.tokenizer)
    rows = text_canaries(campaign.task, words, request.text_canaries, SecureStream())
    return encode_rows(rows, campaign.task, base.tokenizer)


def made_up_rows(campaign: Campaign, tokenizer: "Vocabulary", stream: "NoiseStream") -> Rows:
    """Return rows of the campaign's columns; people of its unit have as many rows as may count."""
    from fl_core.training.canaries import synthetic_rows, words_of

    rows = synthetic_rows(campaign.task, words_of(tokenizer), SYNTHETIC_ROWS, stream)
    record = _record(campaign)
    if record.unit == ROW:
        return rows
    people = np.arange(len(rows)) // record.max_rows_per_unit
    units = {record.unit: [f"person {number}" for number in people]}
    return rows_of(rows.frame.assign(**units), rows.source)


def _some(rows: Rows, stream: "NoiseStream", max_tokens: int) -> Rows:
    """Return at most ``MOST_ROWS`` rows, fewer of long ones, at random and in their order."""
    most = min(MOST_ROWS, MOST_TOKENS // max_tokens)
    chosen = np.sort(np.argsort(stream.normal((len(rows),)), kind="stable")[:most])
    return take_rows(rows, chosen.astype(np.int64))


def _first_difference(written: Any, frozen: Any, field: str = "") -> str | None:
    """Return the first field that is stated in ``written`` and is something else in ``frozen``."""
    if written is None:
        return None
    if isinstance(written, dict) and isinstance(frozen, dict):
        for name in sorted(written):
            inner = f"{field}.{name}".lstrip(".")
            found = _first_difference(written[name], frozen.get(name), inner)
            if found is not None:
                return found
        return None
    return None if written == frozen else field
