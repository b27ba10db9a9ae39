"""SOUNDNESS, rules 1, 12, 17 and 18: a moving clip norm, what it leaves, and the read-out."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.guarantees import AdaptiveClip, RecordDp
from fl_core.campaign.specs import TrainingSpec
from fl_core.errors import StoreUnavailable
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan, NoiseSetting
from fl_core.privacy.randomness import SeededStream
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import skip_round
from fl_core.rounds.site import Site
from fl_core.rounds.site_round import client_round
from fl_core.training.local_training import LocalSetting, train_round
from fl_core.training.moving_clip import StepClip
from fl_core.training.private_training import ClippedSum
from fl_core.training.read_out import NoiseWatch
from fl_core.updates.work import ReadOut, Trained
from tests.row_by_row import one_by_one
from tests.tiny_models import CLASSES, take, tiny_model, tiny_rows
from tests.worlds import NOW, FakeWork, World, campaign_of, world_of

torch.set_num_threads(1)
DIVISOR = 4.0


def plan_of(*, steps: int, clip_norm: float = 1.0, rate: float = 1.0, **rule) -> NoisePlan:
    fields = {"quantile": 0.5, "learning_rate": 0.3, "count_stddev": 2.0, **rule}
    record = RecordDp(
        epsilon=50,
        delta=1e-5,
        clip_norm=clip_norm,
        adaptive_clip=AdaptiveClip(**fields),
        sampling_rate=rate,
        noise_multiplier=1.5,
    )
    mechanism = MECHANISMS.build(ComponentSpec(kind="dpsgd"))
    return mechanism.plan(record, NoiseSetting(steps=steps, sites=1, dimension=10))


def trained(rows, plan, *, stream, clip_norm=None, rate=1e-6):
    setting = LocalSetting(
        TrainingSpec(local_steps=plan.steps, batch_size=4, learning_rate=rate, micro_batch=4),
        divisor=DIVISOR,
        noise=plan,
        clip_norm=clip_norm,
    )
    return train_round(tiny_model(CLASSES), rows, setting=setting, stream=stream)


class Recorded:
    """A seeded stream that notes its draws; single numbers are shifted by what it is told."""

    def __init__(self, seed: int, *, shift: float = 0.0) -> None:
        self._stream, self._shift = SeededStream(seed), shift
        self.counts: list[float] = []

    def coins(self, n, rate):
        return self._stream.coins(n, rate)

    def normal(self, shape):
        draw = self._stream.normal(shape)
        if shape == (1,):
            draw = draw + np.float32(self._shift)
            self.counts.append(float(draw[0]))
        return draw


def test_noise_of_gradient_and_count_is_charged_as_one_event():
    plan = plan_of(steps=3)

    # Andrew et al. 2021, section 3: (1.5^-2 - (2 * 2)^-2)^-1/2 = 1.61808.
    assert plan.noise_stddev == pytest.approx(1.61808, rel=1e-5)
    assert plan.event.event.event.noise_multiplier == 1.5


def test_clip_norm_follows_the_noised_count_and_the_noise_follows_the_clip_norm():
    clip = StepClip(plan_of(steps=1, clip_norm=2.0), 2.0)
    stream = Recorded(3, shift=-1.5)

    clip.move(ClippedSum({}, n_units=5, n_whole=4), divisor=DIVISOR, stream=stream)

    # Sum of b - 1/2 over five units of which four are whole: 4 - 2.5.
    # Algorithm 1: C exp(-eta (b - gamma)).
    share = (4 - 2.5 + 2.0 * stream.counts[0]) / DIVISOR + 0.5
    assert 0 < share < 1
    assert clip.clip_norm == pytest.approx(2.0 * math.exp(-0.3 * (share - 0.5)), rel=1e-12)
    assert clip.noise_stddev == pytest.approx(1.61808 * clip.clip_norm, rel=1e-5)


def test_rule_12_the_state_is_a_function_of_the_noised_counts_and_public_numbers():
    rows = tiny_rows(CLASSES, 9)
    plan = plan_of(steps=5, count_stddev=0.9, learning_rate=0.2)
    stream = Recorded(7)

    found = trained(rows, plan, stream=stream).steps

    # Nothing was moved (learning rate 1e-6), so a unit is whole wherever its norm is under C.
    norms = np.array(norms_of(rows))
    clip_norm = 1.0
    for draw in stream.counts:
        noised = np.sum((norms <= clip_norm) - 0.5) + 0.9 * draw
        share = min(max(noised / DIVISOR + 0.5, 0.0), 1.0)
        clip_norm *= math.exp(-0.2 * (share - 0.5))
    assert len(stream.counts) == 5
    assert found.clip_norm == pytest.approx(clip_norm, rel=1e-9)


def test_rule_12_other_rows_with_the_same_noised_count_leave_the_same_state():
    rows = tiny_rows(CLASSES, 9)
    fewer = take(rows, slice(0, 6))
    plan = plan_of(steps=1, count_stddev=4.0)
    counts = [np.sum((np.array(norms_of(r)) <= 1.0) - 0.5) for r in (rows, fewer)]
    assert counts[0] != counts[1]

    first = trained(rows, plan, stream=Recorded(7), rate=0.1)
    shift = (counts[0] - counts[1]) / 4.0
    second = trained(fewer, plan, stream=Recorded(7, shift=shift), rate=0.1)

    assert second.steps.clip_norm == pytest.approx(first.steps.clip_norm, rel=1e-6)
    assert not np.array_equal(first.delta["head.bias"], second.delta["head.bias"])


def norms_of(rows) -> list[float]:
    """Gradient norm of every row by itself, from plain autograd."""
    return one_by_one(tiny_model(CLASSES), rows, 1.0)[1]


def test_rule_02_a_gradient_that_is_not_finite_counts_as_cut():
    rows = tiny_rows(CLASSES, 4)
    plan = plan_of(steps=1, clip_norm=1e3)
    # Noise that keeps both counts between the ends of a share.
    shift = -0.75 - float(np.float32(count_draw(rows, plan)))
    whole = trained(rows, plan, stream=Recorded(1, shift=shift)).steps
    rows.labels[2] = 99

    one_bad = trained(rows, plan, stream=Recorded(1, shift=shift)).steps

    # b of one unit falls from 1 to 0: the share by 1/4, the exponent rises by .3 / 4.
    ratio = one_bad.clip_norm / whole.clip_norm
    assert ratio == pytest.approx(math.exp(0.3 / 4), rel=1e-9)


def count_draw(rows, plan) -> float:
    stream = Recorded(1)
    trained(rows, plan, stream=stream)
    return stream.counts[0]


@pytest.mark.parametrize("draw", [-1e9, 1e9])
def test_clip_norm_stays_within_public_ends_whatever_the_noise(draw):
    clip = StepClip(plan_of(steps=1, learning_rate=10.0), 1.0)

    for _ in range(50):
        clip.move(ClippedSum({}), divisor=DIVISOR, stream=Recorded(1, shift=draw))

    assert 2.0**-20 <= clip.clip_norm <= 2.0**20


def test_next_round_goes_on_where_the_last_one_ended():
    rows, plan = tiny_rows(CLASSES, 9), plan_of(steps=2, learning_rate=0.2)
    first = trained(rows, plan, stream=SeededStream(1)).steps

    second = trained(rows, plan, stream=Recorded(2), clip_norm=first.clip_norm).steps
    fresh = trained(rows, plan, stream=Recorded(2)).steps

    assert first.clip_norm != 1.0
    assert second.clip_norm != fresh.clip_norm


ADAPTIVE = {
    "record": {
        "epsilon": 8.0,
        "delta": 1e-5,
        "clip_norm": 0.3,
        "adaptive_clip": {"count_stddev": 2.0},
        "sampling_rate": 0.1,
        "noise_multiplier": 0.8,
    }
}


class WorkWithState(FakeWork):
    """Leaves the number of the round, and notes what it was handed."""

    def train(self, exchange):
        self.handed = [*getattr(self, "handed", []), exchange.state]
        delta = super().train(exchange).delta
        number = exchange.round_number
        return Trained(
            delta=delta,
            state=b"left by round %d" % number,
            read_out=ReadOut(round=number, cosine=0.123456, norm_ratio=77.654321, clipped_share=1),
        )


def played(world: World, site: Site, work: FakeWork, rounds) -> None:
    """Let one site take part in some rounds; each closes without a release."""
    for number in rounds:
        plan = open_round(world.assembly, world.store, round_number=number, now=NOW)
        client_round(site, work, assembly=world.assembly, store=world.store, plan=plan)
        skip_round(world.assembly, world.store, plan, reason="not asked for", now=NOW)


@pytest.fixture
def world() -> World:
    return world_of(campaign_of(("a", "b"), privacy=ADAPTIVE))


def test_rule_12_state_goes_from_round_to_round_and_a_failed_one_leaves_the_state_before(world):
    site, work = world.sites["a"], WorkWithState(world.assembly.shapes(1))

    played(world, site, work, [1])
    work.fails_with = RuntimeError("row 7")
    played(world, site, work, [2])
    work.fails_with = None
    played(world, site, work, [3, 4])

    first, third = b"left by round 1", b"left by round 3"
    assert work.handed == [None, first, first, third]


def test_rule_12_a_retry_after_a_death_is_handed_the_state_of_the_round_before(world):
    site, work = world.sites["a"], WorkWithState(world.assembly.shapes(1))
    played(world, site, work, [1])
    work.fails_with = KeyboardInterrupt()
    plan = open_round(world.assembly, world.store, round_number=2, now=NOW)
    with pytest.raises(KeyboardInterrupt):
        client_round(site, work, assembly=world.assembly, store=world.store, plan=plan)
    work.fails_with = None

    client_round(site, work, assembly=world.assembly, store=world.store, plan=plan)

    assert work.handed == [None, b"left by round 1", b"left by round 1"]


def test_rule_12_state_never_crosses_to_another_campaign(world):
    site, work = world.sites["a"], WorkWithState(world.assembly.shapes(1))
    played(world, site, work, [1])
    outbox, dataset = site.outbox, site.policy.dataset

    assert outbox.last_state(dataset, world.assembly.digest, before=2) == b"left by round 1"
    assert outbox.last_state(dataset, "f" * 64, before=2) is None
    assert outbox.last_state("other-data", world.assembly.digest, before=2) is None
    assert outbox.last_state(dataset, world.assembly.digest, before=1) is None


def test_rule_17_state_and_read_out_stay_at_the_site(world, caplog, tmp_path):
    store = LocalStore(tmp_path)
    site = dataclasses.replace(world.sites["a"], read_outs=store)
    work = WorkWithState(world.assembly.shapes(1))

    with caplog.at_level(logging.DEBUG):
        played(world, site, work, [1, 2])

    for number in (1, 2):
        kept = read_document(store, keys.read_out(world.assembly.digest, number), ReadOut)
        assert (kept.round, kept.cosine, kept.norm_ratio) == (number, 0.123456, 77.654321)
    names = world.store.list("")
    assert keys.manifest("tiny", 2, "a") in names
    assert not [name for name in names if "state" in name or "readout" in name]
    everything = b"".join(world.store.get(name) for name in names)
    for mark in ("left by round", "0.123456", "77.654321"):
        assert mark.encode() not in everything
        assert mark not in caplog.text
    in_outbox = [world.outboxes["a"].get(name) for name in world.outboxes["a"].list("")]
    assert b"left by round 2" in in_outbox
    assert not any(b"77.654321" in data for data in in_outbox)


def test_read_out_that_cannot_be_kept_does_not_keep_the_update_back(world):
    class Full(MemoryStore):
        def put_once(self, key, data):  # noqa: ARG002  the store's signature
            raise StoreUnavailable("no space left")

    site = dataclasses.replace(world.sites["a"], read_outs=Full())

    played(world, site, WorkWithState(world.assembly.shapes(1)), [1])

    assert keys.manifest("tiny", 1, "a") in world.store.list("")


def test_read_out_compares_the_noised_sums_of_a_round_with_the_clean_ones():
    watch = NoiseWatch(divisor=2.0)
    tensor = torch.tensor

    # Clean sums (3, 0) and (0, 4); noised, before the division by 2, (3, 1) and (1, 4).
    watch.add(
        ClippedSum({"w": tensor([3.0, 0.0]).double()}, n_units=3, n_whole=1),
        {"w": tensor([1.5, 0.5])},
    )
    watch.add(
        ClippedSum({"w": tensor([0.0, 4.0]).double()}, n_units=1, n_whole=1),
        {"w": tensor([0.5, 2.0])},
    )

    # Over both steps (3, 4) and (4, 5): product 32, norms 5 and sqrt(41); 2 of 4 units were cut.
    found = watch.read_out(6)
    assert found.round == 6
    assert found.cosine == pytest.approx(32 / (5 * math.sqrt(41)))
    assert found.norm_ratio == pytest.approx(math.sqrt(41) / 5)
    assert found.clipped_share == 0.5


def test_read_out_of_a_round_without_a_signal_says_so():
    watch = NoiseWatch(divisor=2.0)

    watch.add(ClippedSum({"w": torch.zeros(2).double()}), {"w": torch.ones(2)})

    assert watch.read_out(1) == ReadOut(round=1, cosine=0.0, norm_ratio=None, clipped_share=None)
