"""Noise that the coordinator adds: between the mean of clipped updates and its release.

Protects the whole data of one site, under zeroing its update, against everybody who sees releases
and nothing else; the coordinator itself sees clipped updates. The mean is divided by the number of
sites that were *planned*, so that a site that does not come is a site with a zero update, and one
site moves it by at most ``clip_norm / planned`` (fixed denominator, McMahan et al. 2018).

What is computed from updates without noise goes into the noised sum and nowhere else: no norm, no
share clipped, no log line (SOUNDNESS, rule 25). Raw updates are inside the trust boundary, and
leave the store before the round is closed (rule 26).
"""

from collections.abc import Callable
from dataclasses import dataclass

from fl_core.aggregation.aggregator import Aggregate, Member, member_order
from fl_core.artifacts import keys
from fl_core.artifacts.store import ObjectStore, bury, exists
from fl_core.assembly import Assembly, sensitivity_limit
from fl_core.errors import LedgerCorrupt, UnboundedSensitivity, UpdateRejected
from fl_core.privacy.federation import (
    Federation,
    commit_release,
    require_federation,
    require_reserved,
)
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream, SecureStream
from fl_core.rounds.client_noise import clipped_update, noised
from fl_core.rounds.collection import RoundAnswers
from fl_core.rounds.documents import Collected, RoundPlan
from fl_core.rounds.released_delta import write_release


@dataclass(frozen=True, slots=True)
class Coordinator:
    """What the coordinator owns, for campaigns whose noise it adds.

    Attributes:
        federation: The ledger it charges, or None: campaigns with central noise are refused.
        streams: Makes the stream of the noise on one release; only a simulation has others.
    """

    federation: Federation | None = None
    streams: Callable[[], NoiseStream] = SecureStream


NO_FEDERATION = Coordinator()


@dataclass(frozen=True, slots=True)
class Released:
    """Public facts of a release.

    Attributes:
        contributors: Sites whose updates went in, sorted.
        sensitivity: L2 sensitivity of the aggregate; None is unbounded.
        noise_stddev: Per coordinate, in units of the aggregate; None where nothing was added.
    """

    contributors: tuple[str, ...]
    sensitivity: float | None
    noise_stddev: float | None


def release_centrally(
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    collected: Collected,
    coordinator: Coordinator,
) -> Released:
    """Write the noised mean of the accepted updates, unless that was done, and commit its charge.

    Raises:
        PolicyRefused: The coordinator keeps no ledger of the federation.
        LedgerCorrupt: The round's charge is not on it, or paid for a release that is gone.
        UpdateRejected: An accepted update is gone, or another one.
        UnboundedSensitivity: The aggregate's sensitivity is above what the noise covers.
    """
    campaign, noise = assembly.campaign, assembly.client_noise
    if noise is None:
        raise ValueError("a campaign without central noise has no central release")
    federation = require_federation(coordinator.federation, campaign)
    reserve = require_reserved(federation, campaign_digest=assembly.digest, round_number=plan.round)
    # Before the store is asked: a commit follows the release, so its release must be there then.
    was_drawn = reserve.seq in federation.ledger.chain().endings
    key = keys.release(campaign.id, plan.round)
    if not exists(store, key):
        if was_drawn:
            raise LedgerCorrupt(
                f"the release of round {plan.round} was written once and is not in this store; an "
                "older store was restored, and nothing is drawn a second time on one charge"
            )
        try:
            mean = _bounded_mean(assembly, store, plan, collected=collected, noise=noise)
        except UpdateRejected:
            # Another coordinator may have released and buried the updates in this very moment.
            if not exists(store, key):
                raise
        else:
            stddev = noise.noise_stddev / mean.divisor
            drawn = noised(mean.tensors, stddev=stddev, stream=coordinator.streams())
            write_release(store, campaign.id, plan.round, drawn)
    commit_release(federation, reserve)
    divisor = len(plan.cohort)
    return Released(
        contributors=tuple(collected.accepted),
        sensitivity=noise.assumed_sensitivity / divisor,
        noise_stddev=noise.noise_stddev / divisor,
    )


def _bounded_mean(
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    collected: Collected,
    noise: NoisePlan,
) -> Aggregate:
    shapes, divisor = assembly.shapes(plan.round), float(len(plan.cohort))
    members, answers = [], RoundAnswers(assembly, store, plan)
    for site in collected.accepted:
        update = answers.accepted(site, collected=collected)
        # Again, because the bound must not rest on a site's word.
        clipped = clipped_update(update.tensors, shapes=shapes, clip_norm=noise.clip_norm)
        members.append(Member(site=site, tensors=clipped, norm_bound=noise.clip_norm))
    weights = dict.fromkeys(plan.cohort, 1.0)
    aggregate = assembly.aggregator.aggregate(member_order(members), weights, divisor)
    limit = sensitivity_limit(noise.assumed_sensitivity, divisor)
    stated = aggregate.l2_sensitivity
    if stated is None or not stated <= limit or aggregate.divisor != divisor:
        found = "none" if stated is None else f"{stated:g} over a divisor of {aggregate.divisor:g}"
        raise UnboundedSensitivity(
            f"aggregation {assembly.campaign.aggregation.kind!r} states l2_sensitivity {found}, "
            f"the noise covers {noise.assumed_sensitivity / divisor:g} over {divisor:g}; nothing "
            "is released, use 'mean' with privacy.client"
        )
    return aggregate


def bury_raw_updates(assembly: Assembly, store: ObjectStore, plan: RoundPlan) -> None:
    """Remove every raw update of a round and keep its key taken, also for one still to come.

    Only under central ClientDp; other updates are noised, and stay. Manifests stay: their hashes
    are salted.

    Raises:
        StoreUnavailable: The store does not answer; the round stays open and is closed later.
    """
    if assembly.central_noise is None:
        return
    for site in plan.cohort:
        bury(store, keys.payload(assembly.campaign.id, plan.round, site))
