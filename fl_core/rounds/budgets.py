"""The latest budget statement of every site in the store, over all campaigns, signatures checked.

A statement is a site's word: it counts only if the key of the roster that its round names signed
it for just that campaign and round, so that nobody can put an older or another one in its place.
Of a site's statements the one that covers most ledger entries is the latest, whatever the campaign.
"""

import logging
from collections.abc import Iterable
from functools import lru_cache

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.roster import read_roster
from fl_core.errors import CampaignError, ObjectCorrupt, ObjectMissing, UpdateRejected
from fl_core.privacy.federation import verify_federation_statement
from fl_core.privacy.planning import Stated
from fl_core.rounds.collection import MAX_DOCUMENT_BYTES
from fl_core.rounds.documents import RoundPlan
from fl_core.updates.records import BudgetStatement
from fl_core.updates.signing import verify_signature

log = logging.getLogger(__name__)


def latest_budgets(store: ObjectStore, sites: Iterable[str]) -> dict[str, Stated]:
    """Return what the store holds of every site's budget, over all campaigns."""
    newest: dict[tuple[str, str], int] = {}
    wanted = set(sites)
    for key in store.list("campaigns/"):
        named = keys.budget_of(key)
        if named is not None and named[2] in wanted:
            campaign_id, number, site = named
            newest[campaign_id, site] = max(number, newest.get((campaign_id, site), 0))
    reader = BudgetReader(store)
    found: dict[str, list[Stated]] = {site: [] for site in sorted(wanted)}
    for (campaign_id, site), number in sorted(newest.items()):
        found[site].append(reader.read(campaign_id, round_number=number, site=site))
    return {site: _latest(all_of_it) for site, all_of_it in found.items()}


def latest_federation(store: ObjectStore) -> BudgetStatement | None:
    """Return what whole sites have spent, over all campaigns, as the coordinator last signed it.

    None where no campaign had noise that the coordinator adds.
    """
    found: list[BudgetStatement] = []
    reader = BudgetReader(store)
    newest: dict[str, int] = {}
    for key in store.list("campaigns/"):
        named = keys.federation_budget_of(key)
        if named is not None:
            newest[named[0]] = max(named[1], newest.get(named[0], 0))
    for campaign_id, number in sorted(newest.items()):
        statement = reader.read_federation(campaign_id, round_number=number)
        if statement is not None:
            found.append(statement)
    return max(found, key=lambda s: s.ledger_seq, default=None)


def budgets_until(
    store: ObjectStore, campaign_id: str, *, round_number: int
) -> dict[str, BudgetStatement]:
    """Return what each site last stated in a campaign up to a round; who stated nothing is absent.

    Statements whose signature does not hold are passed over, as if they were not there.
    """
    stated = stated_until(store, campaign_id, round_number=round_number)
    return {s: each.statement for s, each in stated.items() if each.statement is not None}


def stated_until(store: ObjectStore, campaign_id: str, *, round_number: int) -> dict[str, Stated]:
    """Return the same by site, with the complaint where the last statement is none."""
    newest: dict[str, int] = {}
    for key in store.list(keys.rounds(campaign_id)):
        named = keys.budget_of(key)
        if named is not None and named[1] <= round_number:
            newest[named[2]] = max(named[1], newest.get(named[2], 0))
    reader = BudgetReader(store)
    return {
        site: reader.read(campaign_id, round_number=number, site=site)
        for site, number in sorted(newest.items())
    }


class BudgetReader:
    """Reads statements with their signatures checked; campaigns and plans are read once each."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._digest = lru_cache(maxsize=None)(self._read_digest)
        self._plan = lru_cache(maxsize=None)(self._read_plan)

    def read(self, campaign_id: str, *, round_number: int, site: str) -> Stated:
        """Return one statement, or why it is not one."""
        try:
            statement = read_document(
                self._store,
                keys.budget(campaign_id, round_number, site),
                BudgetStatement,
                max_bytes=MAX_DOCUMENT_BYTES,
            )
            plan = self._plan(campaign_id, round_number)
            digest = self._digest(campaign_id)
            entry = read_roster(self._store, plan.roster_version).entry(site)
        except ObjectMissing:
            return Stated()
        except (ObjectCorrupt, CampaignError) as error:
            return Stated(complaint=f"{error}")
        stated = (statement.campaign_digest, statement.round, statement.site)
        if stated != (digest, round_number, site):
            return Stated(complaint="the statement under its name is about something else")
        if entry is None or not verify_signature(statement, entry.signing_key):
            return Stated(complaint="the statement under its name is not signed by its key")
        return Stated(statement)

    def read_federation(self, campaign_id: str, *, round_number: int) -> BudgetStatement | None:
        """Return the coordinator's own statement at a round; None if it does not hold."""
        key = keys.federation_budget(campaign_id, round_number)
        try:
            statement = read_document(
                self._store, key, BudgetStatement, max_bytes=MAX_DOCUMENT_BYTES
            )
            verify_federation_statement(
                statement,
                self._store,
                campaign_digest=self._digest(campaign_id),
                round_number=round_number,
            )
        except (ObjectMissing, ObjectCorrupt, CampaignError, UpdateRejected) as error:
            log.warning("federation's budget not used key=%s why=%s", key, error)
            return None
        return statement

    def _read_digest(self, campaign_id: str) -> str:
        return read_document(self._store, keys.campaign(campaign_id), Campaign).digest

    def _read_plan(self, campaign_id: str, round_number: int) -> RoundPlan:
        return read_document(self._store, keys.plan(campaign_id, round_number), RoundPlan)


def _latest(found: list[Stated]) -> Stated:
    by_dataset: dict[str, BudgetStatement] = {}
    for statement in (each.statement for each in found if each.statement is not None):
        known = by_dataset.get(statement.dataset)
        if known is None or known.ledger_seq < statement.ledger_seq:
            by_dataset[statement.dataset] = statement
    if by_dataset:
        # Which dataset a campaign will be charged to is the site's affair: the fuller one counts.
        fullest = max(by_dataset.values(), key=lambda s: (s.epsilon / s.epsilon_limit, s.dataset))
        return Stated(fullest)
    return next((each for each in found if each.complaint), Stated())


def closed_rounds(store: ObjectStore, campaign_id: str) -> int:
    """Return the number of the last round that is closed; 0 before any."""
    closed = [
        number
        for key in store.list(keys.rounds(campaign_id))
        if key.endswith("/outcome.json") and (number := keys.round_of(key)) is not None
    ]
    return max(closed, default=0)
