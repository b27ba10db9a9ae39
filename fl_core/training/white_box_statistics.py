"""Statistics behind the white-box checks: noise of the right scale, and coins that are coins.

What is tested is known exactly: residuals are independent normals of one stated deviation, and
every unit is in every batch by a coin of its own. So each test has a stated false-alarm rate, 1e-6
or less, and all of them look at every step that was observed.

Source: Wilson and Hilferty 1931 for the tail of a chi-square.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fl_core.privacy.audit_documents import WhiteBoxCheck

# |z| of a normal above 5.5 comes by chance once in 26 million; 24 tensors share one alarm of 1e-6.
_ALARM = 5.5
# 640 steps share one alarm of 1e-6: each has 2e-9.
_ALARM_OF_STEPS = 6.0
# Of a pair among all pairs of up to 700 steps: 2.6e-12 x 245,000 is under 1e-6.
_ALARM_OF_PAIRS = 7.0
# A scale that is 1 % off is then 11.8 standard errors off, so it is missed once in 10^9.
_COORDINATES = 700_000
_FEWEST_OF_NOISE, _FEWEST, _MOST = 4, 32, 640


def noise_steps(dimension: int) -> int:
    """Return how many steps show noise that is 1 % off, an even number.

    The standard error of a deviation over n values is 1 / sqrt(2 n) of it, .085 % here. Below
    1,100 coordinates the number of steps is cut, and with it what the check can see.
    """
    wanted = math.ceil(_COORDINATES / dimension)
    return 2 * math.ceil(min(max(wanted, _FEWEST_OF_NOISE), _MOST) / 2)


def steps_needed(dimension: int) -> int:
    """Return how many steps show both, the noise and the coins; an even number."""
    return max(noise_steps(dimension), _FEWEST)


def noise_checks(
    residuals: Sequence[Mapping[str, Tensor]], noise_stddev: float
) -> tuple[WhiteBoxCheck, ...]:
    """Compare residuals with normals of ``noise_stddev``: deviation and mean.

    The deviation must hold overall, in every tensor and in every step: noise that is divided by
    what was drawn may be right on average.

    Args:
        residuals: Of every step, one vector per tensor.
        noise_stddev: As the accounting assumes it.
    """
    squares, sums, counts = {}, {}, {}
    per_step = torch.zeros(len(residuals), dtype=torch.float64)
    for name in residuals[0]:
        scaled = torch.stack([step[name] for step in residuals]).double() / noise_stddev
        per_step += scaled.square().sum(dim=1)
        squares[name] = float(scaled.square().sum())
        sums[name], counts[name] = float(scaled.sum()), scaled.numel()
    n_all = sum(counts.values())
    ratio = math.sqrt(sum(squares.values()) / n_all)
    overall = chi_square_score(sum(squares.values()), n_all)
    scores = {name: chi_square_score(squares[name], counts[name]) for name in squares}
    worst = max(scores, key=lambda name: abs(scores[name]))
    worst_ratio = math.sqrt(squares[worst] / counts[worst])
    dimension = n_all // len(residuals)
    step_scores = [chi_square_score(float(value), dimension) for value in per_step]
    worst_step = max(step_scores, key=abs)
    mean = sum(sums.values()) / math.sqrt(n_all)
    slack = _ALARM / math.sqrt(2 * n_all)
    return (
        WhiteBoxCheck(
            check="noise_scale",
            measured=f"{ratio:.4f} of the stated deviation",
            expected=f"1 within {slack:.4f}",
            passed=abs(overall) <= _ALARM,
        ),
        WhiteBoxCheck(
            check="noise_of_every_tensor",
            measured=f"{worst_ratio:.4f} of it in {worst[-120:]} ({scores[worst]:+.1f} errors)",
            expected=f"within {_ALARM} standard errors in all {len(scores)}",
            passed=abs(scores[worst]) <= _ALARM,
        ),
        WhiteBoxCheck(
            check="noise_of_every_step",
            measured=f"{worst_step:+.1f} standard errors at worst",
            expected=f"within {_ALARM_OF_STEPS} in all {len(residuals)}",
            passed=abs(worst_step) <= _ALARM_OF_STEPS,
        ),
        WhiteBoxCheck(
            check="noise_mean",
            measured=f"{mean:+.1f} standard errors",
            expected=f"0 within {_ALARM}",
            passed=abs(mean) <= _ALARM,
        ),
    )


def fresh_noise_check(residuals: Sequence[Mapping[str, Tensor]]) -> WhiteBoxCheck:
    """Look for noise that comes twice, between steps or between trainings.

    Args:
        residuals: Of steps of several trainings, one vector per tensor.
    """
    noise = torch.stack([torch.cat(list(step.values())) for step in residuals]).double()
    length = noise.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    noise /= length
    alike = noise @ noise.T * math.sqrt(noise.shape[1])
    alike.fill_diagonal_(0.0)
    largest = float(alike.abs().max())
    return WhiteBoxCheck(
        check="noise_is_fresh",
        measured=f"two steps correlate by {largest:.1f} standard errors at most",
        expected=f"at most {_ALARM_OF_PAIRS}",
        passed=largest <= _ALARM_OF_PAIRS,
    )


def fresh_coins_check(
    first: Sequence[tuple[int, ...]],
    second: Sequence[tuple[int, ...]],
    *,
    units: int,
    rate: float,
) -> WhiteBoxCheck:
    """Look for coins that come twice, in two trainings as of two attempts or two sites.

    Args:
        first: Units of every step of one training.
        second: Those of another, on the same rows.
        units: Units that could be drawn.
        rate: Stated sampling rate.
    """
    score = _correlation_score(_centred(first, units, rate), _centred(second, units, rate), rate)
    return WhiteBoxCheck(
        check="coins_are_fresh",
        measured=f"two trainings correlate by {score:.1f} standard errors",
        expected=f"at most {_ALARM_OF_PAIRS}",
        passed=abs(score) <= _ALARM_OF_PAIRS,
    )


def coin_checks(
    batches: Sequence[tuple[int, ...]], *, units: int, rate: float
) -> tuple[WhiteBoxCheck, ...]:
    """Compare batches with independent coins: how many units in all, per step, and per unit.

    Under coins the size of a batch is Binomial(units, rate), empty ones included, and the number
    of batches that a unit was in is Binomial(steps, rate). Batches of one size, or epochs in which
    every unit comes once, spread less.
    """
    drawn = torch.zeros((len(batches), units), dtype=torch.float64)
    for number, batch in enumerate(batches):
        drawn[number, list(batch)] = 1.0
    if rate == 1:
        missing = int((drawn == 0).sum())
        return (
            WhiteBoxCheck(
                check="batch_sizes",
                measured=f"{missing} units were left out of a step",
                expected="0 at rate 1",
                passed=missing == 0,
            ),
        )
    total = (float(drawn.sum()) - drawn.numel() * rate) / math.sqrt(
        drawn.numel() * rate * (1 - rate)
    )
    per_step = _spread_score(drawn.sum(dim=1), units, rate)
    per_row = _spread_score(drawn.sum(dim=0), len(batches), rate)
    empty = sum(len(batch) == 0 for batch in batches)
    return (
        WhiteBoxCheck(
            check="sampling_rate",
            measured=f"{float(drawn.mean()):.4f} of units per step ({total:+.1f} standard errors)",
            expected=f"{rate:g} within {_ALARM} standard errors",
            passed=abs(total) <= _ALARM,
        ),
        WhiteBoxCheck(
            check="batch_sizes",
            measured=f"spread off by {per_step:+.1f} standard errors, {empty} empty",
            expected=f"Binomial({units}, {rate:g}) within {_ALARM}",
            passed=abs(per_step) <= _ALARM,
        ),
        WhiteBoxCheck(
            check="units_are_independent",
            measured=f"spread off by {per_row:+.1f} standard errors",
            expected=f"Binomial({len(batches)}, {rate:g}) within {_ALARM}",
            passed=abs(per_row) <= _ALARM,
        ),
    )


def chi_square_score(value: float, degrees: int) -> float:
    """Return the standard normal score of a chi-square value.

    Source: Wilson and Hilferty 1931: ``(x / k)^(1/3)`` is close to normal with mean ``1 - 2/9k``
    and variance ``2/9k``.
    """
    spread = 2.0 / (9.0 * degrees)
    return float(((value / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def _spread_score(counts: Tensor, n: int, rate: float) -> float:
    """Score the spread of binomial counts; the fourth moment of a binomial widens the error."""
    variance = n * rate * (1 - rate)
    value = float((counts - n * rate).square().sum()) / variance
    excess = (1 - 6 * rate * (1 - rate)) / variance
    return chi_square_score(value, len(counts)) / math.sqrt(max(1.0, 1 + excess / 2))


def _centred(batches: Sequence[tuple[int, ...]], units: int, rate: float) -> Tensor:
    drawn = torch.full((len(batches), units), -rate, dtype=torch.float64)
    for number, batch in enumerate(batches):
        drawn[number, list(batch)] = 1 - rate
    return drawn


def _correlation_score(first: Tensor, second: Tensor, rate: float) -> float:
    if rate == 1:
        return 0.0
    n_steps = min(len(first), len(second))
    product = float((first[:n_steps] * second[:n_steps]).sum())
    return product / (rate * (1 - rate) * math.sqrt(n_steps * first.shape[1]))
