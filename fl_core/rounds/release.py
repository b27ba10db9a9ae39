"""Release: the aggregate becomes the next adapter, once.

The released delta is written first; the adapter is made from the delta *that is stored*, and the
outcome comes last. A second caller, or one that crashed in between, ends with the same adapter.
An accepted update that was removed or replaced since, or updates that together leave the range of
float32, close the round as failed: the next one starts from the last adapter that holds.
"""

import logging
from datetime import datetime
from typing import Literal

import numpy as np

from fl_core.adapters.pair import LoraState
from fl_core.aggregation.aggregator import Aggregate, Member, member_order
from fl_core.artifacts import keys
from fl_core.artifacts.documents import write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly, site_weights
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.roster import read_roster
from fl_core.codecs.codec import CODECS
from fl_core.errors import UpdateRejected
from fl_core.rounds.adapters import read_state, write_adapter
from fl_core.rounds.collection import read_accepted
from fl_core.rounds.documents import Collected, Outcome, RoundCharge, RoundPlan
from fl_core.rounds.plan import read_outcome
from fl_core.updates.payload import encode_tensors, require_finite

RELEASE_CODEC = ComponentSpec(kind="float32")

log = logging.getLogger(__name__)


def release_round(  # noqa: PLR0913  the inputs of a step of the round, by name
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    collected: Collected,
    charge: RoundCharge,
    now: datetime,
) -> Outcome:
    """Aggregate the accepted updates and write the next adapter, or close the round as failed."""
    campaign = assembly.campaign
    done = read_outcome(store, campaign.id, plan.round)
    if done is not None:
        return done
    try:
        _require_charged(assembly, collected, charge)
        aggregate = aggregate_updates(assembly, store, plan, collected=collected)
        state = _released_state(assembly, store, plan, aggregate)
    except UpdateRejected as error:
        return _close_without(assembly, store, plan, status="failed", reason=str(error), now=now)
    outcome = Outcome(
        round=plan.round,
        status="released",
        base_hash=plan.base_hash,
        result_hash=write_adapter(store, campaign, state),
        contributors=aggregate.contributors,
        sensitivity=aggregate.l2_sensitivity,
        opened=plan.opened,
        closed=now,
    )
    log.info("round released round=%d contributors=%d", plan.round, len(outcome.contributors))
    return write_document(store, keys.outcome(campaign.id, plan.round), outcome)


def _require_charged(assembly: Assembly, collected: Collected, charge: RoundCharge) -> None:
    uncharged = sorted(set(collected.accepted) - set(charge.sites))
    if assembly.noise is not None and uncharged:
        raise UpdateRejected(
            "charge",
            f"no charge is recorded for the accepted update of site {uncharged[0]!r}; "
            "it was removed or replaced after it was accepted",
        )


def _released_state(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, aggregate: Aggregate
) -> LoraState:
    for name in sorted(aggregate.tensors):
        require_finite(name, aggregate.tensors[name])
    key = keys.release(assembly.campaign.id, plan.round)
    store.put_once(key, encode_tensors(aggregate.tensors))
    released = CODECS.build(RELEASE_CODEC).decode(store.get(key))
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
    members = []
    for site in collected.accepted:
        update = read_accepted(assembly, store, plan, site=site, collected=collected)
        members.append(
            Member(site=site, tensors=update.tensors, norm_bound=update.manifest.norm_bound)
        )
    weights = site_weights(assembly.campaign, read_roster(store, plan.roster_version))
    return assembly.aggregator.aggregate(member_order(members), weights, None)


def skip_round(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, reason: str, now: datetime
) -> Outcome:
    """Close a round without a release; what sites have charged stays charged."""
    return _close_without(assembly, store, plan, status="skipped", reason=reason, now=now)


def _close_without(  # noqa: PLR0913  what an outcome says, by name
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    status: Literal["skipped", "failed"],
    reason: str,
    now: datetime,
) -> Outcome:
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
