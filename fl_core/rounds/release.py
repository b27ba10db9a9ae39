"""Release: the aggregate becomes the next adapter, once.

The released delta is written first; the adapter is made from the delta *that is stored*, and the
outcome comes last. A second caller, or one that crashed in between, ends with the same adapter.
"""

import logging
from datetime import datetime

from fl_core.aggregation.aggregator import Aggregate, Member, member_order
from fl_core.artifacts import keys
from fl_core.artifacts.documents import write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly, site_weights
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.roster import read_roster
from fl_core.codecs.codec import CODECS
from fl_core.errors import RoundError
from fl_core.rounds.adapters import read_state, write_adapter
from fl_core.rounds.collection import read_update
from fl_core.rounds.documents import Collected, Outcome, RoundCharge, RoundPlan
from fl_core.rounds.plan import read_outcome
from fl_core.updates.payload import encode_tensors

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
    """Aggregate the accepted updates and write the next adapter.

    Raises:
        RoundError: A contributor of a private campaign has no recorded charge.
    """
    campaign = assembly.campaign
    done = read_outcome(store, campaign.id, plan.round)
    if done is not None:
        return done
    uncharged = set(collected.accepted) - set(charge.sites)
    if assembly.noise is not None and uncharged:
        raise RoundError(f"round {plan.round}: no charge of {', '.join(sorted(uncharged))}")
    aggregate = aggregate_updates(assembly, store, plan, collected)
    key = keys.release(campaign.id, plan.round)
    store.put_once(key, encode_tensors(aggregate.tensors))
    released = CODECS.build(RELEASE_CODEC).decode(store.get(key))
    state = read_state(store, campaign, plan.base_hash).plus(released)
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


def aggregate_updates(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, collected: Collected
) -> Aggregate:
    """Combine the accepted updates with the public weights of the plan's roster."""
    members = []
    for site in collected.accepted:
        manifest, tensors = read_update(assembly, store, plan, site=site)
        members.append(Member(site=site, tensors=tensors, norm_bound=manifest.norm_bound))
    weights = site_weights(assembly.campaign, read_roster(store, plan.roster_version))
    return assembly.aggregator.aggregate(member_order(members), weights, None)


def skip_round(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, reason: str, now: datetime
) -> Outcome:
    """Close a round without a release; what sites have charged stays charged."""
    outcome = Outcome(
        round=plan.round,
        status="skipped",
        reason=reason,
        base_hash=plan.base_hash,
        opened=plan.opened,
        closed=now,
    )
    log.warning("round skipped round=%d reason=%s", plan.round, reason)
    return write_document(store, keys.outcome(assembly.campaign.id, plan.round), outcome)
