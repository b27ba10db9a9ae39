"""A whole audit: white-box checks, the audited run, and the report of both."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal

from fl_core.adapters.rules import kinds_of_rounds
from fl_core.models.peft_state import open_for_round
from fl_core.privacy.audit_documents import AuditReport, WhiteBoxCheck
from fl_core.training.audit_run import (
    Claim,
    Setting,
    audit_canaries,
    membership,
    run_audit,
)
from fl_core.training.batches import columns_of
from fl_core.training.local_training import probe_columns
from fl_core.training.trainee import trainee_of
from fl_core.training.watching import Recipe
from fl_core.training.white_box import Subject, white_box_checks

SEEDED = "seeded: the noise is known to anybody, so this is no audit of the product"


@dataclass(frozen=True, slots=True)
class Source:
    """Where an audit's rows came from.

    Attributes:
        rows: Whose they are.
        name: For people, such as a file's name.
        campaign_digest: Of the audited campaign, or None if it is not locked.
        label: Why this run is no audit of the product, or None.
    """

    rows: Literal["public", "synthetic", "private"]
    name: str
    campaign_digest: str | None = None
    label: str | None = None


def audit(
    setting: Setting, claim: Claim, source: Source, *, on_progress: Callable[[str], None]
) -> AuditReport:
    """Check the training code from inside, then run the campaign once and attack it.

    Args:
        setting: Campaign, model, rows and canaries.
        claim: What the accountant says of the whole campaign.
        source: Where the rows came from.
        on_progress: Called with a few words before each part: checks, every round, bounds.

    Raises:
        TrainingError: The model cannot be trained privately.
    """
    on_progress("white-box checks")
    checks = _checks(setting)
    on_progress("round 1")
    campaign = setting.campaign

    def on_round(number: int) -> None:
        on_progress(f"round {number + 1}" if number < campaign.max_rounds else "bounds")

    findings = run_audit(setting, on_round=on_round)
    text = (
        audit_canaries(findings.text_coins, findings.text_scores, kind="text", claim=claim)
        if len(findings.text_coins)
        else None
    )
    return AuditReport(
        campaign_id=campaign.id,
        campaign_digest=source.campaign_digest,
        site=setting.site,
        rows=source.rows,
        source=source.name,
        claimed_epsilon=claim.epsilon,
        delta=claim.delta,
        rounds=campaign.max_rounds,
        steps=campaign.total_steps,
        confidence=claim.confidence,
        gradient=audit_canaries(
            findings.gradient_coins, findings.gradient_scores, kind="gradient", claim=claim
        ),
        text=text,
        membership=membership(findings.row_coins, findings.row_scores, confidence=claim.confidence),
        checks=checks,
        label=source.label or (None if setting.streams().is_private else SEEDED),
        code_version=version("fedloom"),
        made=datetime.now(UTC),
    )


def _checks(setting: Setting) -> tuple[WhiteBoxCheck, ...]:
    """Check what every kind of round trains; of rounds of two kinds the second are even."""
    first, *others = kinds_of_rounds(setting.campaign.adapter)
    found = list(_checks_of_round(setting, first))
    for number in others:
        found += [
            check.model_copy(update={"check": f"{check.check}_in_even_rounds"})
            for check in _checks_of_round(setting, number)
        ]
    open_for_round(setting.model, first)
    return tuple(found)


def _checks_of_round(setting: Setting, number: int) -> tuple[WhiteBoxCheck, ...]:
    open_for_round(setting.model, number)
    training, record = setting.campaign.training, setting.campaign.privacy.record
    limit = 1 if record is None else record.max_rows_per_unit
    subject = Subject(
        trainee=trainee_of(setting.model),
        columns=columns_of(setting.rows, max_rows_per_unit=limit),
        recipe=Recipe(
            training=training,
            divisor=training.divisor(setting.site),
            noise=setting.noise,
            probe=probe_columns(setting.rows),
        ),
    )
    return white_box_checks(subject, streams=setting.streams)
