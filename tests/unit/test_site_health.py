"""The doctor at a site: a real folder, ledger and witnesses; the campaigns' store is a folder."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner
from worlds import FakeWork, campaign_of

from fl_core.artifacts.content_hash import folder_sha256
from fl_core.artifacts.local import LocalStore
from fl_core.privacy.policy import approve
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.rounds.site_round import client_round
from fl_core.updates.records import GateReport
from flows.cli.main import app
from tasks.enrolment import admit, read_enrolment
from tasks.site_config import SiteHome, open_site, read_site_config
from tasks.site_health import site_checks
from tasks.suite_files import suite_sha256

SITE = "north"
N_ROWS = 137


@dataclass
class Place:
    """A made site that approved a campaign, with the folders around it."""

    folder: Path

    @property
    def home(self) -> SiteHome:
        return SiteHome(self.folder / "site")

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def disk(self) -> Path:
        return self.folder / "other-disk"

    def init(self) -> None:
        rows = "".join(f"the pump leaks {n},{'yes' if n % 2 else 'no'}\n" for n in range(N_ROWS))
        (self.folder / "rows.csv").write_text("text,label\n" + rows)
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        save_file({"w": np.zeros((8, 8), np.float32)}, self.model / "model.safetensors")
        words = (
            *("site", "init", SITE, "--data", self.folder / "rows.csv", "--epsilon", 20),
            *("--delta", 1e-5, "--store", f"file://{self.folder}/store"),
            *("--home", self.home.root, "--witness", self.disk),
        )
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        config = self.home.config.read_text()
        self.home.config.write_text(config + f'\n"tiny-base" = "{self.model}"\n')

    def take_part(self) -> None:
        """Approve a campaign and take part in its first round."""
        store = LocalStore(self.folder / "store")
        campaign = campaign_of(
            sites=(SITE,),
            base_model={"name": "tiny-base", "sha256": folder_sha256(self.model)},
            gate={"name": "labelled-texts", "sha256": suite_sha256("labelled-texts")},
        )
        assembly = open_campaign(store, campaign)
        now = datetime.now(UTC)
        admit(store, read_enrolment(self.home.enrolment))
        approve(self.home.store("approvals"), campaign, now=now)
        plan = open_round(assembly, store, round_number=1, now=now)
        site = open_site(self.home, read_site_config(self.home))
        report = GateReport(suite_sha256=campaign.gate.sha256, passed=True)
        work = FakeWork(assembly.shapes(1), report)
        done = client_round(site, work, assembly=assembly, store=store, plan=plan)
        assert done.status == "uploaded"

    def checks(self):
        return {check.name: check for check in site_checks(self.home)}

    def failing(self):
        return {name: check for name, check in self.checks().items() if check.verdict == "fail"}


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    made.init()
    return made


def test_site_that_takes_part_is_well(place):
    place.take_part()

    checks = place.checks()

    # One disk holds everything in a test, and without a gateway the store is open to the site.
    warned = {name for name, check in checks.items() if check.verdict != "ok"}
    assert warned == {"gateway", f"place of witness folder {place.disk}"}
    assert checks["rows for tiny"].verdict == "ok"
    assert checks["base model tiny-base"].found.endswith(f"as frozen, at {place.model}")
    assert checks["memory for tiny-base"].verdict == "ok"
    # Genesis, reserve, commit.
    assert checks["ledger of unit row"].found == "3 entries hold"


def test_report_tells_neither_rows_nor_their_number_nor_secrets(place):
    place.take_part()
    key = place.home.key.read_text().splitlines()[1]

    told = json.dumps([asdict(check) for check in place.checks().values()])

    assert "pump" not in told
    assert str(N_ROWS) not in told.replace(str(place.folder), "")
    assert key not in told


def test_looking_changes_no_file_of_the_site_or_the_store(place):
    place.take_part()

    def bytes_of():
        return {p: p.read_bytes() for p in place.folder.rglob("*") if p.is_file()}

    before = bytes_of()
    place.checks()

    assert bytes_of() == before


def test_folder_of_a_new_site_is_closed_to_others_whatever_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        made = Place(tmp_path)
        made.init()
    finally:
        os.umask(before)

    folders = [made.home.root, *(path for path in made.home.root.rglob("*") if path.is_dir())]
    assert {path: oct(path.stat().st_mode & 0o077) for path in folders} == dict.fromkeys(
        folders, "0o0"
    )


def test_folder_that_others_may_enter_is_a_warning_with_its_remedy(place):
    place.home.root.chmod(0o755)

    check = place.checks()["folder"]

    # Sizes of files tell how many rows there are; nothing that a round needs is missing.
    assert check.verdict == "warn"
    assert check.remedy == f"chmod 700 {place.home.root}"


def test_key_that_others_may_read_fails_with_its_remedy(place):
    place.home.key.chmod(0o644)

    check = place.failing()["file key.pem"]

    assert "0644" in check.found
    assert check.remedy == f"chmod 600 {place.home.key}"


def test_lost_key_is_named(place):
    place.home.key.unlink()

    assert place.failing()["file key.pem"].found == "is not there"


def test_ledger_that_was_set_back_fails_with_the_way_out(place, tmp_path):
    shutil.copytree(place.home.root / "ledger", tmp_path / "backup")
    place.take_part()
    shutil.rmtree(place.home.root / "ledger")
    shutil.copytree(tmp_path / "backup", place.home.root / "ledger")

    failing = place.failing()

    assert set(failing) == {
        "witness coordinator, unit row",
        f"witness folder {place.disk}, unit row",
    }
    assert all("ledger recover" in check.remedy for check in failing.values())


def test_changed_entry_of_the_ledger_is_named(place):
    place.take_part()
    reserve = sorted((place.home.root / "ledger").rglob("*.json"))[1]
    reserve.write_bytes(reserve.read_bytes().replace(b'"round":1', b'"round":2'))

    assert "ledger of unit row" in place.failing()


def test_witness_that_is_away_fails_because_nothing_is_trained_without_one(place):
    shutil.rmtree(place.disk)

    check = place.failing()[f"witness folder {place.disk}, unit row"]

    assert "is away" in check.found
    assert "fedloom site witness" in check.remedy


def test_another_base_model_than_the_frozen_one_fails(place):
    place.take_part()
    save_file({"w": np.ones((8, 8), np.float32)}, place.model / "model.safetensors")

    check = place.failing()["base model tiny-base"]

    assert "the campaign froze" in check.found


def test_memory_that_the_site_grants_a_session_counts_like_the_machines(place):
    config = place.home.config.read_text()
    # What torch and its like take alone is 0.65 GB.
    place.home.config.write_text(f"memory_gb = 0.5\n{config}")

    check = place.failing()["memory for tiny-base"]

    assert check.found.startswith("0.5 GB free")


def test_rows_that_lost_a_column_fail_for_the_campaign_that_reads_it(place):
    place.take_part()
    (place.folder / "rows.csv").write_text("text,other\nthe pump leaks,yes\n")

    failing = place.failing()

    assert "label" in failing["rows for tiny"].found
    assert "rows" not in failing


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("site.toml", "site = 3", "config"),
        ("policy.toml", "epsilon = 'much'", "policy"),
    ],
)
def test_file_that_cannot_be_read_is_named_with_its_field(file, text, name, place):
    (place.home.root / file).write_text(text)

    failing = place.failing()

    assert file in failing[name].found


@pytest.mark.parametrize(("folder", "name"), [("approvals", "policy"), ("outbox", "ledger")])
def test_folder_that_cannot_be_used_is_a_line_and_no_traceback(folder, name, place):
    shutil.rmtree(place.home.root / folder, ignore_errors=True)
    (place.home.root / folder).write_text("in the way")

    check = place.failing()[name]

    assert folder in check.found
    assert check.remedy


def test_command_finds_a_site_by_its_folder_and_ends_with_1_on_a_failure(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    monkeypatch.delenv("FEDLOOM_HOME", raising=False)
    place.home.key.chmod(0o640)

    ways = ([], ["--site-home", str(place.home.root)], ["--home", str(place.home.root)])
    ended = [CliRunner().invoke(app, ["doctor", "--json", *way]) for way in ways]

    assert [each.exit_code for each in ended] == [1, 1, 1]
    for each in ended:
        report = json.loads(each.stdout)
        assert not report["healthy"]
        assert "file key.pem" in {c["name"] for c in report["checks"] if c["verdict"] == "fail"}
