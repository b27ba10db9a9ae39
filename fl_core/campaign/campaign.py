"""The campaign: stated once, frozen, named by its digest.

Sites approve the digest and nothing else, so whatever can change what is trained or promised is
a field here, and a field that is None is left out of the hash: old digests stay what they were.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_core.artifacts.documents import Document, document_sha256
from fl_core.campaign.components import Component, ComponentSpec
from fl_core.campaign.guarantees import Privacy
from fl_core.campaign.specs import (
    AdapterSpec,
    CohortRule,
    Count,
    EvaluationSpec,
    Name,
    Named,
    TaskSpec,
    TrainingSpec,
)
from fl_core.errors import CampaignError


class Campaign(Document):
    """What is to be trained, by which named sites, under which guarantee.

    Attributes:
        id: Name in the store and in both UIs.
        model: Registered model that releases become versions of; the campaign's id if left out.
        parent: Id of the campaign this one goes on from, or None.
        base_model: Installed package, folder, or hub id with ``@revision``.
        sites: Names of all sites that may take part.
        max_rounds: Rounds that the guarantee is calibrated to; more is a new campaign.
        privacy: No default: every campaign states it.
        weights: ``uniform``; ``declared`` sizes of the roster; or ``noise_aware``: declared size
            times the site's public divisor, which gives little weight to what is mostly noise.
        gate: Expectation suite that every site runs on its rows.
    """

    id: Name
    model: Name | None = None
    parent: Name | None = None
    base_model: Named
    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    max_rounds: Annotated[int, Field(ge=1, le=9999)]
    task: TaskSpec
    adapter: AdapterSpec
    training: TrainingSpec
    privacy: Annotated[
        Privacy, Field(description="state [privacy.record], or [privacy.none] with a reason")
    ]
    cohort: CohortRule = CohortRule()
    aggregation: Component = ComponentSpec(kind="mean")
    weights: Literal["uniform", "declared", "noise_aware"] = "uniform"
    codec: Component = ComponentSpec(kind="float32")
    gate: Named
    evaluation: EvaluationSpec

    @model_validator(mode="after")
    def _sites_differ(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            msg = "sites must differ from each other"
            raise ValueError(msg)
        return self

    @property
    def total_steps(self) -> Count:
        """Local steps of one site if it takes part in every round."""
        return self.max_rounds * self.training.local_steps

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.model or self.id

    @property
    def unlocked_fields(self) -> list[str]:
        """Fields that only locking can fill and that are still empty."""
        record, client = self.privacy.record, self.privacy.client
        unlocked = {
            "base_model.sha256": self.base_model.sha256 is None,
            "gate.sha256": self.gate.sha256 is None,
            "evaluation.holdout.sha256": self.evaluation.holdout.sha256 is None,
            "adapter.modules": self.adapter.modules is None,
            "adapter.head_inputs": (
                self.task.kind == "classification" and self.adapter.head_inputs is None
            ),
            "privacy.record.noise_multiplier": (
                record is not None and record.noise_multiplier is None
            ),
            "privacy.client.noise_multiplier": (
                client is not None and client.noise_multiplier is None
            ),
        }
        return [name for name, is_open in unlocked.items() if is_open]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON.

        Raises:
            CampaignError: The campaign is not locked, so it names no fixed content.
        """
        if self.unlocked_fields:
            raise CampaignError(
                f"campaign {self.id!r} is not locked: {', '.join(self.unlocked_fields)} open",
                hint="run `fedloom check CAMPAIGN.toml --lock`",
            )
        return document_sha256(self)
