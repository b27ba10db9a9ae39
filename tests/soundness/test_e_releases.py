"""SOUNDNESS under ClientDp: noise in its space, and updates without it (rules 24, 25, 26)."""

import logging
import math

import numpy as np
import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, sha256_hex, to_bytes
from fl_core.artifacts.store import is_buried
from fl_core.codecs.float32 import Float32
from fl_core.rounds.documents import Collected, RoundCharge
from fl_core.rounds.released_delta import read_release
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.payload import SALT_BYTES, salted
from fl_core.updates.signing import sign
from fl_core.updates.update import l2_norm
from tests.known_updates import (
    C,
    Z,
    client_world,
    clipped,
    flat,
    require_normal,
    run_round,
    uploaded,
)
from tests.round_steps import finish, take_part
from tests.worlds import World


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
