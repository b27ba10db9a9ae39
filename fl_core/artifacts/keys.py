"""Every key of the store, as functions.

No other module spells a key, so a reader finds the whole layout here. Names of campaigns and
sites are checked by their documents (lower case, digits, ``-``), so a key cannot leave its prefix.
Whoever looks through a listing asks here what a key is: sites write below the rounds, so a key that
merely ends like another one may be a forgery.
"""

import re

LEDGER = "entries/"
ROSTERS = "rosters/"
FEDERATION = "ledger/clients/"
FEDERATION_IDENTITY = FEDERATION + "identity.json"
APPROVALS = "approvals/"
READ_OUTS = "readouts/"
DECISIONS = "decisions/"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
HEAD_FILE = "head.safetensors"
PAYLOAD = "payload.safetensors"
BUDGET = "budget.json"
MANIFEST = "manifest.json"
STATE = "state.json"
"""What one exchange leaves for the next, in the site's outbox; it is never uploaded."""

_CAMPAIGN = re.compile(r"campaigns/([a-z0-9-]+)/campaign\.json")
_SEQ = re.compile(r"([0-9]{6,9})\.json")
_BUDGET = re.compile(r"campaigns/([a-z0-9-]+)/rounds/([0-9]{4})/updates/([a-z0-9-]+)/budget\.json")
_OF_READ_OUT = re.compile(r"readouts/([0-9a-f]{64})/[0-9]{4}\.json")
_WITNESSED = re.compile(r"witness/[a-z0-9-]+/([a-z0-9-]+)/[A-Za-z0-9_-]+/[0-9]{6,9}\.json")
_FEDERATION = re.compile(r"campaigns/([a-z0-9-]+)/rounds/([0-9]{4})/federation\.json")
_EXCHANGE = re.compile(r"exchanges/[a-z0-9-]+/([0-9a-f]{64})/([0-9]{4})/")
_OF_ROUND = re.compile(r"campaigns/[a-z0-9-]+/rounds/([0-9]{4})/[a-z]+\.json")


def campaign(campaign_id: str) -> str:
    """Return the key of the frozen campaign."""
    return f"campaigns/{campaign_id}/campaign.json"


def campaign_id_of(key: str) -> str | None:
    """Return the id of the campaign that is frozen under ``key``, or None if none is."""
    match = _CAMPAIGN.fullmatch(key)
    return None if match is None else match[1]


def stop(campaign_id: str, run: str) -> str:
    """Return the key whose presence ends the site sessions of one campaign run."""
    return f"campaigns/{campaign_id}/stops/{run}.json"


def adapter(campaign_id: str, adapter_sha256: str) -> str:
    """Return the prefix of one global adapter in PEFT layout, with a trailing slash."""
    return f"campaigns/{campaign_id}/adapters/{adapter_sha256}/"


def round_prefix(campaign_id: str, round_number: int) -> str:
    """Return the prefix of one round, with a trailing slash; rounds count from 1."""
    return f"campaigns/{campaign_id}/rounds/{round_number:04d}/"


def rounds(campaign_id: str) -> str:
    """Return the prefix of all rounds of a campaign."""
    return f"campaigns/{campaign_id}/rounds/"


def round_of(key: str) -> int | None:
    """Return the round that a document of the coordinator belongs to.

    None for any other key, above all for what a site writes under a name of the coordinator's.
    """
    match = _OF_ROUND.fullmatch(key)
    return None if match is None else int(match[1])


def plan(campaign_id: str, round_number: int) -> str:
    """Return the key of the round's plan."""
    return round_prefix(campaign_id, round_number) + "plan.json"


def updates(campaign_id: str, round_number: int) -> str:
    """Return the prefix of all that sites write in one round, with a trailing slash."""
    return round_prefix(campaign_id, round_number) + "updates/"


def update_prefix(campaign_id: str, round_number: int, site: str) -> str:
    """Return the prefix under which one site writes in one round."""
    return round_prefix(campaign_id, round_number) + f"updates/{site}/"


def payload(campaign_id: str, round_number: int, site: str) -> str:
    """Return the key of a site's tensors."""
    return update_prefix(campaign_id, round_number, site) + PAYLOAD


def budget(campaign_id: str, round_number: int, site: str) -> str:
    """Return the key of a site's BudgetStatement."""
    return update_prefix(campaign_id, round_number, site) + BUDGET


def budget_of(key: str) -> tuple[str, int, str] | None:
    """Return campaign, round and site whose BudgetStatement lies under ``key``, or None."""
    match = _BUDGET.fullmatch(key)
    return None if match is None else (match[1], int(match[2]), match[3])


def manifest(campaign_id: str, round_number: int, site: str) -> str:
    """Return the key of a site's signed manifest; its presence means complete."""
    return update_prefix(campaign_id, round_number, site) + MANIFEST


def declined(campaign_id: str, round_number: int, site: str) -> str:
    """Return the key of a site's signed refusal."""
    return update_prefix(campaign_id, round_number, site) + "declined.json"


def quorum(campaign_id: str, round_number: int) -> str:
    """Return the key of when the round's quorum was first seen."""
    return round_prefix(campaign_id, round_number) + "quorum.json"


def collected(campaign_id: str, round_number: int) -> str:
    """Return the key of the frozen list of accepted updates."""
    return round_prefix(campaign_id, round_number) + "collected.json"


def charge(campaign_id: str, round_number: int) -> str:
    """Return the key of the round's charges."""
    return round_prefix(campaign_id, round_number) + "charge.json"


def federation_budget(campaign_id: str, round_number: int) -> str:
    """Return the key of the coordinator's statement of what whole sites have spent."""
    return round_prefix(campaign_id, round_number) + "federation.json"


def federation_budget_of(key: str) -> tuple[str, int] | None:
    """Return campaign and round whose statement of the coordinator lies under ``key``, or None."""
    match = _FEDERATION.fullmatch(key)
    return None if match is None else (match[1], int(match[2]))


def release(campaign_id: str, round_number: int) -> str:
    """Return the key of the released delta."""
    return round_prefix(campaign_id, round_number) + "release.safetensors"


def outcome(campaign_id: str, round_number: int) -> str:
    """Return the key of the round's outcome; its presence closes the round."""
    return round_prefix(campaign_id, round_number) + "outcome.json"


def evaluation(campaign_id: str, round_number: int) -> str:
    """Return the key of the release's metrics on the holdout."""
    return round_prefix(campaign_id, round_number) + "evaluation.json"


def logged(campaign_id: str, round_number: int) -> str:
    """Return the key that says the round is in MLflow."""
    return round_prefix(campaign_id, round_number) + "logged.json"


def audits(campaign_id: str) -> str:
    """Return the prefix of a campaign's audits on public rows."""
    return f"campaigns/{campaign_id}/audits/"


def audit(campaign_id: str, number: int) -> str:
    """Return the key of one audit; numbers count from 1."""
    return f"{audits(campaign_id)}{number:04d}.json"


def audit_number(campaign_id: str, key: str) -> int | None:
    """Return the number of the audit under ``key``, or None if it is none of the campaign's."""
    match = re.fullmatch(re.escape(audits(campaign_id)) + r"([0-9]{4})\.json", key)
    return None if match is None else int(match[1])


def roster(version: int) -> str:
    """Return the key of one numbered roster."""
    return f"{ROSTERS}{version:06d}.json"


def draft(text_sha256: str, name: str) -> str:
    """Return the key of an object made while a campaign's text is locked."""
    return f"drafts/{text_sha256}/{name}"


def ledger_entry(seq: int) -> str:
    """Return the key of a ledger's entry inside the ledger's own store; seq counts from 1."""
    return f"{LEDGER}{seq:06d}.json"


def witness(owner: str, dataset: str, unit: str) -> str:
    """Return the prefix of one ledger's copies at a witness, with a trailing slash.

    Args:
        owner: Site whose ledger it is.
        dataset: Opaque id of the protected data.
        unit: Unit of protection.
    """
    return f"witness/{owner}/{dataset}/{unit}/"


def witnessed_of(owner: str) -> str:
    """Return the prefix of all that a witness holds of one site."""
    return f"witness/{owner}/"


def witnessed_dataset(key: str) -> str | None:
    """Return the dataset that a witness' copy is about, or None if the key is no copy's."""
    match = _WITNESSED.fullmatch(key)
    return None if match is None else match[1]


def witnessed_entry(prefix: str, seq: int) -> str:
    """Return the key of one copy below a witness' prefix."""
    return f"{prefix}{seq:06d}.json"


def witnessed_seq(prefix: str, key: str) -> int | None:
    """Return the sequence number that a copy's key names, or None if it names none."""
    match = _SEQ.fullmatch(key.removeprefix(prefix))
    return None if match is None else int(match[1])


def approval(campaign_digest: str) -> str:
    """Return the key of a site's approval of one campaign, in the site's own store."""
    return f"{APPROVALS}{campaign_digest}.json"


def read_out(campaign_digest: str, round_number: int) -> str:
    """Return the key of what noise did to one round, in the site's own store."""
    return f"{READ_OUTS}{campaign_digest}/{round_number:04d}.json"


def decision(seq: int) -> str:
    """Return the key of one decision of a site's operator, in the site's own store."""
    return f"{DECISIONS}{seq:06d}.json"


def exchange(dataset: str, campaign_digest: str, round_number: int) -> str:
    """Return the prefix of one exchange inside a site's outbox, with a trailing slash."""
    return f"exchanges/{dataset}/{campaign_digest}/{round_number:04d}/"


def exchanges(dataset: str) -> str:
    """Return the prefix of all exchanges of a dataset inside a site's outbox."""
    return f"exchanges/{dataset}/"


def exchange_of(prefix: str) -> tuple[str, int] | None:
    """Return campaign digest and round of an exchange's prefix, or None if it is none."""
    match = _EXCHANGE.fullmatch(prefix)
    return None if match is None else (match[1], int(match[2]))


def gate_verdict(dataset_version: str, suite_sha256: str, task_sha256: str) -> str:
    """Return the key of a gate's verdict inside a site's own store, never the federation's."""
    return f"gates/{dataset_version}/{suite_sha256}-{task_sha256}.json"


def campaign_of_read_out(key: str) -> str | None:
    """Return the digest of the campaign that a read-out under ``key`` belongs to, or None."""
    match = _OF_READ_OUT.fullmatch(key)
    return None if match is None else match[1]
