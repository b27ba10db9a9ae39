"""Release: the aggregate becomes the next adapter, once.

The released delta is written first; the adapter is made from the delta *that is stored*, and the
outcome comes last. A second caller, or one that crashed in between, ends with the same adapter.
An accepted update that was removed or replaced since, or updates that together leave the range of
float32, close the round as failed: the next one starts from the last adapter that holds.

Under central ClientDp the noise is added here, between aggregate and release: once, since of two
draws only the first is stored. Nothing that is computed from updates without noise goes anywhere
else (SOUNDNESS, rule 25), and the raw updates are gone before the outcome is there (rule 26).
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal

import numpy as np

from fl_core.adapters.pair import LoraState
from fl_core.aggregation.aggregator import Aggregate, Member, member_order
from fl_core.artifacts import keys
from fl_core.artifacts.documents import write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly, site_weights
from fl_core.campaign.roster import read_roster
from fl_core.errors import FedloomError, UnboundedSensitivity, UpdateRejected
from fl_core.rounds.adapters import read_state, write_adapter
from fl_core.rounds.central_release import (
    NO_FEDERATION,
    Coordinator,
    Released,
    bury_raw_updates,
    release_centrally,
)
from fl_core.rounds.collection import RoundAnswers
from fl_core.rounds.documents import Collected, Outcome, RoundCharge, RoundPlan
from fl_core.rounds.plan import read_outcome
from fl_core.rounds.released_delta import read_release, write_release
from fl_core.updates.payload import require_finite

log = logging.getLogger(__name__)


def release_round(  # noqa: PLR0913  the inputs of a step of the round, by name
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    collected: Collected,
    charge: RoundCharge,
    now: datetime,
    coordinator: Coordinator = NO_FEDERATION,
) -> Outcome:
    """Aggregate the accepted updates and write the next adapter, or close the round as failed.

    Raises:
        PolicyRefused: Central ClientDp, and the coordinator keeps no ledger of the federation.
        LedgerCorrupt: That ledger does not hold the round's charge.
    """
    campaign = assembly.campaign
    done = read_outcome(store, campaign.id, plan.round)
    if done is not None:
        return done
    try:
        _require_charged(assembly, collected, charge)
        if assembly.central_noise is None:
            facts = _release_mean(assembly, store, plan, collected=collected)
        else:
            facts = release_centrally(
                assembly, store, plan, collected=collected, coordinator=coordinator
            )
        state = _next_state(assembly, store, plan)
    except (UpdateRejected, UnboundedSensitivity) as error:
        return _close_without(assembly, store, plan, status="failed", reason=str(error), now=now)
    bury_raw_updates(assembly, store, plan)
    outcome = Outcome(
        round=plan.round,
        status="released",
        base_hash=plan.base_hash,
        result_hash=write_adapter(store, campaign, state),
        contributors=facts.contributors,
        sensitivity=facts.sensitivity,
        noise_stddev=facts.noise_stddev,
        opened=plan.opened,
        closed=now,
    )
    log.info("round released round=%d contributors=%d", plan.round, len(outcome.contributors))
    return write_document(store, keys.outcome(campaign.id, plan.round), outcome)


def _require_charged(assembly: Assembly, collected: Collected, charge: RoundCharge) -> None:
    if charge.refused is not None:
        raise UpdateRejected(
            "charge",
            "the federation's budget is spent, so nothing is released; its limit is the "
            "coordinator's, in federation.toml",
        )
    if assembly.central_noise is not None and charge.federation is None:
        raise UpdateRejected("charge", "no charge on the federation's ledger is recorded")
    charged = {"": (assembly.row_event, charge.sites)}
    charged[" for the whole site"] = (assembly.site_event, charge.clients)
    for level, (event, charges) in charged.items():
        uncharged = sorted(set(collected.accepted) - set(charges))
        if event is not None and uncharged:
            raise UpdateRejected(
                "charge",
                f"no charge{level} is recorded for the accepted update of site {uncharged[0]!r}; "
                "it was removed or replaced after it was accepted",
            )


def _release_mean(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, collected: Collected
) -> Released:
    aggregate = aggregate_updates(assembly, store, plan, collected=collected)
    write_release(store, assembly.campaign.id, plan.round, aggregate.tensors)
    return Released(aggregate.contributors, aggregate.l2_sensitivity, None)


def _next_state(assembly: Assembly, store: ObjectStore, plan: RoundPlan) -> LoraState:
    released = read_release(store, assembly.campaign.id, plan.round)
    with np.errstate(over="ignore"):
        state = read_state(store, assembly.campaign, plan.base_hash).plus(released)
    # Finite updates can add up to what is not: a site needs only a few rounds of huge ones.
    for name, tensor in state.tensors().items():
        require_finite(name, tensor)
    return state


def aggregate_updates(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, collected: Collected
) -> Aggregate:
    """Combine the accepted updates with the public weights of the plan's roster.

    Raises:
        UpdateRejected: One of them is gone, or is not the one that was accepted.
    """
    members, answers = [], RoundAnswers(assembly, store, plan)
    for site in collected.accepted:
        update = answers.accepted(site, collected=collected)
        members.append(Member(site=site, tensors=update.tensors))
    weights = site_weights(assembly.campaign, read_roster(store, plan.roster_version))
    return assembly.aggregator.aggregate(member_order(members), weights, None)


def skip_round(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, reason: str, now: datetime
) -> Outcome:
    """Close a round without a release; what sites have charged stays charged."""
    return _close_without(assembly, store, plan, status="skipped", reason=reason, now=now)


@contextlib.contextmanager
def failed_if_hopeless(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, now: Callable[[], datetime]
) -> Iterator[None]:
    """Close the round as failed when a step of it ends in what trying again cannot mend.

    The error goes on to the caller; only the round is over, so that no later run meets the same
    step again. Charges stay as they are. A retryable error leaves the round open.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        plan: The round's plan.
        now: The time of the outcome.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, FedloomError) or not error.retryable:
            reason = _reason(error)
            _close_without(assembly, store, plan, status="failed", reason=reason, now=now())
        raise


def _reason(error: Exception) -> str:
    # Texts of other libraries may hold what was in their hands, so their class has to do.
    return f"{error.code}: {error}" if isinstance(error, FedloomError) else type(error).__name__


def _close_without(  # noqa: PLR0913  what an outcome says, by name
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    status: Literal["skipped", "failed"],
    reason: str,
    now: datetime,
) -> Outcome:
    bury_raw_updates(assembly, store, plan)
    outcome = Outcome(
        round=plan.round,
        status=status,
        reason=reason,
        base_hash=plan.base_hash,
        opened=plan.opened,
        closed=now,
    )
    log.warning("round closed round=%d status=%s reason=%s", plan.round, status, reason)
    return write_document(store, keys.outcome(assembly.campaign.id, plan.round), outcome)
