"""Whole sites protected, over real servers: the example `examples/client_level` with two crews.

A federation of its own, because a campaign with the coordinator's noise alone spends the sites'
ledgers of rows for good. First the sites add the noise, then the coordinator.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.below import Below
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import is_buried
from fl_core.codecs.float32 import Float32
from fl_core.errors import StoreUnavailable
from fl_core.privacy.policy_documents import ClientLimit
from fl_core.rounds.documents import RoundCharge
from fl_core.rounds.released_delta import read_release
from fl_core.updates.manifest import UpdateManifest
from flows.local_sites import site_home
from flows.local_workers import environment, evaluation_environment
from tasks.settings import open_store, read_settings
from tasks.site_config import read_site_config, site_settings
from tests.e2e.examples import EXAMPLES, example_federation
from tests.e2e.federation import Federation, wait_until
from tests.e2e.traces import database_texts, objects_of, outside_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLE = EXAMPLES / "client_level"
SITES = ("crew-01", "crew-02")
ROUNDS = 2
LOCAL, CENTRAL = "crews-local", "crews-central"
# Two-sided standard normal quantile at a false alarm rate of 1e-6.
Z = 4.892


@pytest.fixture(scope="module")
def crews() -> Iterator[Federation]:
    from fl_core.privacy.policy_template import policy_text

    limit = ClientLimit(epsilon=8.0, delta=1e-3)
    policy = policy_text(epsilon=10_000.0, delta=1e-5, client=limit)
    with example_federation("client_level", SITES, policy=policy) as federation:
        yield federation


def campaign_file(federation: Federation, name: str) -> Path:
    """Return an example's campaign for the two crews, and fewer rounds and steps."""
    text = (EXAMPLE / f"{name}.toml").read_text()
    start, end = text.index("sites = ["), text.index("]\n") + 2
    text = text[:start] + 'sites = ["crew-01", "crew-02"]\n' + text[end:]
    for old, new in (
        ("max_rounds = 5", f"max_rounds = {ROUNDS}"),
        ("local_steps = 4", "local_steps = 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    file = federation.folder / f"{name}.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def local(crews) -> dict:
    file = campaign_file(crews, "local")
    crews.approve(file)
    return crews.run(str(file))


@pytest.fixture(scope="module")
def central(crews, local) -> dict:
    for site in SITES:
        policy = crews.site_home(site) / "policy.toml"
        text = policy.read_text()
        changed = text.replace("[client]\nepsilon = 8.0\ndelta = 0.001\n", "").replace(
            "without_guarantee = false", "without_guarantee = true"
        )
        assert changed.count("[client]") == text.count("[client]") - 1
        policy.write_text(changed)
    file = campaign_file(crews, "central")
    crews.approve(file)
    return crews.run(str(file))


def flat(tensors) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


def require_noise(values: np.ndarray, *, stddev: float, signal: float) -> None:
    """Check a sample variance; ``signal`` is the largest norm of what the noise was added to."""
    n = len(values)
    measured = float(np.sum(values**2)) / n / stddev**2
    slack = Z * math.sqrt(2 / n) + (signal / stddev) ** 2 / n + 2 * Z * signal / stddev / n
    assert abs(measured - 1) < slack


def noise_multiplier(crews: Federation, campaign_id: str) -> float:
    charge = read_document(crews.store(), keys.charge(campaign_id, 1), RoundCharge)
    if charge.federation is not None:
        return charge.federation.event.noise_multiplier
    return charge.clients[SITES[0]].event.noise_multiplier


def test_local_noise_is_charged_at_every_site_twice(local):
    assert local["end"] == "finished"
    for number, item in enumerate(local["rounds"], start=1):
        assert item["outcome"]["contributors"] == list(SITES)
        assert item["outcome"]["noise_stddev"] is None
        for budget in item["budgets"].values():
            assert budget["unit"] == "row"
            assert budget["client"]["accountant"] == "gdp"
            assert budget["client"]["rounds_left"] == ROUNDS - number
    spent = [r["budgets"]["crew-01"]["client"]["epsilon"] for r in local["rounds"]]
    assert 0 < spent[0] < spent[1] <= 8.0


def test_noise_of_what_a_site_uploads_is_that_of_its_charge(crews, local):
    store, multiplier = crews.store(), noise_multiplier(crews, LOCAL)

    uploads = {
        (site, number): flat(Float32().decode(store.get(keys.payload(LOCAL, number, site))))
        for site in SITES
        for number in range(1, ROUNDS + 1)
    }

    for values in uploads.values():
        require_noise(values, stddev=multiplier * 0.5, signal=0.5)
    assert len({values.tobytes() for values in uploads.values()}) == 2 * ROUNDS


def test_another_campaign_finds_the_sites_budget_spent(crews, local):
    text = campaign_file(crews, "local").read_text().replace(LOCAL, "crews-more")
    file = crews.folder / "more.toml"
    file.write_text(text)
    crews.approve(file)

    status = crews.run(str(file))

    assert status["end"] == "budget spent"
    assert {a["reason"] for a in status["rounds"][0]["answers"].values()} == {"budget"}


def test_campaign_that_the_federation_cannot_charge_is_refused_before_it_runs(crews, local):
    text = campaign_file(crews, "central").read_text().replace(CENTRAL, "crews-weak")
    file = crews.folder / "weak.toml"
    file.write_text(text.replace("delta = 1e-3", "delta = 1e-2"))

    failed = crews.fedloom("run", str(file), "--home", str(crews.home), expect=2)

    assert "the federation's delta is 0.001" in failed.stderr
    assert keys.campaign("crews-weak") not in crews.store().list("campaigns/")


def test_central_noise_is_charged_to_the_federation(crews, central):
    shown = crews.json("federation", "show", "--home", str(crews.home))

    assert central["end"] == "finished"
    kinds = [entry["kind"] for entry in shown["entries"]]
    assert kinds == ["genesis", "reserve", "commit", "reserve", "commit"]
    stated = [item["federation"]["epsilon"] for item in central["rounds"]]
    assert stated == sorted(stated)
    assert shown["epsilon"] == pytest.approx(stated[-1])
    assert 7.99 < stated[-1] <= 8.0
    assert [item["budgets"] for item in central["rounds"]] == [{}, {}]


def test_noise_of_a_release_is_that_of_its_charge(crews, central):
    store, multiplier = crews.store(), noise_multiplier(crews, CENTRAL)

    for item in central["rounds"]:
        values = flat(read_release(store, CENTRAL, item["round"]))
        require_noise(values, stddev=multiplier * 0.5 / 2, signal=0.5)
        assert item["outcome"]["noise_stddev"] == pytest.approx(multiplier * 0.5 / 2)
        assert item["outcome"]["sensitivity"] == pytest.approx(0.25)


def test_raw_updates_are_nowhere_outside_the_sites_after_their_round(crews, central):
    raw = raw_updates(crews)
    assert len(raw) == 2 * ROUNDS
    for number in range(1, ROUNDS + 1):
        for site in SITES:
            assert is_buried(crews.store(), keys.payload(CENTRAL, number, site))

    outside = [
        *objects_of(crews.stack),
        *database_texts(crews.stack),
        # The store's own disk: the server frees deleted bytes when it compacts its volumes.
        *((name, data) for name, data in outside_files(crews.home) if not name.startswith("s3/")),
    ]

    # A slice of each: long enough to be unique, short enough to be found in part.
    found = [
        name
        for name, data in outside
        if not name.startswith(("witnesses/", "run/site-crew"))
        and any(each[2000:2064] in data for each in raw)
    ]
    assert found == []


def raw_updates(crews: Federation) -> list[bytes]:
    """Return what the central campaign's updates were, from the sites' own outboxes."""
    store = crews.store()
    found = []
    for site in SITES:
        for number in range(1, ROUNDS + 1):
            manifest = read_document(store, keys.manifest(CENTRAL, number, site), UpdateManifest)
            (path,) = crews.site_home(site).glob(f"outbox/**/files/{manifest.payload_sha256}")
            found.append(path.read_bytes())
    return found


def test_a_site_reads_no_update_of_another_and_the_federations_ledger(crews, central):
    home = site_home(crews.home, "crew-02")
    own = open_store(site_settings(home, read_site_config(home)))

    for campaign_id in (LOCAL, CENTRAL):
        with pytest.raises(StoreUnavailable):
            own.get(keys.payload(campaign_id, 1, "crew-01"))
        with pytest.raises(StoreUnavailable):
            own.get(keys.manifest(campaign_id, 1, "crew-01"))
    assert own.get(keys.manifest(LOCAL, 1, "crew-02"))
    ledger = Below(own, keys.FEDERATION)
    assert ledger.get(keys.ledger_entry(1))
    with pytest.raises(StoreUnavailable):
        ledger.put_once(keys.ledger_entry(99), b"{}")


def test_the_evaluation_worker_reads_releases_and_no_sites_update(crews, central):
    own = open_store(read_settings(evaluation_environment(crews.stack)))

    assert own.get(keys.outcome(CENTRAL, 1))
    assert central["rounds"][0]["evaluation"]["accuracy"] >= 0
    for campaign_id in (LOCAL, CENTRAL):
        with pytest.raises(StoreUnavailable, match="AccessDenied"):
            own.get(keys.payload(campaign_id, 1, "crew-01"))
    with pytest.raises(StoreUnavailable, match="AccessDenied"):
        own.put_once(keys.outcome(CENTRAL, 99), b"{}")


def test_sites_keep_copies_of_the_federations_ledger(crews, central):
    copies = {site: crews.site_home(site) / "federation-witness" / "entries" for site in SITES}

    for site, folder in copies.items():
        # Genesis, and reserve and commit of both rounds, the last ones when the session ends.
        wait_until(
            lambda folder=folder: len(list(folder.glob("*.json"))) == 1 + 2 * ROUNDS,
            what=f"all entries at {site}",
        )


def test_mlflow_and_prefect_show_what_whole_sites_have_spent(crews, local, central):
    from mlflow import MlflowClient

    client = MlflowClient(environment(crews.stack)["MLFLOW_TRACKING_URI"])
    for name, status in ((LOCAL, local), (CENTRAL, central)):
        (version,) = (
            v for v in client.search_model_versions(f"name='{name}'") if v.tags["round"] == "2"
        )
        logged = client.get_run(version.run_id).data.metrics["dp/epsilon_client_zero_out"]
        last = status["rounds"][1]
        spent = last["federation"] or last["budgets"]["crew-01"]["client"]
        assert logged == pytest.approx(spent["epsilon"])
    artifacts = crews.prefect("/artifacts/latest/filter", {})
    rows = {a["key"]: a["data"] for a in artifacts}[f"{CENTRAL}-budgets"]
    assert "any site as a whole" in rows


def test_no_figure_of_an_update_without_noise_is_written_outside_the_sites(crews, central):
    vectors = [flat(Float32().decode(raw[32:])) for raw in raw_updates(crews)]
    pairs = [(a, b) for n, a in enumerate(vectors) for b in vectors[n + 1 :]]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
    # A clipped update has norm C, which is public; anything else about it is not.
    norms = [float(np.linalg.norm(v)) for v in vectors if np.linalg.norm(v) < 0.4999]
    figures = [f"{abs(figure):.6g}".encode() for figure in (*cosines, *norms)]
    assert all(len(figure) >= 7 for figure in figures[:1])

    outside = [
        *objects_of(crews.stack),
        *database_texts(crews.stack),
        *((name, data) for name, data in outside_files(crews.home) if not name.startswith("s3/")),
    ]

    found = [name for name, data in outside if any(f in data for f in figures)]
    assert [name for name in found if "crew-" not in name] == []
