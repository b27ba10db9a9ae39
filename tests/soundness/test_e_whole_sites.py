"""SOUNDNESS, aggregation and release under ClientDp: rules 2, 8, 17, 18 and 24 to 28.

The sites' work is a fake with a known update, so that whatever the product writes can be compared
with what it must not depend on. Everything else is the product: ledgers, signatures, stores, noise.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, sha256_hex, to_bytes
from fl_core.artifacts.store import is_buried
from fl_core.codecs.float32 import Float32
from fl_core.errors import PolicyRefused
from fl_core.privacy.forecast import with_noise
from fl_core.rounds.adapters import read_state
from fl_core.rounds.central_release import NO_FEDERATION
from fl_core.rounds.charging import charge_round
from fl_core.rounds.collection import examine_site
from fl_core.rounds.documents import Collected, RoundCharge
from fl_core.rounds.released_delta import read_release
from fl_core.rounds.status import next_round
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.payload import SALT_BYTES, salted
from fl_core.updates.records import GateReport
from fl_core.updates.signing import sign
from fl_core.updates.update import l2_norm
from fl_core.updates.work import Exchange, Trained
from tests.round_steps import collect, finish, plan_of, take_part
from tests.worlds import PASSED, World, campaign_of, world_of

# Large enough for a statistical test: 2 x (300 + 200) numbers and a head of 2 x 300 + 2.
WIDE = {
    "rank": 2,
    "alpha": 4,
    "targets": ("query",),
    "modules": {"layer.query": (200, 300)},
    "head_inputs": 300,
}
C = 0.5
CLIENT = {"epsilon": 60.0, "delta": 1e-3, "clip_norm": C, "noise_multiplier": 1.5}
# Two-sided standard normal quantile at a false alarm rate of 1e-6.
Z = 4.892


@dataclass
class KnownWork:
    """A site's work that always ends in the same update, or raises."""

    delta: dict
    fails_with: Exception | None = None
    trainings: int = 0
    on_train: Callable[[], None] = lambda: None

    def gate(self) -> GateReport:
        return PASSED

    def train(self, exchange: Exchange) -> Trained:  # noqa: ARG002
        self.trainings += 1
        self.on_train()
        if self.fails_with is not None:
            raise self.fails_with
        return Trained(delta=self.delta)


def client_world(mechanism: str = "gaussian", *, size: float = 1.0, **changes) -> World:
    """A world of three sites with known updates; ``size`` scales them."""
    client = CLIENT | {"mechanism": mechanism}
    adapter = WIDE | {"rule": changes.pop("rule", "lora")}
    campaign = campaign_of(privacy={"client": client}, adapter=adapter, **changes)
    world = world_of(with_noise(campaign), epsilon=10_000.0)
    for n, site in enumerate(campaign.sites):
        rng = np.random.default_rng(n)
        world.works[site] = KnownWork(
            {
                name: (size * rng.normal(size=shape)).astype(np.float32)
                for name, shape in sorted(world.assembly.shapes(1).items())
            }
        )
    return world


def run_round(world: World, number: int = 1):
    for site in plan_of(world, number).cohort:
        take_part(world, site, number)
    return finish(world, number)


def flat(tensors) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


def clipped(delta) -> np.ndarray:
    """The clipping of McMahan et al. 2018, Algorithm 1, written down once more."""
    vector = flat(delta)
    return vector * min(1.0, C / np.linalg.norm(vector))


def uploaded(world: World, site: str) -> dict:
    data = world.store.get(keys.payload("tiny", 1, site))
    return Float32().decode(data if world.assembly.central_noise is None else data[SALT_BYTES:])


def require_normal(noise: np.ndarray, *, stddev: float) -> None:
    """Mean, variance and shape of noise; each alarm is false with probability 1e-6."""
    n, unit = len(noise), noise / stddev
    assert abs(unit.mean()) < Z / math.sqrt(n)
    assert abs(np.mean(unit**2) - 1) < Z * math.sqrt(2 / n)
    # The fourth moment of a standard normal is 3, its sample mean has variance 96 / n.
    assert abs(np.mean(unit**4) - 3) < Z * math.sqrt(96 / n) + 96 / n


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize("mechanism", ["gaussian", "local_gaussian"])
def test_rule_02_an_update_that_is_not_finite_counts_as_zero(mechanism, value):
    world = client_world(mechanism)
    delta = dict(world.works["a"].delta)
    name = min(delta)
    delta[name] = np.full_like(delta[name], value)
    world.works["a"] = KnownWork(delta)

    take_part(world, "a")

    sent = flat(uploaded(world, "a"))
    assert examine_site(world.assembly, world.store, plan_of(world), site="a").status == "accepted"
    if mechanism == "gaussian":
        assert not sent.any()
    else:
        require_normal(sent, stddev=1.5 * C)


def test_rule_08_the_coordinator_charges_its_own_noise_before_the_release():
    world = client_world()

    outcome = run_round(world)

    entries = world.coordinator.federation.ledger.entries()
    charge = read_document(world.store, keys.charge("tiny", 1), RoundCharge)
    assert [entry.kind for entry in entries] == ["genesis", "reserve", "commit"]
    assert entries[1].event.noise_multiplier == 1.5
    assert (entries[1].unit, entries[1].dataset) == ("site", "clients")
    assert charge.federation.ledger_seq == 2
    assert outcome.status == "released"


def test_rule_08_without_a_ledger_of_the_federation_nothing_is_charged_or_released():
    world = client_world()
    for site in "abc":
        take_part(world, site)
    collected = collect(world)

    with pytest.raises(PolicyRefused, match="keeps no ledger to charge it on"):
        charge_round(
            world.assembly,
            world.store,
            plan_of(world),
            collected=collected,
            coordinator=NO_FEDERATION,
        )

    assert keys.charge("tiny", 1) not in world.store.list("campaigns/")
    assert keys.release("tiny", 1) not in world.store.list("campaigns/")


def test_rule_08_a_site_whose_noise_is_its_own_charges_both_its_ledgers_before_it_trains():
    world = client_world("local_gaussian")
    seen = []
    site = world.sites["a"]
    world.works["a"].on_train = lambda: seen.append(
        [len(ledger.events()) for ledger in (site.ledger, site.client_ledger)]
    )

    take_part(world, "a")

    row, whole = site.ledger.events()[0], site.client_ledger.events()[0]
    assert seen == [[1, 1]]
    # One row can turn a clipped update into any other, which are 2 C apart.
    assert (row.noise_multiplier, whole.noise_multiplier) == (0.75, 1.5)
    manifest = read_document(world.store, keys.manifest("tiny", 1, "a"), UpdateManifest)
    assert (manifest.charge.event, manifest.client_charge.event) == (row, whole)


def test_rule_08_noise_of_the_coordinator_protects_no_row_against_it_and_the_site_says_so():
    world = client_world()
    strict = world.sites["a"].policy.model_copy(update={"without_guarantee": False})
    world.sites["b"] = replace(world.sites["b"], policy=strict)

    outcomes = [take_part(world, site) for site in "ab"]

    assert [outcome.status for outcome in outcomes] == ["uploaded", "declined"]
    assert outcomes[1].reason == "policy"
    assert world.sites["a"].ledger.events()[0].kind == "non_private"
    assert world.works["b"].trainings == 0


def test_rule_08_a_spent_federation_releases_nothing_and_ends_the_campaign():
    world = client_world()
    # One release of multiplier 1.5 is epsilon 1.91 at delta 1e-3 and two are 2.92 (Balle and Wang).
    world.coordinator = limited(world, epsilon=2.5)

    first, second = run_round(world), run_round(world, 2)

    assert (first.status, second.status) == ("released", "failed")
    assert "federation's budget is spent" in second.reason
    assert keys.release("tiny", 2) not in world.store.list("campaigns/")
    assert second.result_hash is None
    for site in "abc":
        assert is_buried(world.store, keys.payload("tiny", 2, site))
    assert next_round(world.assembly, world.store) == "budget spent"
    federation = world.coordinator.federation
    assert next_round(world.assembly, world.store, federation=federation) == "budget spent"


def limited(world: World, *, epsilon: float):
    federation = world.coordinator.federation
    policy = federation.policy.model_copy(update={"epsilon": epsilon})
    return replace(world.coordinator, federation=replace(federation, policy=policy))


@pytest.mark.parametrize("mechanism", ["gaussian", "local_gaussian"])
def test_rule_18_a_training_that_fails_shows_outwardly_in_nothing(mechanism):
    well, ill = client_world(mechanism), client_world(mechanism)
    ill.works["a"].fails_with = RuntimeError("kanarienvogel")

    said = [take_part(world, "a") for world in (well, ill)]

    assert said[0] == said[1]
    manifests = [
        read_document(world.store, keys.manifest("tiny", 1, "a"), UpdateManifest)
        for world in (well, ill)
    ]
    own = {"payload_sha256", "signature"}
    assert manifests[0].model_dump(exclude=own) == manifests[1].model_dump(exclude=own)
    assert sorted(well.store.list("campaigns/")) == sorted(ill.store.list("campaigns/"))
    assert not any(b"kanarienvogel" in ill.store.get(key) for key in ill.store.list(""))
    sent = flat(uploaded(ill, "a"))
    if mechanism == "gaussian":
        assert not sent.any()
    else:
        require_normal(sent, stddev=1.5 * C)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e30], ids=["small", "large", "huge"])
def test_rule_24_a_raw_update_is_never_longer_than_the_clip_norm(size):
    world = client_world(size=size)

    take_part(world, "a")

    sent = uploaded(world, "a")
    assert l2_norm(sent) <= C
    np.testing.assert_allclose(flat(sent), clipped(world.works["a"].delta), rtol=2e-6, atol=1e-12)


def test_rule_24_the_release_is_the_mean_over_planned_sites_plus_noise_of_its_event():
    world = client_world()

    outcome = run_round(world)

    mean = sum(clipped(world.works[site].delta) for site in "abc") / 3
    noise = flat(read_release(world.store, "tiny", 1)) - mean
    # Balle and Wang's sigma on the sum is z C, so on the mean over three planned sites z C / 3.
    require_normal(noise, stddev=1.5 * C / 3)
    assert outcome.noise_stddev == pytest.approx(1.5 * C / 3)
    assert outcome.sensitivity == pytest.approx(C / 3)


def test_rule_24_a_site_that_does_not_come_is_a_zero_in_the_same_mean():
    world = client_world()
    for site in "ab":
        take_part(world, site)

    outcome = finish(world)

    mean = sum(clipped(world.works[site].delta) for site in "ab") / 3
    require_normal(flat(read_release(world.store, "tiny", 1)) - mean, stddev=1.5 * C / 3)
    assert outcome.contributors == ("a", "b")
    assert outcome.noise_stddev == pytest.approx(1.5 * C / 3)


def test_rule_24_a_site_that_sends_more_than_its_bound_is_cut_to_it():
    world = client_world()
    honest = uploaded_by_cheat(world, "a", factor=1000.0)
    for site in "bc":
        take_part(world, site)

    outcome = finish(world)

    mean = (honest + sum(clipped(world.works[site].delta) for site in "bc")) / 3
    assert outcome.status == "released"
    require_normal(flat(read_release(world.store, "tiny", 1)) - mean, stddev=1.5 * C / 3)


def uploaded_by_cheat(world: World, site: str, *, factor: float) -> np.ndarray:
    """Upload a signed update ``factor`` times too long; return what may count of it."""
    take_part(world, site)
    key = keys.payload("tiny", 1, site)
    direction = uploaded(world, site)
    long = {name: (tensor * factor).astype(np.float32) for name, tensor in direction.items()}
    payload = salted(Float32().encode(long))
    manifest = read_document(world.store, keys.manifest("tiny", 1, site), UpdateManifest)
    changed = manifest.model_copy(update={"payload_sha256": sha256_hex(payload)})
    for name, data in (
        (key, payload),
        (keys.manifest("tiny", 1, site), to_bytes(sign(changed, world.sites[site].key))),
    ):
        world.store.discard(name)
        world.store.put_once(name, data)
    return clipped(long)


def test_rule_24_local_noise_is_added_to_the_update_before_the_codec():
    world = client_world("local_gaussian")

    run_round(world)

    noises = {s: flat(uploaded(world, s)) - clipped(world.works[s].delta) for s in "abc"}
    for noise in noises.values():
        require_normal(noise, stddev=1.5 * C)
    n = len(noises["a"])
    for one, other in ("ab", "ac", "bc"):
        correlation = float(np.corrcoef(noises[one], noises[other])[0, 1])
        assert abs(correlation) < (Z + 1) / math.sqrt(n)


def told(world: World) -> dict[str, object]:
    """Everything the coordinator writes about a round, but what is made of noised tensors."""
    charge = read_document(world.store, keys.charge("tiny", 1), RoundCharge)
    collected = read_document(world.store, keys.collected("tiny", 1), Collected)
    answers = {s: a.model_dump(exclude={"manifest_sha256"}) for s, a in collected.answers.items()}
    statement = world.store.get(keys.federation_budget("tiny", 1))
    return {
        "charge": charge.model_dump(),
        "answers": answers,
        "statement": len(statement),
        "keys": [key for key in world.store.list("") if "/adapters/" not in key],
        "sizes": {
            key: len(world.store.get(key))
            for key in world.store.list("campaigns/tiny/rounds/")
            if not key.endswith("manifest.json")
        },
    }


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e6], ids=["zero", "tiny", "huge"])
def test_rule_25_nothing_but_noised_tensors_depends_on_an_update(size, caplog):
    caplog.set_level(logging.DEBUG)
    spoken = []
    worlds = [client_world(), client_world(size=size)]
    for world in worlds:
        caplog.clear()
        outcome = run_round(world)
        spoken.append(
            (
                [record.getMessage() for record in caplog.records],
                outcome.model_dump(exclude={"result_hash", "base_hash"}),
            )
        )

    assert spoken[0] == spoken[1]
    assert told(worlds[0]) == told(worlds[1])


def test_rule_25_no_norm_cosine_or_share_is_written_anywhere(caplog):
    caplog.set_level(logging.DEBUG)
    world = client_world()
    run_round(world)

    written = [world.store.get(key) for key in world.store.list("") if key.endswith(".json")]
    text = b"\n".join([*written, *(r.getMessage().encode() for r in caplog.records)])
    vectors = {site: flat(world.works[site].delta) for site in "abc"}
    mean = sum(clipped(world.works[site].delta) for site in "abc") / 3
    norms = {site: float(np.linalg.norm(v)) for site, v in vectors.items()}
    length = float(np.linalg.norm(mean))
    cosines = [float(v @ mean) / norms[site] / length for site, v in vectors.items()]
    figures = [*norms.values(), length, *cosines]
    for figure in figures:
        assert f"{abs(figure):.4g}".encode() not in text


def test_rule_26_raw_updates_are_gone_at_the_outcome_and_manifests_stay():
    world = client_world()
    for site in "abc":
        take_part(world, site)
    raw = {site: world.store.get(keys.payload("tiny", 1, site)) for site in "abc"}

    finish(world)

    kept = {key: world.store.get(key) for key in world.store.list("")}
    for site in "abc":
        assert is_buried(world.store, keys.payload("tiny", 1, site))
        assert keys.manifest("tiny", 1, site) in kept
        for value in kept.values():
            assert raw[site] not in value
            assert raw[site][SALT_BYTES:] not in value


def test_rule_26_a_round_without_a_release_leaves_no_raw_update_either():
    world = client_world(cohort={"quorum": 3})
    take_part(world, "a")

    outcome = finish(world)

    assert outcome.status == "skipped"
    assert is_buried(world.store, keys.payload("tiny", 1, "a"))


def test_rule_26_a_manifest_is_a_commitment_that_no_guess_of_the_update_opens():
    worlds = [client_world() for _ in range(2)]
    for world in worlds:
        take_part(world, "a")

    first, second = (
        read_document(world.store, keys.manifest("tiny", 1, "a"), UpdateManifest)
        for world in worlds
    )
    plain = Float32().encode(uploaded(worlds[0], "a"))
    assert first.payload_sha256 != second.payload_sha256
    assert sha256_hex(plain) not in {first.payload_sha256, second.payload_sha256}
    assert first.norm_bound == C


def test_rule_26_payloads_of_all_updates_have_one_length():
    lengths = set()
    for size in (0.0, 1e-9, 1.0, 1e9):
        world = client_world(size=size)
        take_part(world, "a")
        lengths.add(len(world.store.get(keys.payload("tiny", 1, "a"))))

    assert len(lengths) == 1


@pytest.mark.parametrize("field", ["buffer", "staleness", "asynchronous"])
def test_rule_27_buffered_rounds_are_unknown_to_a_campaign(field):
    with pytest.raises(ValueError, match=field):
        campaign_of(privacy={"client": CLIENT | {"mechanism": "gaussian"}}, **{field: {"size": 2}})


@pytest.mark.parametrize("mechanism", ["gaussian", "local_gaussian"])
def test_rule_28_frozen_factors_get_no_noise_and_stay_public(mechanism):
    world = client_world(mechanism, rule="ffa_lora")
    initial = read_state(world.store, world.assembly.campaign, plan_of(world).base_hash).tensors()

    outcome = run_round(world)

    after = read_state(world.store, world.assembly.campaign, outcome.result_hash).tensors()
    frozen = sorted(set(initial) - set(world.assembly.shapes(1)))
    assert frozen
    assert all("lora_A" in name for name in frozen)
    for name in frozen:
        np.testing.assert_array_equal(after[name], initial[name])
    for name in world.assembly.shapes(1):
        assert not np.array_equal(after[name], initial[name])
