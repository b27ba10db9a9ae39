"""What a campaign will cost before anything runs, and what a site's budget still holds.

Forecasts use the accountant that will charge, on a coarser grid where only a display needs them:
coarse answers are higher by a fraction of a percent, never lower.
"""

import math
from collections.abc import Callable, Sequence

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import ClientDp, RecordDp
from fl_core.errors import IncompatibleParts
from fl_core.privacy.accounting import LIVE_GRID, RECORD_GRID, epsilon
from fl_core.privacy.budget import series_steps_left, spend
from fl_core.privacy.calibration import (
    calibrate_gaussian_multiplier,
    calibrate_noise_multiplier,
    gaussian_epsilon,
)
from fl_core.privacy.clipping import adaptive_clip_noise
from fl_core.privacy.events import added_up, dpsgd_event, merged
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.updates.records import EventRecord, NonPrivateEvent, SelfComposedEvent

MAX_ROUNDS = 9999


def schedule(campaign: Campaign, *, grid: float = LIVE_GRID) -> list[float]:
    """Return epsilon after each round, at the campaign's delta, by PLD.

    For one record of a site that takes part in every round, counting this campaign alone. Empty
    under NoPrivacy.

    Raises:
        IncompatibleParts: The noise is still open; ``locked_noise`` finds it.
    """
    if campaign.privacy.record is None:
        return []
    return [
        epsilon_after(campaign, number, grid=grid) for number in range(1, campaign.max_rounds + 1)
    ]


def epsilon_after(campaign: Campaign, rounds: int, *, grid: float = RECORD_GRID) -> float:
    """Return the campaign's own epsilon after so many rounds, by PLD at its delta.

    Raises:
        IncompatibleParts: No RecordDp, or its noise is still open.
    """
    record = campaign.privacy.record
    if record is None:
        raise IncompatibleParts(f"campaign {campaign.id!r} states no privacy.record to account for")
    event = _campaign_event(record, campaign.training.local_steps * rounds)
    return epsilon([event], delta=record.delta, grid=grid)


def client_schedule(campaign: Campaign) -> list[float]:
    """Return a whole site's epsilon after each round, at the campaign's client delta; exact.

    For a site that takes part in every round, counting this campaign alone. Empty without ClientDp.

    Raises:
        IncompatibleParts: The noise is still open; ``locked_client_noise`` finds it.
    """
    if campaign.privacy.client is None:
        return []
    return [client_epsilon_after(campaign, n) for n in range(1, campaign.max_rounds + 1)]


def client_epsilon_after(campaign: Campaign, rounds: int) -> float:
    """Return a whole site's own epsilon after so many rounds of this campaign.

    Rounds without sampling are one Gaussian release of ``noise_multiplier / sqrt(rounds)``.

    Raises:
        IncompatibleParts: No ClientDp, or its noise is still open.

    Source: Dong, Roth and Su 2022, corollary 3.3, for the sum; Balle and Wang 2018 for epsilon.
    """
    client = campaign.privacy.client
    if client is None:
        raise IncompatibleParts(f"campaign {campaign.id!r} states no privacy.client to account for")
    if client.noise_multiplier is None:
        raise IncompatibleParts(
            "privacy.client.noise_multiplier is open; lock the campaign to calibrate it"
        )
    return gaussian_epsilon(
        sigma=client.noise_multiplier / math.sqrt(rounds), sensitivity=1.0, delta=client.delta
    )


def rounds_left(policy: SitePolicy, events: Sequence[EventRecord], event: EventRecord) -> int:
    """Return how many more rounds of ``event`` a policy allows after ``events``, at most 9999.

    0 for an event without guarantee: nothing is left to count. Searched on the coarse grid, whose
    answers are never lower, and finished on the one that decides.
    """
    per_round = sum(count for _, count in merged([event]))
    if isinstance(event, NonPrivateEvent) or not per_round:
        return 0
    so_far = added_up(events)

    def fits(rounds: int, grid: float = LIVE_GRID) -> bool:
        after = [*so_far, SelfComposedEvent(event=event, count=rounds)]
        return spend(policy, after, grid=grid).epsilon <= policy.epsilon

    in_series = (series_steps_left(policy, so_far) or 0) // per_round
    found = _most_that_fit(fits, guess=in_series)
    while found < MAX_ROUNDS and fits(found + 1, RECORD_GRID):
        found += 1
    return found


def _most_that_fit(fits: Callable[[int], bool], *, guess: int) -> int:
    # The end of the series is the usual answer, so it is tried first.
    low, high = 0, 1
    if 0 < guess <= MAX_ROUNDS and fits(guess):
        low, high = guess, guess + 1
    while high <= MAX_ROUNDS and fits(high):
        low, high = high, 2 * high
    high = min(high, MAX_ROUNDS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def require_campaign_budget(campaign: Campaign) -> None:
    """Check that all rounds together keep the campaign's own epsilon at every level.

    Raises:
        IncompatibleParts: They do not; names the noise that would. Or the noise is still open.
    """
    client, record = campaign.privacy.client, campaign.privacy.record
    if client is not None:
        _require_client_budget(campaign, client)
    if record is None:
        return
    after = epsilon_after(campaign, campaign.max_rounds)
    if after > record.epsilon:
        needed = calibrate_noise_multiplier(
            epsilon=record.epsilon,
            delta=record.delta,
            sampling_rate=record.sampling_rate,
            steps=campaign.total_steps,
        )
        raise IncompatibleParts(
            f"privacy.record.noise_multiplier {record.noise_multiplier:g} brings epsilon to "
            f"{after:.2f} after {campaign.max_rounds} rounds, more than {record.epsilon:g} at "
            f"delta {record.delta:g}; use {needed:g} or more, fewer rounds, or a higher epsilon"
        )


def locked_noise(campaign: Campaign) -> float | None:
    """Return the noise multiplier that locking writes down: stated, else calibrated.

    Calibrated to ``max_rounds x local_steps`` steps, so that a site that takes part in every round
    ends at or under the campaign's epsilon. None without RecordDp.

    Raises:
        IncompatibleParts: No noise keeps the campaign's epsilon.
    """
    record = campaign.privacy.record
    if record is None:
        return None
    return record.noise_multiplier or calibrate_noise_multiplier(
        epsilon=record.epsilon,
        delta=record.delta,
        sampling_rate=record.sampling_rate,
        steps=campaign.total_steps,
    )


def locked_client_noise(campaign: Campaign) -> float | None:
    """Return the client level's noise multiplier that locking writes down: stated, else calibrated.

    Calibrated to ``max_rounds`` releases without sampling. None without ClientDp.
    """
    client = campaign.privacy.client
    if client is None:
        return None
    return client.noise_multiplier or calibrate_gaussian_multiplier(
        epsilon=client.epsilon, delta=client.delta, rounds=campaign.max_rounds
    )


def with_noise(campaign: Campaign) -> Campaign:
    """Return the campaign with its noise stated; it is calibrated where it was left open.

    Raises:
        IncompatibleParts: No noise keeps the campaign's epsilon, or the stated noise does not.
    """
    levels = {
        "record": (campaign.privacy.record, locked_noise(campaign)),
        "client": (campaign.privacy.client, locked_client_noise(campaign)),
    }
    stated = {
        name: level.model_copy(update={"noise_multiplier": multiplier})
        for name, (level, multiplier) in levels.items()
        if level is not None
    }
    noised = campaign.model_copy(update={"privacy": campaign.privacy.model_copy(update=stated)})
    require_campaign_budget(noised)
    _require_count_fits(noised.privacy.record)
    return noised


def _require_count_fits(record: RecordDp | None) -> None:
    """Refuse a count of a moving clip norm that would cost more than the whole step."""
    if record is not None and record.adaptive_clip is not None:
        adaptive_clip_noise(
            noise_multiplier_total=record.noise_multiplier or 0.0,
            clipped_count_stddev=record.adaptive_clip.count_stddev,
        )


def _require_client_budget(campaign: Campaign, client: ClientDp) -> None:
    after = client_epsilon_after(campaign, campaign.max_rounds)
    if after > client.epsilon:
        needed = calibrate_gaussian_multiplier(
            epsilon=client.epsilon, delta=client.delta, rounds=campaign.max_rounds
        )
        raise IncompatibleParts(
            f"privacy.client.noise_multiplier {client.noise_multiplier:g} brings a site's epsilon "
            f"to {after:.2f} after {campaign.max_rounds} rounds, more than {client.epsilon:g} at "
            f"delta {client.delta:g}; use {needed:g} or more, fewer rounds, or a higher epsilon"
        )


def _campaign_event(record: RecordDp, steps: int) -> EventRecord:
    if record.noise_multiplier is None:
        raise IncompatibleParts(
            "privacy.record.noise_multiplier is open; lock the campaign to calibrate it"
        )
    return dpsgd_event(
        noise_multiplier=record.noise_multiplier, sampling_rate=record.sampling_rate, steps=steps
    )
