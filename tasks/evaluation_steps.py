"""Evaluation of a release on the coordinator's public holdout, on the evaluation worker.

Model and holdout stay in memory between rounds; a round then costs one pass over the
holdout.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from fl_core.artifacts import keys
from fl_core.artifacts.content_hash import file_sha256
from fl_core.artifacts.documents import read_document, write_document
from fl_core.campaign.campaign import Campaign
from fl_core.errors import CampaignError, RoundError
from fl_core.rounds.adapters import read_adapter, state_of
from fl_core.rounds.plan import read_assembly, read_outcome
from fl_core.updates.records import Evaluation
from tasks.locking import Shelves, holdout_path, shelves_of
from tasks.settings import open_store, read_folders, read_settings

if TYPE_CHECKING:
    from fl_core.data.prompts import EncodedRows
    from fl_core.models.peft_state import AdaptedModel


@dataclass
class WarmEvaluator:
    """Model and encoded holdout of the last campaign, kept in memory between rounds."""

    loaded: dict[str, tuple["AdaptedModel", "EncodedRows"]] = field(default_factory=dict)


WARM = WarmEvaluator()


@task(name="evaluate-adapter", cache_policy=NO_CACHE, persist_result=False)
def evaluate_adapter(campaign_id: str, round_number: int) -> Evaluation:
    """Evaluate one release and write `evaluation.json`; a second call returns what is stored.

    Raises:
        RoundError: The round has no release.
        CampaignError: The holdout is absent or is not the one that was frozen.
    """
    from fl_core.evaluation.evaluate import evaluate
    from fl_core.models.peft_state import load_state

    store = open_store(read_settings())
    campaign = read_assembly(store, campaign_id).campaign
    outcome = read_outcome(store, campaign_id, round_number)
    if outcome is None or outcome.result_hash is None:
        raise RoundError(f"round {round_number} of campaign {campaign_id!r} has no release")
    key = keys.evaluation(campaign_id, round_number)
    if key in store.list(key):
        return read_document(store, key, Evaluation)
    model, rows = _warm(campaign, shelves_of(read_folders()))
    load_state(model, state_of(read_adapter(store, campaign_id, outcome.result_hash), campaign))
    evaluation = evaluate(
        model,
        rows,
        campaign.task,
        adapter_sha256=outcome.result_hash,
        holdout_sha256=str(campaign.evaluation.holdout.sha256),
    )
    return write_document(store, key, evaluation)


def _warm(campaign: Campaign, shelves: Shelves) -> tuple["AdaptedModel", "EncodedRows"]:
    from fl_core.adapters.peft_layout import initial_state
    from fl_core.data.prompts import encode_rows
    from fl_core.models.loading import load_base, resolve_base
    from fl_core.models.peft_state import attach
    from tasks.site_rows import read_rows

    if campaign.digest not in WARM.loaded:
        path = holdout_path(campaign.evaluation.holdout.name, shelves)
        if file_sha256(path) != campaign.evaluation.holdout.sha256:
            raise CampaignError(f"{path} is not the holdout that campaign {campaign.id!r} froze")
        folder = resolve_base(campaign.base_model.name, folders=shelves.base_models)
        base = load_base(folder, campaign.task, sha256=campaign.base_model.sha256)
        model = attach(
            base, campaign.adapter, campaign.task, initial_state(campaign.adapter, campaign.task)
        )
        WARM.loaded.clear()
        WARM.loaded[campaign.digest] = (
            model,
            encode_rows(read_rows(path), campaign.task, base.tokenizer),
        )
    return WARM.loaded[campaign.digest]
