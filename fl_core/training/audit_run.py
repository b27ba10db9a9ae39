"""One-run audit of one site's part of a campaign, with the product's own private training.

Every canary is in or out by a fair coin; the campaign's rounds are run once, and the auditor
guesses the coins. How many guesses are right bounds epsilon from below (``privacy.auditing``). How
many are made is fixed from the claim before anything runs: too few right guesses cannot refute it
however bad the run is, and too many hide what the surest ones would show; so there are two
numbers, and each bound holds at half the risk.

A site takes part alone here: what others add to the mean is post-processing of their own updates.

Source: Steinke, Nasr and Jagielski 2023; Hanley and McNeil 1982 for the interval of the AUC.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fl_core.campaign.campaign import Campaign
from fl_core.data.prompts import EncodedRows
from fl_core.errors import CampaignError
from fl_core.models.peft_state import AdaptedModel, open_for_round
from fl_core.privacy.audit_documents import CanaryAudit, Membership
from fl_core.privacy.auditing import audit_ceiling, audit_lower_bound, guesses_to_refute
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import Columns, columns_of
from fl_core.training.canaries import (
    Aims,
    aim,
    pushing,
    suspicion,
    with_gradient_canaries,
)
from fl_core.training.local_training import probe_columns
from fl_core.training.trainee import trainee_of
from fl_core.training.watching import Recipe, Step, chosen_units, watch

_FEWEST, _MOST = 1000, 8000
# Guesses beyond those that refute a claim if all are right, since some will be wrong.
_RESERVE = 1.2
_SHARE = 10
_FEWEST_ROWS = 20
_BATCH = 64

Coins = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]


class Stream(NoiseStream, Protocol):
    """A noise stream that says whether it keeps a secret."""

    is_private: ClassVar[bool]


@dataclass(frozen=True, slots=True)
class Claim:
    """What is audited.

    Attributes:
        epsilon: Claimed upper bound.
        delta: The claim's delta.
        confidence: Wanted of every bound.
    """

    epsilon: float
    delta: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Setting:
    """What the audited run trains on.

    Attributes:
        campaign: With its noise and its adapter's modules stated.
        noise: Its plan of one round.
        site: Whose public divisor is used.
        model: Base model with the adapter that round 1 starts from; it is trained in place.
        rows: Rows, of which one half takes part; encoded.
        texts: Text canaries, encoded like rows.
        n_gradient_canaries: How many.
        streams: Returns a new stream, as a site makes one per training.
    """

    campaign: Campaign
    noise: NoisePlan
    site: str
    model: AdaptedModel
    rows: EncodedRows
    texts: EncodedRows
    n_gradient_canaries: int
    streams: Callable[[], Stream]


@dataclass(frozen=True, slots=True)
class Findings:
    """Coins and scores of everything whose coin is guessed; a higher score speaks for "in"."""

    gradient_coins: Coins
    gradient_scores: Scores
    text_coins: Coins
    text_scores: Scores
    row_coins: Coins
    row_scores: Scores


def run_audit(setting: Setting, *, on_round: Callable[[int], None]) -> Findings:
    """Run all rounds of the campaign at one site and score every canary and row.

    Args:
        setting: What to train on.
        on_round: Called after every round with its number.

    Raises:
        TrainingError: The model cannot be trained privately.
    """
    stream = setting.streams()
    n_canaries = setting.n_gradient_canaries
    everything = _joined(setting.rows, setting.texts, setting.campaign)
    n_rows = everything.n_units - len(setting.texts)
    coins = stream.coins(everything.n_units, 0.5)
    gradient_coins = stream.coins(n_canaries, 0.5)
    columns = with_gradient_canaries(
        chosen_units(everything, np.flatnonzero(coins).tolist()),
        np.flatnonzero(gradient_coins).astype(np.int64),
    )
    scores = torch.zeros(n_canaries, dtype=torch.float64)
    clip_norm = None
    for number in range(1, setting.campaign.max_rounds + 1):
        open_for_round(setting.model, number)
        trainee = trainee_of(setting.model)
        aims = aim(trainee, n_canaries, noise=setting.noise, stream=stream)
        clip_norm = watch(
            pushing(trainee, aims),
            columns,
            _recipe(setting, clip_norm),
            stream=setting.streams(),
            on_step=_scoring(scores, aims, setting.noise),
        )
        on_round(number)
    known = -_losses(setting.model, everything)
    return Findings(
        gradient_coins=gradient_coins,
        gradient_scores=scores.numpy(),
        text_coins=coins[n_rows:],
        text_scores=known[n_rows:],
        row_coins=coins[:n_rows],
        row_scores=known[:n_rows],
    )


def canaries_for(claim: Claim) -> int:
    """Return how many gradient canaries the claim asks for, from 1,000 to 8,000.

    Twice as many as have to be guessed right to refute it. Where no number can (a canary more
    also adds to the chance of delta), the number whose ceiling is highest.
    """
    level = _halved(claim.confidence)
    n, numbers = _FEWEST, []
    while n <= _MOST:
        needed = guesses_to_refute(
            epsilon=claim.epsilon, delta=claim.delta, confidence=level, canaries=n
        )
        if needed is not None and _RESERVE * needed <= n / 2:
            return n
        numbers.append(n)
        n *= 2
    return max(numbers, key=lambda n: (_ceiling(n, n, claim), -n))


def audit_canaries(
    coins: Coins, scores: Scores, *, kind: Literal["gradient", "text"], claim: Claim
) -> CanaryAudit:
    """Guess coins from scores and bound epsilon from below.

    The highest scores are guessed "in". A unit that is drawn now and then can show that it is in,
    and hardly that it is out, so "out" is guessed, for the lowest scores, only where more than
    half of all canaries are. Of two numbers of guesses, both fixed by the claim, the larger bound
    is taken, each at half the risk.
    """
    canaries = len(coins)
    order = np.argsort(scores, kind="stable")
    tried = []
    for guesses in guess_counts(canaries, claim):
        n_out = 0 if guesses <= canaries // 2 else guesses // 2
        n_in = guesses - n_out
        correct = int(coins[order[canaries - n_in :]].sum() + (~coins[order[:n_out]]).sum())
        bound = audit_lower_bound(
            guesses=guesses,
            correct=correct,
            canaries=canaries,
            delta=claim.delta,
            confidence=_halved(claim.confidence),
        )
        tried.append((bound, guesses, correct))
    bound, guesses, correct = max(tried)
    ceiling = max(_ceiling(guesses, canaries, claim) for _, guesses, _ in tried)
    return CanaryAudit(
        kind=kind,
        canaries=canaries,
        guesses=guesses,
        correct=correct,
        lower_bound=bound,
        ceiling=ceiling,
    )


def guess_counts(canaries: int, claim: Claim) -> tuple[int, ...]:
    """Return the numbers of guesses, even ones: what refutes the claim, and a tenth."""
    needed = guesses_to_refute(
        epsilon=claim.epsilon,
        delta=claim.delta,
        confidence=_halved(claim.confidence),
        canaries=canaries,
    )
    wanted = canaries if needed is None else min(canaries, math.ceil(_RESERVE * needed))
    return tuple(sorted({_even(wanted), _even(canaries // _SHARE)}))


def membership(coins: Coins, scores: Scores, *, confidence: float) -> Membership | None:
    """Return how well scores tell rows that took part from others; None for fewer than 20 a side.

    Source: Hanley and McNeil 1982, equations 1 and 2.
    """
    members, others = scores[coins], scores[~coins]
    n, m = len(members), len(others)
    if min(n, m) < _FEWEST_ROWS:
        return None
    ranks = _ranks(np.concatenate([members, others]))
    auc = float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n - 1) * (one - auc**2) + (m - 1) * (two - auc**2)
    slack = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance / (n * m))
    return Membership(
        auc=auc, low=max(0.0, auc - slack), high=min(1.0, auc + slack), members=n, others=m
    )


def _joined(rows: EncodedRows, texts: EncodedRows, campaign: Campaign) -> Columns:
    """Return the rows' units, and behind them one unit for every text canary."""
    record = campaign.privacy.record
    if record is None:
        raise CampaignError(
            f"campaign {campaign.id!r} states no privacy.record, so there is no claim to audit"
        )
    own = columns_of(rows, max_rows_per_unit=record.max_rows_per_unit)
    added = columns_of(texts)
    return replace(
        own,
        tensors={n: torch.cat([c, added.tensors[n]]) for n, c in own.tensors.items()},
        starts=np.concatenate([own.starts, own.starts[-1] + added.starts[1:]]),
    )


def _recipe(setting: Setting, clip_norm: float | None) -> Recipe:
    training = setting.campaign.training
    return Recipe(
        training=training,
        divisor=training.divisor(setting.site),
        noise=setting.noise,
        probe=probe_columns(setting.rows),
        clip_norm=clip_norm,
    )


def _scoring(scores: torch.Tensor, aims: Aims, noise: NoisePlan) -> Callable[[Step], None]:
    def score(step: Step) -> None:
        scores.add_(suspicion(aims.read(step.released), aims, noise))

    return score


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is Any to mypy here
def _losses(model: AdaptedModel, columns: Columns) -> Scores:
    """Return the mean loss of every unit's rows on the final adapter, ``(n_units,)``."""
    trainee = trainee_of(model)
    losses = [torch.zeros(0)]
    for start in range(0, len(columns), _BATCH):
        batch = {n: c[start : start + _BATCH] for n, c in columns.tensors.items()}
        losses.append(trainee.losses(trainee.module, batch).float())
    sums = np.concatenate([[0.0], np.cumsum(torch.cat(losses).double().numpy())])
    means: Scores = np.diff(sums[columns.starts]) / np.diff(columns.starts)
    return np.nan_to_num(means, nan=0.0, posinf=1e300)


def _ceiling(guesses: int, canaries: int, claim: Claim) -> float:
    return audit_ceiling(
        guesses=guesses,
        canaries=canaries,
        delta=claim.delta,
        confidence=_halved(claim.confidence),
    )


def _halved(confidence: float) -> float:
    return 1 - (1 - confidence) / 2


def _even(n: int) -> int:
    return n - n % 2


def _ranks(values: Scores) -> Scores:
    """Return ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: Scores = (ends - (counts - 1) / 2)[place]
    return shared
