"""One release on the public holdout; runs on the worker that has the base model.

A flow of its own, so that the coordinator never loads torch and a long evaluation holds up no
round of another campaign.
"""

from prefect import flow

from tasks.evaluation_steps import evaluate_adapter


@flow(
    name="evaluate-release",
    flow_run_name="{campaign_id}-round-{round_number:04d}",
    persist_result=False,
)
def evaluate_release(campaign_id: str, round_number: int) -> None:
    """Evaluate one release on the campaign's holdout and write the result to the store.

    Args:
        campaign_id: The frozen campaign.
        round_number: A round that was released.
    """
    evaluate_adapter(campaign_id, round_number)


def preload() -> None:
    """Import what an evaluation needs, so that the first one does not wait for it."""
    from fl_core.evaluation import evaluate  # noqa: F401  imported for its time
    from fl_core.models import peft_state  # noqa: F401  imported for its time
