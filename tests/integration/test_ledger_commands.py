"""A site made, restored from a backup and recovered by the real commands, on a real disk.

The round itself runs in this process over the site that the commands made; its campaign's store is
a folder, its own witness another one.
"""

import json
import shutil

import pytest
from ledger_place import SITE, Place, fedloom
from worlds import FakeWork, campaign_of

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256
from fl_core.artifacts.local import LocalStore
from fl_core.errors import (
    LedgerConflict,
    LedgerCorrupt,
    PolicyRefused,
    WitnessUnavailable,
)
from fl_core.privacy.budget import spend
from fl_core.rounds.release import skip_round
from fl_core.rounds.site_charge import reserve_round
from fl_core.rounds.site_witness import witness_ledgers
from fl_core.updates.outbox import exclusive
from tasks import ledger_recovery
from tasks.site_config import SiteHome, open_site, read_site_config


@pytest.fixture
def place(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nthe pump leaks,yes\nall is well,no\n")
    made = Place(tmp_path)
    made.init()
    return made


def test_restored_site_is_found_refused_recovered_and_goes_on(place):
    place.round(1)
    place.backup()
    place.round(2)
    place.restore()

    broken, said = place.verify()
    with pytest.raises(LedgerCorrupt):
        place.round(3)
    done = json.loads(fedloom("ledger", "recover", "--home", place.home.root, "--json").stdout)[
        "ledgers"
    ][0]
    sound, nothing = place.verify()
    answer, trainings = place.round(3)

    assert "ends at entry 3" in broken["broken"]
    assert "holds entry 4" in broken["broken"]
    assert isinstance(said, LedgerCorrupt)
    assert "ledger recover" in said.hint
    assert (done["imported"], done["charged"]) == ([4, 5], [])
    assert (sound["broken"], nothing) == ("", None)
    assert [w["complaint"] for w in sound["witnesses"]] == ["", ""]
    assert (answer.status, trainings) == ("uploaded", 1)
    site = open_site(place.home, read_site_config(place.home))
    whole = [campaign_noise().event] * 3
    assert spend(site.policy, site.ledger.events()) == spend(site.policy, whole)


def campaign_noise():
    from fl_core.assembly import noise_plan

    return noise_plan(campaign_of(sites=(SITE,)))


def test_deleted_ledger_is_not_made_again_and_comes_back_from_witnesses(place):
    place.round(1)
    shutil.rmtree(place.home.root / "ledger")

    refused = place.init()
    _, said = place.verify()
    fedloom("ledger", "recover", "--home", place.home.root)
    sound, _ = place.verify()

    assert "never made again" in str(refused.error)
    assert "no genesis" in str(said)
    assert [entry["kind"] for entry in sound["entries"]] == ["genesis", "reserve", "commit"]


@pytest.mark.parametrize("words", [(), ("--dataset",), ("--dataset", "--new-rows")], ids=str)
def test_second_genesis_for_rows_that_a_witness_knows_is_refused(place, words):
    place.round(1)
    dataset = open_site(place.home, read_site_config(place.home)).policy.dataset
    named = [
        each for word in words for each in ((word, dataset) if word == "--dataset" else (word,))
    ]

    refused = place.init(*named, home="again")

    assert isinstance(refused.error, PolicyRefused)
    assert dataset in str(refused.error)
    assert "ledger recover" in refused.error.hint
    assert not (place.folder / "again" / "ledger").exists()


def test_other_rows_of_the_same_site_get_a_ledger_when_the_operator_says_so(place):
    place.round(1)

    place.init("--new-rows", home="other")

    other = SiteHome(place.folder / "other")
    assert len(open_site(other, read_site_config(other)).ledger.entries()) == 1


def test_unmounted_witness_is_away_and_no_empty_folder_stands_in_for_it(place):
    place.round(1)
    place.disk.rename(place.disk.with_name("unmounted"))
    place.disk.mkdir()

    with pytest.raises(WitnessUnavailable):
        place.round(2)
    verdict, _ = place.verify()
    place.disk.rmdir()
    place.disk.with_name("unmounted").rename(place.disk)
    answer, _ = place.round(2)

    assert [w["is_away"] for w in verdict["witnesses"]] == [False, True]
    assert answer.status == "uploaded"


@pytest.mark.parametrize(
    ("lost", "kept_rounds", "replaced", "charged"),
    [
        # Two branches of one length: the site's own goes on, the other one's round is charged.
        ([2], [1, 4], [], ["2"]),
        # The witness' branch is longer: it becomes the ledger, in a fresh folder.
        ([2, 3], [1, 2, 3], [4, 5], ["4"]),
    ],
    ids=["own branch goes on", "other branch is longer"],
)
def test_ledger_that_was_written_on_after_a_restore_is_charged_for_both_branches(
    place, lost, kept_rounds, replaced, charged
):
    place.round(1)
    place.backup()
    for number in lost:
        place.round(number)
    place.restore()
    # Both witnesses were away at the restore, and the operator prepared empty ones in their place.
    kept, copies = place.disk.with_name("kept"), place.folder / "store" / "witness"
    place.disk.rename(kept)
    copies.rename(place.folder / "copies-kept")
    fedloom("site", "witness", "--home", place.home.root)
    place.round(4)
    shutil.rmtree(place.disk)
    kept.rename(place.disk)

    broken, _ = place.verify()
    done = json.loads(fedloom("ledger", "recover", "--home", place.home.root, "--json").stdout)[
        "ledgers"
    ][0]
    sound, nothing = place.verify()
    answer, _ = place.round(5)

    assert "is another one at witness" in broken["broken"]
    assert done["replaced"] == replaced
    assert [each.split("/")[1] for each in done["charged"]] == charged
    assert [e["round"] for e in sound["entries"] if e["kind"] == "reserve"] == kept_rounds
    assert nothing is None
    assert answer.status == "uploaded"
    aside = list(place.home.root.glob("ledger-set-aside-*"))
    assert len(aside) == bool(replaced)


def test_session_takes_back_the_charge_of_a_closed_round_that_it_never_trained_for(place):
    session, plan = place.session(), place.plan(1)
    site = open_site(place.home, read_site_config(place.home))
    reserve_round(site, session.assembly, plan, plan_sha256=document_sha256(plan))
    charged = site.ledger.events()

    session.settle()
    before_the_end = site.ledger.events()
    skip_round(session.assembly, session.store, plan, reason="too few updates", now=plan.deadline)
    session.settle()
    session.settle()

    assert (len(charged), len(before_the_end), site.ledger.events()) == (1, 1, [])
    verdict, nothing = place.verify()
    assert [entry["kind"] for entry in verdict["entries"]] == ["genesis", "reserve", "void"]
    assert nothing is None


def test_site_init_warns_of_a_witness_on_the_ledgers_own_disk(place):
    said = place.init("--new-rows", home="other").stderr

    assert "same file system" in said


def test_site_without_a_witness_of_its_own_is_told_at_once(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,yes\n")

    said = fedloom(
        *("site", "init", SITE, "--data", tmp_path / "rows.csv", "--epsilon", 8, "--delta", 1e-5),
        *("--store", f"file://{tmp_path}/store", "--home", tmp_path / "site"),
    ).stderr

    assert "names 1 witnesses" in said
    assert "[[witness]]" in said


def test_witness_folder_holds_every_entry_under_the_sites_name(place):
    place.round(1)

    dataset = open_site(place.home, read_site_config(place.home)).policy.dataset
    held = LocalStore(place.disk).list(keys.witness(SITE, dataset, "row"))

    assert [key.rsplit("/", 1)[1] for key in held] == ["000001.json", "000002.json", "000003.json"]


def test_ledger_of_the_whole_site_that_was_deleted_is_not_begun_anew(place):
    with place.home.policy.open("a") as policy:
        policy.write("[client]\nepsilon = 4.0\ndelta = 1e-2\n")
    site = open_site(place.home, read_site_config(place.home))
    witness_ledgers(site)
    genesis = site.client_ledger.entries()
    shutil.rmtree(place.home.root / "client-ledger")

    with pytest.raises(LedgerCorrupt, match="two different entries 1"):
        witness_ledgers(open_site(place.home, read_site_config(place.home)))
    fedloom("ledger", "recover", "--home", place.home.root)
    again = open_site(place.home, read_site_config(place.home))

    assert again.client_ledger.entries() == genesis
    witness_ledgers(again)


def test_recovery_that_was_interrupted_is_run_again(place, monkeypatch):
    place.round(1)
    place.backup()
    place.round(2)
    place.restore()
    with monkeypatch.context() as patch:
        patch.setattr(ledger_recovery, "append_missing", _power_cut)
        with pytest.raises(PowerCut):
            fedloom("ledger", "recover", "--home", place.home.root)

    done = json.loads(fedloom("ledger", "recover", "--home", place.home.root, "--json").stdout)[
        "ledgers"
    ][0]
    again, trainings = place.round(2)

    assert done["imported"] == [4, 5]
    assert (again.status, trainings) == ("declined", 0)


def test_recovery_asks_about_a_campaign_that_nothing_shows_to_be_approved(place):
    place.round(1)
    place.round(2)
    LocalStore(place.folder / "store").put_once(keys.campaign("made-up"), b"{}")
    # The reserve of round 2, in the ledger and at both witnesses.
    lost = list(place.folder.rglob("000004.json"))
    for each in lost:
        each.unlink()

    asked = fedloom("ledger", "recover", "--home", place.home.root)
    unchanged, _ = place.verify()
    words = ("--never-approved", "made-up", "--home", place.home.root, "--json")
    (done,) = json.loads(fedloom("ledger", "recover", *words).stdout)["ledgers"]
    sound, _ = place.verify()

    assert len(lost) == 3
    assert isinstance(asked.error, PolicyRefused)
    assert "made-up" in str(asked.error)
    assert "entry 4 is missing" in unchanged["broken"]
    assert [each.rpartition("/")[2] for each in done["charged"]] == ["2"]
    assert sound["broken"] == ""


class PowerCut(BaseException):
    """The machine stops here; no handler of the product may catch it."""


def _power_cut(*_):
    raise PowerCut


OTHER_MODEL = {"base_model": {"name": "another-base", "sha256": "e" * 64}}


@pytest.mark.parametrize(
    "changes",
    [{"id": "renamed"}, {"id": "other-model"} | OTHER_MODEL],
    ids=["renamed campaign", "new model"],
)
def test_rule_10_new_names_models_rows_and_enrolments_keep_the_old_spend(place, changes):
    place.round(1)
    with (place.folder / "rows.csv").open("a") as rows:
        rows.write("a row of next year,yes\n")
    refused = place.init()
    place.round(1, **changes)

    site = open_site(place.home, read_site_config(place.home))
    assert "never made again" in str(refused.error)
    event = campaign_noise().event
    assert site.ledger.events() == [event, event]
    assert spend(site.policy, site.ledger.events()).epsilon > spend(site.policy, [event]).epsilon


def test_session_of_a_restored_site_declines_at_once_and_says_why_in_its_log_only(place, caplog):
    place.round(1)
    place.backup()
    place.round(2)
    place.restore()
    plan = place.plan(3)
    session = place.session(FakeWork({}))

    answer = session.answer(plan)

    assert answer == "declined"
    declined = session.store.get(keys.declined("tiny", 3, SITE))
    assert b"no_update" in declined
    assert b"rolled" not in declined
    assert "rolled back" in caplog.text


def test_recovery_waits_for_no_running_session(place):
    place.round(1)
    with exclusive(place.home.root / "outbox.lock"):
        ended = fedloom("ledger", "recover", "--home", place.home.root)

    assert isinstance(ended.error, LedgerConflict)
