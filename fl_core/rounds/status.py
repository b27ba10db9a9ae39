"""Where a campaign stands, read from the store alone.

The store is the truth; Prefect and MLflow are views. So `fedloom status`, the table at the end of
a run and the next step of a resumed campaign all come from here.
"""

import logging
from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import Field

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, read_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.cohorts.quorum import required
from fl_core.errors import ObjectCorrupt, ObjectMissing
from fl_core.privacy.federation import Federation, is_affordable
from fl_core.rounds.adapters import read_adapter
from fl_core.rounds.charging import read_budgets, read_federation_budget
from fl_core.rounds.collection import answered_sites
from fl_core.rounds.documents import Collected, Outcome, RoundCharge, RoundPlan, SiteAnswer
from fl_core.rounds.plan import available_sites, read_outcome
from fl_core.updates.records import BudgetStatement, Evaluation

log = logging.getLogger(__name__)

D = TypeVar("D", bound=Document)
EndReason = Literal["finished", "budget spent", "no site enrolled"]


class RoundStatus(Document):
    """One round as people see it.

    Attributes:
        round: From 1.
        outcome: How it ended; None while it is open.
        evaluation: Metrics on the public holdout, once there.
        cohort: Sites that are asked.
        answered: Sites whose answer is complete in the store; while the round is open, unchecked.
        answers: What became of each site of the cohort, once that is frozen.
        budgets: Budget statements beside the accepted updates.
        federation: What whole sites have spent, as the coordinator signed it; central ClientDp.
        seconds: From plan to outcome; None while it is open.
        bytes_up: Payload bytes of the accepted updates.
        bytes_down: Bytes of the adapter, times the sites of the cohort.
    """

    round: int
    cohort: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    outcome: Outcome | None = None
    evaluation: Evaluation | None = None
    answers: dict[str, SiteAnswer] = Field(default_factory=dict)
    budgets: dict[str, BudgetStatement] = Field(default_factory=dict)
    federation: BudgetStatement | None = None
    seconds: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def is_final(self) -> bool:
        """Whether nothing about the round can change any more."""
        if self.outcome is None:
            return False
        return self.outcome.status != "released" or self.evaluation is not None


class CampaignStatus(Document):
    """A campaign as people see it; ``end`` is None while there is a round to run."""

    campaign_id: str
    digest: str
    max_rounds: int
    rounds: tuple[RoundStatus, ...]
    end: EndReason | None = None


def next_round(
    assembly: Assembly, store: ObjectStore, *, federation: Federation | None = None
) -> int | EndReason:
    """Return the round to run next, or why there is none.

    A round with a plan and without an outcome comes first: running it again finishes it. No round
    is opened that too few sites could answer, those that are left being fewer than the quorum, nor
    one whose release the federation could not pay for.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        federation: Decides on its own budget as it is now; without it what the store says of the
            last round decides.
    """
    campaign = assembly.campaign
    started = round_numbers(store, campaign.id)
    last = started[-1] if started else 0
    if last and read_outcome(store, campaign.id, last) is None:
        return last
    if last >= campaign.max_rounds:
        return "finished"
    if _is_federation_spent(assembly, store, last, federation):
        return "budget spent"
    available = available_sites(assembly, store)
    if available and len(available) >= required(len(available), campaign.cohort.quorum):
        return last + 1
    return "budget spent" if started else "no site enrolled"


def _is_federation_spent(
    assembly: Assembly, store: ObjectStore, last: int, federation: Federation | None
) -> bool:
    noise = assembly.central_noise
    if noise is None:
        return False
    if federation is not None:
        return not is_affordable(federation, noise.event)
    if not last:
        return False
    charge = _optional(store, keys.charge(assembly.campaign.id, last), RoundCharge)
    stated = read_federation_budget(assembly, store, last)
    is_refused = charge is not None and charge.refused is not None
    return is_refused or (stated is not None and stated.rounds_left == 0)


def round_numbers(store: ObjectStore, campaign_id: str) -> list[int]:
    """Return the numbers of all rounds that have a plan, in order."""
    found = [key for key in store.list(keys.rounds(campaign_id)) if key.endswith("/plan.json")]
    return sorted(number for key in found if (number := keys.round_of(key)) is not None)


def campaign_status(
    assembly: Assembly,
    store: ObjectStore,
    *,
    known: Mapping[int, RoundStatus] | None = None,
    federation: Federation | None = None,
) -> CampaignStatus:
    """Read where a campaign stands.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        known: Rounds that were read before and are final; they are not read again.
        federation: As for ``next_round``.
    """
    earlier = known or {}
    campaign = assembly.campaign
    numbers = round_numbers(store, campaign.id)
    following = next_round(assembly, store, federation=federation)
    return CampaignStatus(
        campaign_id=campaign.id,
        digest=assembly.digest,
        max_rounds=campaign.max_rounds,
        rounds=tuple(
            earlier.get(number) or round_status(assembly, store, number) for number in numbers
        ),
        end=None if isinstance(following, int) else following,
    )


def round_status(assembly: Assembly, store: ObjectStore, number: int) -> RoundStatus:
    """Read one round that has a plan."""
    campaign = assembly.campaign
    plan = read_document(store, keys.plan(campaign.id, number), RoundPlan)
    outcome = read_outcome(store, campaign.id, number)
    collected = _optional(store, keys.collected(campaign.id, number), Collected)
    answers = {} if collected is None else collected.answers
    adapter = read_adapter(store, campaign.id, plan.base_hash)
    adapter_bytes = sum(map(len, adapter.values()))
    return RoundStatus(
        round=number,
        cohort=plan.cohort,
        answered=answered_sites(store, campaign.id, plan),
        outcome=outcome,
        evaluation=_optional(store, keys.evaluation(campaign.id, number), Evaluation),
        answers=answers,
        budgets={}
        if collected is None
        else read_budgets(assembly, store, plan, collected=collected),
        federation=read_federation_budget(assembly, store, number),
        seconds=None if outcome is None else (outcome.closed - outcome.opened).total_seconds(),
        bytes_up=sum(answer.payload_bytes for answer in answers.values()),
        bytes_down=adapter_bytes * len(plan.cohort),
    )


def _optional(store: ObjectStore, key: str, model: type[D]) -> D | None:
    try:
        return read_document(store, key, model)
    except ObjectMissing:
        return None
    except ObjectCorrupt as error:
        # A view shows what can be read; the step that needs the document closes its round.
        log.warning("document is not readable: %s", error)
        return None
