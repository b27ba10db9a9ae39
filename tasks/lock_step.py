"""The step that locks a campaign's text; result or complaint go to the store, never by a state."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, from_bytes, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.loading import parse_campaign
from fl_core.errors import CampaignError, FedloomError, TrainingError
from tasks.locking import lock_campaign, shelves_of
from tasks.settings import open_store, read_folders, read_settings

TEXT = "campaign.toml"


class Locked(Document):
    """What locking came to: a campaign, or one complaint with its remedy."""

    campaign: Campaign | None = None
    complaint: str = ""
    hint: str = ""


@task(name="lock-text", cache_policy=NO_CACHE, persist_result=False)
def lock_text(text_sha256: str, attempt: str) -> None:
    """Lock the text stored under its hash; a complaint about it is a result, not a failure."""
    store = open_store(read_settings())
    text = store.get(keys.draft(text_sha256, TEXT)).decode()
    try:
        campaign = parse_campaign(text, source="campaign text")
        locked = Locked(campaign=lock_campaign(campaign, shelves_of(read_folders())))
    except (CampaignError, TrainingError) as error:
        locked = Locked(complaint=str(error), hint=error.hint)
    store.put_once(keys.draft(text_sha256, f"{attempt}.json"), to_bytes(locked))


def put_text(store: ObjectStore, text: str, text_sha256: str) -> None:
    """Put a campaign's text where the locking worker reads it."""
    store.put_once(keys.draft(text_sha256, TEXT), text.encode())


def read_locked(store: ObjectStore, text_sha256: str, attempt: str) -> Campaign:
    """Return the locked campaign of one attempt.

    Raises:
        CampaignError: The text is no campaign, or names what is not there.
        FedloomError: The attempt left no result.
    """
    key = keys.draft(text_sha256, f"{attempt}.json")
    if key not in store.list(key):
        raise FedloomError(
            "the evaluation worker did not lock the campaign",
            hint="see that `fedloom evaluation start` runs, and read its log",
        )
    locked = from_bytes(Locked, store.get(key), what=key)
    if locked.campaign is None:
        raise CampaignError(locked.complaint, hint=locked.hint)
    return locked.campaign
