"""Which campaigns are a site's, and whether a round takes an update from it now.

The same questions are asked again at collection, which decides. They are asked here too so that
nothing is kept of a site that is not asked: no object beside a round, none after its end, none
that is longer than an honest update. Campaigns, plans and rosters never change once they are
there, so each is read once.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore, exists
from fl_core.campaign.campaign import Campaign
from fl_core.errors import (
    CampaignError,
    FedloomError,
    ObjectCorrupt,
    ObjectMissing,
    RoundClosed,
    UpdateRejected,
)

if TYPE_CHECKING:
    from fl_core.assembly import Assembly
    from fl_core.rounds.documents import RoundPlan

T = TypeVar("T")
_KEPT = 256

log = logging.getLogger(__name__)


class OpenRounds:
    """What is known of the rounds of a store.

    Args:
        store: The campaigns' store.
        now: The time, UTC.
    """

    def __init__(
        self, store: ObjectStore, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._now = now
        self._known: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def concerns(self, key: str, *, site: str) -> bool:
        """Say whether an object is of no campaign, or of one that names the site.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        folder, _, rest = key.partition("/")
        if folder != "campaigns":
            return True
        campaign_id = rest.partition("/")[0]
        frozen = keys.campaign(campaign_id)
        is_new = (frozen,) not in self._known
        try:
            campaign = self._once((frozen,), lambda: read_document(self._store, frozen, Campaign))
        except ObjectMissing:
            return False
        except ObjectCorrupt as error:
            log.warning("campaign cannot be read key=%s error=%s", frozen, error)
            return False
        if is_new:
            # The first upload is judged by its parts; that takes seconds of imports, and the site
            # that has just read its campaign trains meanwhile.
            threading.Thread(target=self._prepare, args=(campaign_id,), daemon=True).start()
        return site in campaign.sites

    def _prepare(self, campaign_id: str) -> None:
        try:
            self._assembly(campaign_id)
        except FedloomError as error:
            log.warning("campaign cannot be assembled id=%s error=%s", campaign_id, error)

    def longest_payload(self, campaign_id: str, round_number: int, *, site: str) -> int:
        """Return how many bytes a site's payload may have, if the round takes one from it now.

        Raises:
            RoundClosed: There is no such plan, the site is not in its cohort, or it is over.
            StoreUnavailable: The store does not answer.
        """
        from fl_core.campaign.roster import read_roster
        from fl_core.rounds.collection import expected_of

        plan = self._plan(campaign_id, round_number)
        if plan is None or site not in plan.cohort:
            # One answer for both: who is asked is not for others to know.
            raise RoundClosed(f"no round {round_number} of {campaign_id!r} asks site {site!r}")
        if self._now() > plan.deadline or exists(
            self._store, keys.collected(campaign_id, round_number)
        ):
            raise RoundClosed(f"round {round_number} of {campaign_id!r} takes no more answers")
        version = plan.roster_version
        roster = self._once(("roster", str(version)), lambda: read_roster(self._store, version))
        try:
            expected = expected_of(self._assembly(campaign_id), plan, site=site, roster=roster)
        except (CampaignError, UpdateRejected) as error:
            raise RoundClosed(f"round {round_number} of {campaign_id!r}: {error}") from error
        return expected.max_payload_bytes

    def _plan(self, campaign_id: str, round_number: int) -> "RoundPlan | None":
        from fl_core.rounds.documents import RoundPlan

        key = keys.plan(campaign_id, round_number)
        try:
            return self._once((key,), lambda: read_document(self._store, key, RoundPlan))
        except ObjectMissing:
            return None

    def _assembly(self, campaign_id: str) -> "Assembly":
        from fl_core.rounds.plan import read_assembly

        return self._once(("parts", campaign_id), lambda: read_assembly(self._store, campaign_id))

    def _once(self, name: tuple[str, ...], read: Callable[[], T]) -> T:
        # Asked from several threads: what one adds another may have pushed out a moment later.
        found: T | None = self._known.get(name)
        if found is None:
            found = self._known[name] = read()
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found
