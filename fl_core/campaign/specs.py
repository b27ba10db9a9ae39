"""The sections of a campaign.

What people write is short: names, no hashes. The fields that only locking can know (content
hashes, module shapes) are None until then, and a campaign with one of them is not frozen.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.components import Component, ComponentSpec

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


def _one_line(text: str) -> str:
    if not text.isprintable():
        msg = "must be one line without control characters, which can repaint a terminal"
        raise ValueError(msg)
    return text


Line = Annotated[str, AfterValidator(_one_line)]
"""Text that a person reads before consenting, so that it can show nothing but itself."""


class NamedContent(Document):
    """A name that people use, and the content it stood for when the campaign was locked.

    Attributes:
        name: What people write.
        sha256: Content hash; None before locking.
    """

    name: Annotated[Line, Field(min_length=1, max_length=200)]
    sha256: Sha256 | None = None


def _from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[NamedContent, BeforeValidator(_from_name)]


class TaskSpec(Document):
    """What the model learns, and which columns of a site's rows hold it.

    Attributes:
        kind: ``classification`` (encoder and head) or ``causal_lm`` (answers given prompts).
        labels: Class names in the order of the head's outputs; classification only.
        text: Column with the text; the prompt of a causal LM.
        target: Column with the label, or with the answer of a causal LM.
        max_tokens: Every text is cut and padded to this public length.
    """

    kind: Literal["classification", "causal_lm"] = "classification"
    labels: tuple[str, ...] = ()
    text: str = "text"
    target: str = "label"
    max_tokens: Annotated[int, Field(ge=2, le=4096)] = 64

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if self.kind == "classification" and len(self.labels) < 2:  # noqa: PLR2004
            msg = "classification needs at least two labels"
            raise ValueError(msg)
        if self.kind == "causal_lm" and self.labels:
            msg = "causal_lm takes no labels"
            raise ValueError(msg)
        if len(set(self.labels)) != len(self.labels):
            msg = "labels must differ from each other"
            raise ValueError(msg)
        return self


class AdapterSpec(Document):
    """The LoRA adapter that is trained.

    Attributes:
        rule: ``lora`` trains A and B; ``ffa_lora`` freezes A to the same public tensors at every
            site and trains B (Sun et al. 2024), so that the mean of products is exact; ``rolora``
            trains B in odd and A in even rounds, the other frozen (Chen et al. 2024); ``head``
            trains the head alone and leaves the pairs at zero.
        rank: Rank r of every pair.
        alpha: The weight change is ``alpha / rank * B @ A``.
        targets: Last parts of the names of the linear modules that get a pair.
        init_seed: Public seed of the first A; no row has any influence on it.
        modules: ``(d_out, d_in)`` of every target module by full name; None before locking.
        head_inputs: Width that the head reads; None before locking and for a causal LM.
    """

    rule: Literal["lora", "ffa_lora", "rolora", "head"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Positive = 16.0
    targets: tuple[str, ...]
    init_seed: int = 0
    modules: dict[str, tuple[int, int]] | None = None
    head_inputs: int | None = None


class TrainingSpec(Document):
    """Local training: public numbers, the same in every round (SOUNDNESS, rule 5).

    Attributes:
        local_steps: Optimizer steps per round at every site.
        batch_size: Public divisor of the gradient sum; one number, or one per site. Never the
            realised batch, never ``rate x rows``: the number of rows stays private.
        learning_rate: Step size.
        optimizer: ``sgd`` or ``adam``; starts afresh every round.
        micro_batch: Rows per forward pass; a fixed shape, so that memory does not follow the data.
    """

    local_steps: Count
    batch_size: Positive | dict[Name, Positive]
    learning_rate: Positive
    optimizer: Literal["sgd", "adam"] = "sgd"
    micro_batch: Annotated[int, Field(ge=1, le=1024)] = 16

    def divisor(self, site: str) -> float:
        """Return the public batch size of one site."""
        return self.batch_size[site] if isinstance(self.batch_size, dict) else self.batch_size


class CohortRule(Document):
    """Who is asked in a round, and when the round goes on without the rest.

    A round closes when all have answered, at its deadline, or earlier where ``grace_s`` or
    ``over_select`` say so. It is released if ``quorum`` *and* ``quorum_share`` are reached.

    Attributes:
        selection: Part of the registry of cohorts.
        quorum: Smallest number of accepted updates, also once fewer sites can be asked; None means
            more than half of those that the selection names.
        quorum_share: Smallest share of the cohort's declared examples that the accepted sites must
            hold together; every site then needs a declared size. None asks for none.
        over_select: Sites asked besides the selection's; the round closes once as many updates as
            the selection names are accepted. None asks nobody besides.
        grace_s: Seconds that the rest have once the quorum is reached; None is until the deadline.
        deadline_s: Seconds from the plan to the deadline.
        upload_after_s: Seconds from the plan to the uploads of all sites, so that the time of an
            upload says nothing about rows (SOUNDNESS, rule 19); None uploads when ready.
    """

    selection: Component = ComponentSpec(kind="everyone")
    quorum: Count | None = None
    quorum_share: Annotated[float, Field(gt=0, le=1)] | None = None
    over_select: Count | None = None
    grace_s: Annotated[float, Field(ge=0)] | None = None
    deadline_s: Positive = 600.0
    upload_after_s: Positive | None = None

    @model_validator(mode="after")
    def _uploads_before_deadline(self) -> Self:
        if self.upload_after_s is not None and self.upload_after_s >= self.deadline_s:
            msg = "upload_after_s must lie before deadline_s, with time left for the upload itself"
            raise ValueError(msg)
        if self.grace_s is not None and self.grace_s >= self.deadline_s:
            msg = "grace_s must be shorter than deadline_s, which ends the round in any case"
            raise ValueError(msg)
        return self


class EvaluationSpec(Document):
    """The coordinator's holdout of declared public units (SOUNDNESS, rule 22).

    Attributes:
        holdout: Name of a file of public rows that the evaluation worker holds.
    """

    holdout: Named
