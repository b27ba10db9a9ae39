"""Kill it at a named point: each is one function of the real code, in a real process.

The sites' points are of one campaign, the coordinator's of another, a round for each. Whoever was
killed is started again, as a machine does with its services, and dies at its next point.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import sha256_hex
from flows.local_workers import (
    site_environment,
    start_coordinator_worker,
    start_worker,
    start_workers,
)
from flows.processes import stop
from tasks.outgoing import read_outgoing
from tests.e2e.dying import Death, environment_of
from tests.e2e.federation import SITES, Federation
from tests.e2e.test_kill import require_finished_once, submitted_twice

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class AtSite:
    """A death at a site, and what its round must show afterwards.

    ``payloads`` and ``manifests`` are the gateway's answers to each upload, as the site recorded
    them; None is an upload that the site did not live to see answered.
    """

    site: str
    death: Death
    trainings: int = 1
    payloads: Sequence[int | None] = (201,)
    manifests: Sequence[int | None] = (201,)


@dataclass(frozen=True)
class AtCoordinator:
    """A death of the coordinator, and which objects of the round it leaves behind."""

    death: Death
    present: str = ""
    absent: str = ""
    is_in_mlflow: bool = False


AT_SITES = (
    AtSite("site-a", Death("loading", 1)),
    AtSite("site-e", Death("reserved", 1, takes_parent=True)),
    # The one case in which a draw is made twice; the first one never left the process.
    AtSite("site-a", Death("training", 2), trainings=2),
    AtSite("site-e", Death("drawn", 2)),
    AtSite("site-a", Death("half-uploaded", 3, takes_parent=True), payloads=(None, 201)),
    # The gateway has it, so that the second upload is told so.
    AtSite("site-e", Death("payload-uploaded", 3), payloads=(201, 412)),
    # The round has its answer; nothing is left to do.
    AtSite("site-a", Death("manifest-uploaded", 4)),
)
AT_COORDINATOR = (
    AtCoordinator(Death("before-plan", 1), absent="plan.json"),
    AtCoordinator(Death("planned", 2), present="plan.json", absent="collected.json"),
    AtCoordinator(Death("collected", 3), present="collected.json", absent="charge.json"),
    AtCoordinator(Death("charged", 4), present="charge.json", absent="release.safetensors"),
    AtCoordinator(Death("aggregated", 5), present="release.safetensors", absent="outcome.json"),
    AtCoordinator(Death("before-outcome", 6), present="release.safetensors", absent="outcome.json"),
    AtCoordinator(Death("released", 7), present="outcome.json", absent="logged.json"),
    AtCoordinator(
        Death("registered", 8), present="outcome.json", absent="logged.json", is_in_mlflow=True
    ),
)


@dataclass(frozen=True)
class Killed:
    """A campaign whose sites were killed, run to its end."""

    federation: Federation
    campaign_id: str
    digest: str
    notes: Path

    def answers(self, key: str, site: str) -> list[int | None]:
        """The gateway's answers to a site's uploads of an object, which were all the same bytes."""
        home = self.federation.site_home(site)
        sent = [r for r in read_outgoing(home) if r.method == "PUT" and r.key == key]
        stored = sha256_hex(self.federation.store().get(key))
        assert {request.payload_sha256 for request in sent} == {stored}
        return [request.status for request in sent]

    def trainings(self, site: str, round_number: int) -> int:
        """How often a site has begun to train for a round."""
        home = self.federation.site_home(site)
        exchange = f"outbox/exchanges/*/{self.digest}/{round_number:04d}"
        return len(list(home.glob(f"{exchange}/attempts/*.json")))

    def received(self, key: str) -> list[int]:
        """How many bytes of each upload of an object came through the gateway's door."""
        lines = (self.federation.home / "gateway" / "record.jsonl").read_text().splitlines()
        requests = [json.loads(line) for line in lines]
        return [
            request["received"]
            for request in requests
            if request["method"] == "PUT" and request["path"] == f"/store/objects/{key}"
        ]


def start_dying(federation: Federation, site: str, notes: Path) -> None:
    """Start a site's worker that dies at the site's points; one that lives is left alone."""
    deaths = [each.death for each in AT_SITES if each.site == site]
    env = site_environment(federation.stack, site) | environment_of(deaths, notes)
    argv = federation.command("site", "start", "--home", str(federation.site_home(site)))
    start_worker(federation.stack, f"site {site}", argv, env)


def stop_worker(federation: Federation, name: str) -> None:
    if (worker := federation.stack.processes().get(name)) is not None:
        stop(worker)


@pytest.fixture(scope="module")
def killed(federation, tmp_path_factory) -> Killed:
    notes = tmp_path_factory.mktemp("deaths-of-sites")
    file = federation.write_campaign("sites-killed", max_rounds=4, local_steps=1, quorum=2)
    digest = federation.approve(file)
    for site in SITES:
        stop_worker(federation, f"site {site}")
    try:
        command = federation.start("run", str(file), "--home", str(federation.home))
        while command.poll() is None:
            for site in SITES:
                start_dying(federation, site, notes)
            time.sleep(0.5)
    finally:
        for site in SITES:
            stop_worker(federation, f"site {site}")
        start_workers(federation.stack)
    assert command.returncode == 0, command.stderr.read()
    return Killed(federation, "sites-killed", digest, notes)


def test_a_campaign_whose_sites_were_killed_at_every_point_is_finished_once(killed):
    assert {note.name for note in killed.notes.iterdir()} == {e.death.note for e in AT_SITES}
    require_finished_once(killed.federation, killed.campaign_id, killed.digest, n_rounds=4)


@pytest.mark.parametrize("at", AT_SITES, ids=lambda at: at.death.point)
def test_a_site_killed_at_a_point_sends_one_draw_and_the_same_bytes_again(killed, at):
    number = at.death.round
    payload = keys.payload(killed.campaign_id, number, at.site)
    manifest = keys.manifest(killed.campaign_id, number, at.site)

    assert (killed.notes / at.death.note).exists()
    assert killed.trainings(at.site, number) == at.trainings
    assert killed.answers(payload, at.site) == list(at.payloads)
    assert killed.answers(manifest, at.site) == list(at.manifests)


def test_half_an_upload_is_no_object_and_the_whole_one_follows(killed):
    key = keys.payload(killed.campaign_id, 3, "site-a")

    half, whole = killed.received(key)

    assert 0 < half < whole == len(killed.federation.store().get(key))


@contextlib.contextmanager
def dying_coordinator(
    federation: Federation, deaths: Sequence[Death], notes: Path
) -> Iterator[None]:
    """A coordinator's worker whose runs die at these points."""
    stop_worker(federation, "coordinator")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment_of(deaths, notes).items():
            patched.setenv(name, value)
        start_coordinator_worker(federation.stack)
    try:
        yield
    finally:
        stop_worker(federation, "coordinator")
        start_workers(federation.stack)


def test_a_coordinator_killed_at_every_step_finishes_by_running_again(federation, tmp_path):
    file = federation.write_campaign("steps-killed", max_rounds=8, local_steps=1, quorum=2)
    digest = federation.approve(file)
    said = str(file)

    with dying_coordinator(federation, [each.death for each in AT_COORDINATOR], tmp_path):
        for each in AT_COORDINATOR:
            federation.fedloom("run", said, "--home", str(federation.home), expect=1)
            said = "steps-killed"
            require_died_there(federation, said, each, tmp_path)

        require_finished_once(federation, "steps-killed", digest, n_rounds=8)


def require_died_there(
    federation: Federation, campaign_id: str, at: AtCoordinator, notes: Path
) -> None:
    from mlflow import MlflowClient

    prefix = keys.round_prefix(campaign_id, at.death.round)
    left = {key.removeprefix(prefix) for key in federation.store().list(prefix)}
    found = MlflowClient(federation.stack.mlflow_url).search_model_versions(f"name='{campaign_id}'")
    assert (notes / at.death.note).exists()
    assert not at.present or at.present in left
    assert at.absent not in left
    assert (str(at.death.round) in {v.tags["round"] for v in found}) == at.is_in_mlflow


def test_of_two_coordinators_one_is_killed_and_the_other_finishes(federation, tmp_path):
    file = federation.write_campaign("one-of-two-killed", local_steps=1, quorum=2)
    digest = federation.approve(file)

    with dying_coordinator(federation, [Death("aggregated", 1)], tmp_path):
        both = submitted_twice(federation, file)

    assert sorted(run["state_type"] for run in both) == ["COMPLETED", "CRASHED"]
    assert max(run["start_time"] for run in both) < min(run["end_time"] for run in both)
    require_finished_once(federation, "one-of-two-killed", digest)
