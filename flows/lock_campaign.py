"""Lock a campaign's text on the worker that has the base model and the holdout.

Names become content hashes there; the result comes back through the store, because a Prefect
result is believed from nobody.
"""

from prefect import flow

from tasks.lock_step import lock_text


@flow(name="lock-campaign", flow_run_name="lock-{text_sha256:.12}", persist_result=False)
def lock_campaign(text_sha256: str, attempt: str) -> None:
    """Lock the text that lies in the store under its hash, and write the result beside it.

    Args:
        text_sha256: Hash of the text of a campaign file.
        attempt: Name of this try; its result lies under that name.
    """
    lock_text(text_sha256, attempt)
