"""What one round says in MLflow: names and values, no calls.

Everything here is a pure function of stored documents, so that logging a round again gives the
same values, and MLflow stores a metric point of the same key, step, time and value once. An
epsilon that does not exist is left out: MLflow stores infinity as 1.8e308, which draws as a number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version

from fl_core.campaign.campaign import Campaign
from fl_core.rounds.documents import Outcome
from fl_core.updates.records import BudgetStatement, Evaluation, Spending

# mlflow 3.17 holds 6000 characters in a parameter and 8000 in a tag.
_LONGEST = 5000
_LONGEST_REASON = 500


@dataclass(frozen=True)
class RoundLog:
    """All that is logged of one round.

    Attributes:
        campaign: The frozen campaign.
        outcome: How the round ended; ``closed`` is the time of every metric point.
        evaluation: The release on the holdout; None if not released or not evaluated.
        budgets: Latest statement of every site that states one, by site.
        federation: What whole sites have spent under the coordinator's noise; None without it.
        adapter_files: Files of the released adapter by name; None makes no model version.
        adapter_uri: Where the adapter lies in the store.
        bytes_up: Bytes that the sites sent in this round.
        bytes_down: Bytes that the sites were sent in this round.
        statement_json: Privacy statement of the release, canonical JSON; None if there is none.
        statement_markdown: The same for people.
        statement_html: The same as a page.
        plan_json: What the campaign was going to cost, with its first round; else None.
        plan_png: The same as a picture.
        code_version: fedloom at the coordinator when the round was planned.
    """

    campaign: Campaign
    outcome: Outcome
    evaluation: Evaluation | None
    budgets: Mapping[str, BudgetStatement]
    adapter_files: Mapping[str, bytes] | None
    adapter_uri: str
    bytes_up: int
    bytes_down: int
    statement_json: bytes | None
    statement_markdown: str | None
    statement_html: str | None = None
    plan_json: bytes | None = None
    plan_png: bytes | None = None
    federation: BudgetStatement | None = None
    code_version: str = field(default_factory=lambda: version("fedloom"))

    @property
    def key(self) -> str:
        """Value of the tag ``fedloom.key`` for this round's run, model and version."""
        return f"{self.campaign.id}/r{self.outcome.round}"

    @property
    def worst(self) -> BudgetStatement | None:
        """Statement with the largest epsilon; None under NoPrivacy or when no site states one."""
        if self.campaign.privacy.none is not None:
            return None
        return max(self.budgets.values(), key=lambda b: (b.epsilon, b.site), default=None)

    @property
    def worst_whole(self) -> Spending | None:
        """What the worst whole site has spent; None where nobody states it."""
        stated = [budget.client for budget in self.budgets.values() if budget.client is not None]
        found: list[Spending] = [*stated]
        if self.federation is not None:
            found.append(self.federation)
        return max(found, key=lambda spent: spent.epsilon, default=None)


def milliseconds(moment: datetime) -> int:
    """Return MLflow's time of a moment: milliseconds since 1970, UTC."""
    return round(moment.timestamp() * 1000)


def round_metrics(log: RoundLog) -> dict[str, float]:
    """Return the metrics of one round by name; the step of all of them is the round."""
    outcome, evaluation = log.outcome, log.evaluation
    metrics: dict[str, float] = {}
    # A run's page lists them in this order.
    if evaluation is not None:
        metrics["eval/accuracy"] = evaluation.accuracy
        if evaluation.macro_f1 is not None:
            metrics["eval/macro_f1"] = evaluation.macro_f1
        if evaluation.loss is not None:
            metrics["eval/loss"] = evaluation.loss
    metrics["dp/enabled"] = float(log.campaign.privacy.none is None)
    if log.worst is not None:
        left = min(b.epsilon_limit - b.epsilon for b in log.budgets.values())
        metrics["dp/epsilon"] = log.worst.epsilon
        metrics["dp/epsilon_left"] = round(left, 6)  # 3.07, not 3.0700000000000003
        metrics |= {f"site/{name}/epsilon": b.epsilon for name, b in sorted(log.budgets.items())}
    if log.worst_whole is not None:
        whole = log.worst_whole
        metrics["dp/epsilon_client_zero_out"] = whole.epsilon
        metrics["dp/epsilon_client_left"] = round(whole.epsilon_limit - whole.epsilon, 6)
    metrics["round/seconds"] = (outcome.closed - outcome.opened).total_seconds()
    metrics["bytes/up"] = log.bytes_up
    metrics["bytes/down"] = log.bytes_down
    return metrics


def frontier_step(log: RoundLog) -> int | None:
    """Return 1000 x epsilon of the worst site: the step of ``frontier/accuracy``, or None.

    MLflow draws a metric against its step, so this makes accuracy against epsilon a line chart.
    """
    if log.worst is None or log.evaluation is None:
        return None
    return int(log.worst.epsilon * 1000)


def campaign_params(campaign: Campaign) -> dict[str, str]:
    """Return the numbers that a campaign fixed before its first round."""
    record = campaign.privacy.record
    params: dict[str, object] = {
        "base_model": campaign.base_model.name,
        "sites": joined(campaign.sites),
        "max_rounds": campaign.max_rounds,
        "task": campaign.task.kind,
        "adapter.rule": campaign.adapter.rule,
        "adapter.rank": campaign.adapter.rank,
        "training.local_steps": campaign.training.local_steps,
        "training.learning_rate": campaign.training.learning_rate,
        "aggregation": campaign.aggregation.kind,
        "guarantee": guarantee(campaign),
    }
    if record is not None:
        params |= {
            "privacy.epsilon": record.epsilon,
            "privacy.delta": record.delta,
            "privacy.clip_norm": record.clip_norm,
            "privacy.noise_multiplier": record.noise_multiplier,
            "privacy.sampling_rate": record.sampling_rate,
        }
    if campaign.privacy.client is not None:
        client = campaign.privacy.client
        params |= {
            "privacy.client.epsilon": client.epsilon,
            "privacy.client.delta": client.delta,
            "privacy.client.clip_norm": client.clip_norm,
            "privacy.client.noise_multiplier": client.noise_multiplier,
            "privacy.client.mechanism": client.mechanism,
        }
    return {name: str(value) for name, value in params.items()}


def round_params(log: RoundLog) -> dict[str, str]:
    """Return what was fixed before the round: MLflow refuses a second value of a parameter."""
    return {
        "round": str(log.outcome.round),
        "campaign": log.campaign.id,
        "campaign_digest": log.campaign.digest,
        "base_adapter_sha256": log.outcome.base_hash,
    }


def outcome_tags(log: RoundLog) -> dict[str, str]:
    """Return how the round ended, for its run."""
    tags = {
        "round": str(log.outcome.round),
        "outcome": log.outcome.status,
        "contributors": joined(log.outcome.contributors),
        "code_version": log.code_version,
        "mlflow.note.content": summary(log),
    }
    if log.outcome.reason:
        tags["reason"] = log.outcome.reason[:_LONGEST_REASON]
    return tags


def version_tags(log: RoundLog, *, parent_version: str | None) -> dict[str, str]:
    """Return what a model version says of its origin and its guarantee.

    Args:
        log: A released round.
        parent_version: Version that the round started from; None where it started from the
            untrained adapter, or from one that is not in MLflow.
    """
    campaign, outcome = log.campaign, log.outcome
    tags: dict[str, str] = {}
    # MLflow shows tags in this order, so what a person looks for comes first.
    if log.worst is not None:
        tags["epsilon"] = f"{log.worst.epsilon:.4g}"
        tags["delta"] = f"{log.worst.delta:g}"
        tags["epsilon_per_site"] = joined(
            f"{name} {b.epsilon:.4g} (delta {b.delta:g}, {b.accountant})"
            for name, b in sorted(log.budgets.items())
        )
    if log.worst_whole is not None:
        tags["epsilon_client"] = f"{log.worst_whole.epsilon:.4g}"
        tags["delta_client"] = f"{log.worst_whole.delta:g}"
    return tags | {
        "guarantee": guarantee(campaign),
        "round": str(outcome.round),
        "parent_version": parent_version or "none",
        "contributors": joined(outcome.contributors),
        "base_sha256": str(campaign.base_model.sha256),
        "adapter_sha256": str(outcome.result_hash),
        "gate_suite_sha256": str(campaign.gate.sha256),
        "store_uri": log.adapter_uri,
        "code_version": log.code_version,
        "closed": outcome.closed.isoformat(),
    }


def guarantee(campaign: Campaign) -> str:
    """Say in one line what the campaign promises: unit, limit and neighbouring relation."""
    record, none = campaign.privacy.record, campaign.privacy.none
    if none is not None:
        return f"none: {none.reason}"[:_LONGEST_REASON]
    stated = []
    if record is not None:
        stated.append(
            f"record level: epsilon <= {record.epsilon:g} at delta {record.delta:g}, "
            f"unit {record.unit}, add/remove, worst site"
        )
    if campaign.privacy.client is not None:
        client = campaign.privacy.client
        stated.append(
            f"client level: epsilon <= {client.epsilon:g} at delta {client.delta:g}, zero-out"
        )
    return "; ".join(stated)


def summary(log: RoundLog) -> str:
    """Say the round in one line: the only readable column of MLflow's table of versions."""
    outcome, evaluation = log.outcome, log.evaluation
    if outcome.status != "released":
        return f"Round {outcome.round}: {outcome.status}, {outcome.reason}"[:_LONGEST_REASON]
    parts = []
    if evaluation is not None:
        parts.append(f"accuracy {evaluation.accuracy:.3f}")
    if log.campaign.privacy.none is not None:
        parts.append("no privacy guarantee")
    elif log.worst is not None:
        parts.append(f"epsilon {log.worst.epsilon:.2f} at delta {log.worst.delta:g} (worst site)")
    elif log.worst_whole is None:
        parts.append("epsilon not stated by any site")
    if log.worst_whole is not None:
        whole = log.worst_whole
        parts.append(f"epsilon {whole.epsilon:.2f} at delta {whole.delta:g} (whole site)")
    if evaluation is not None and evaluation.macro_f1 is not None:
        parts.append(f"macro-F1 {evaluation.macro_f1:.3f}")
    return f"Round {outcome.round}: {', '.join(parts)}"


def joined(names: Iterable[str]) -> str:
    """Return names in one line, as many as MLflow can hold, and how many were left out."""
    rest = list(names)
    shown: list[str] = []
    length = 0
    while rest and length + len(rest[0]) + 2 <= _LONGEST:
        length += len(rest[0]) + 2
        shown.append(rest.pop(0))
    return ", ".join(shown) + (f" and {len(rest)} more" if rest else "")
