"""The coordinator's folder for the federation's ledger: made once, read at every start."""

import shutil
import stat

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.assembly import assemble
from fl_core.errors import CampaignError, LedgerCorrupt, PolicyRefused
from fl_core.privacy.federation import FederationLimits, charge_release
from fl_core.privacy.forecast import with_noise
from fl_core.updates.records import GaussianEvent
from tasks.federation import (
    FederationHome,
    checked_limits,
    federation_document,
    known_federation,
    make_federation,
    open_coordinator,
    read_limits,
)
from tasks.settings import Settings
from tests.snapshots import copy_of
from tests.worlds import campaign_of

LIMITS = FederationLimits(epsilon=12.5, delta=1e-3)
CLIENT = {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "mechanism": "gaussian"}


@pytest.fixture
def home(tmp_path) -> FederationHome:
    return FederationHome(tmp_path / "federation")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def settings_of(home: FederationHome | None) -> Settings:
    return Settings(store_url="s3://fedloom", federation=None if home is None else home.root)


def central():
    return assemble(with_noise(campaign_of(privacy={"client": CLIENT})))


def test_folder_holds_limits_as_they_were_given_and_a_key_that_nobody_else_reads(home, store):
    make_federation(home, limits=LIMITS, store=store)

    assert read_limits(home) == LIMITS
    assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
    assert store.list(keys.FEDERATION) == [
        keys.FEDERATION + keys.ledger_entry(1),
        keys.FEDERATION_IDENTITY,
    ]


def test_ledger_is_made_once(home, store):
    make_federation(home, limits=LIMITS, store=store)
    before = home.limits.read_text()

    with pytest.raises(CampaignError, match="made already"):
        make_federation(home, limits=FederationLimits(epsilon=99.0, delta=1e-3), store=store)

    assert home.limits.read_text() == before


def test_store_with_a_ledger_takes_no_second_one_from_another_folder(home, store, tmp_path):
    make_federation(home, limits=LIMITS, store=store)
    other = FederationHome(tmp_path / "other")

    with pytest.raises(PolicyRefused, match="holds another key or none"):
        make_federation(other, limits=LIMITS, store=store)

    assert not other.root.exists()


@pytest.mark.parametrize("made", ["key", "key and limits", "all but the first entry"])
def test_half_made_ledger_is_finished_by_making_it_again(home, store, made):
    make_federation(home, limits=LIMITS, store=store)
    store.discard(keys.FEDERATION + keys.ledger_entry(1))
    if made != "all but the first entry":
        store.discard(keys.FEDERATION_IDENTITY)
    if made == "key":
        home.limits.unlink()

    again = make_federation(home, limits=LIMITS, store=store)

    assert [entry.kind for entry in again.ledger.entries()] == ["genesis"]


def test_coordinator_charges_what_its_folder_stands_for(home, store):
    make_federation(home, limits=LIMITS, store=store)

    federation = open_coordinator(central(), settings_of(home), store).federation

    assert (federation.policy.epsilon, federation.policy.delta) == (12.5, 1e-3)
    assert federation.policy.unit == "site"


def test_changed_limits_count_from_the_next_start(home, store):
    make_federation(home, limits=LIMITS, store=store)
    home.limits.write_text("epsilon = 3\ndelta = 1e-3\n")

    federation = open_coordinator(central(), settings_of(home), store).federation

    assert federation.policy.epsilon == 3.0


def charged(home, store, number):
    """Charge one round as the coordinator does, which opens its ledger at every step."""
    for _ in ("charge", "release"):
        federation = open_coordinator(central(), settings_of(home), store).federation
        charge_release(
            federation,
            campaign_digest="c" * 64,
            round_number=number,
            plan_sha256="a" * 64,
            event=GaussianEvent(noise_multiplier=1.5),
        )
    return federation


def test_older_store_gets_its_charges_back_when_the_coordinator_opens_it(home, store, caplog):
    make_federation(home, limits=LIMITS, store=store)
    older = copy_of(store)
    charged(home, store, 1)
    charged(home, store, 2)

    federation = open_coordinator(central(), settings_of(home), older).federation

    assert len(federation.ledger.events()) == 2
    assert "got entries back n=2" in caplog.text


def test_store_without_a_ledger_gets_the_old_one_back_instead_of_a_new_one(home, store):
    make_federation(home, limits=LIMITS, store=store)
    charged(home, store, 1)
    empty = MemoryStore()

    with pytest.raises(CampaignError, match="made already"):
        make_federation(home, limits=LIMITS, store=empty)

    assert [empty.get(key) for key in empty.list(keys.FEDERATION)] == [
        store.get(key) for key in store.list(keys.FEDERATION)
    ]


def test_ledger_that_was_written_on_in_an_older_store_is_refused(home, store, tmp_path):
    make_federation(home, limits=LIMITS, store=store)
    older = copy_of(store)
    # The folder was restored as well, to before its first copy, and both went on.
    shutil.copytree(home.root, tmp_path / "older")
    charged(home, store, 1)
    charged(FederationHome(tmp_path / "older"), older, 2)

    with pytest.raises(LedgerCorrupt, match="another one"):
        open_coordinator(central(), settings_of(home), older)


def test_campaign_with_noise_of_the_coordinator_is_refused_without_a_folder(store):
    with pytest.raises(PolicyRefused, match="keeps no ledger to charge it on") as refused:
        open_coordinator(central(), settings_of(None), store)

    assert "fedloom federation init" in refused.value.hint


def test_campaign_with_a_larger_delta_than_the_ledgers_is_refused(home, store):
    make_federation(home, limits=FederationLimits(epsilon=8.0, delta=1e-5), store=store)

    with pytest.raises(PolicyRefused, match="federation's delta is 1e-05"):
        open_coordinator(central(), settings_of(home), store)


def test_other_campaigns_need_no_folder_and_read_none(store, tmp_path):
    nowhere = FederationHome(tmp_path / "nowhere")
    local = CLIENT | {"mechanism": "local_gaussian"}
    for campaign in (campaign_of(), with_noise(campaign_of(privacy={"client": local}))):
        assert open_coordinator(assemble(campaign), settings_of(nowhere), store).federation is None


def test_whoever_only_shows_a_campaign_needs_no_folder(home, store):
    make_federation(home, limits=LIMITS, store=store)

    assert known_federation(central(), settings_of(None), store) is None
    assert known_federation(assemble(campaign_of()), settings_of(home), store) is None
    assert known_federation(central(), settings_of(home), store).policy.epsilon == 12.5


def test_folder_without_its_ledger_in_the_store_is_refused(home, store):
    make_federation(home, limits=LIMITS, store=store)

    with pytest.raises(PolicyRefused, match="has no ledger of the federation"):
        open_coordinator(central(), settings_of(home), MemoryStore())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epsilon = 3", "delta"),
        ("epsilon = -1\ndelta = 1e-3", "epsilon"),
        ("epsilon = 3\ndelta = 1", "delta"),
        ("epsilon = 3\ndelta = 1e-3\nunit = 'row'", "unit"),
        ("epsilon = ", "is not TOML"),
    ],
)
def test_limits_that_are_none_are_refused_with_the_files_name(home, store, text, said):
    make_federation(home, limits=LIMITS, store=store)
    home.limits.write_text(text)

    with pytest.raises(CampaignError, match=said) as refused:
        read_limits(home)

    assert str(home.limits) in str(refused.value)


def test_limits_out_of_range_are_refused_before_anything_is_written():
    with pytest.raises(CampaignError, match="delta"):
        checked_limits(epsilon=8.0, delta=0.0)


def test_document_shows_entries_and_what_they_come_to(home, store):
    federation = make_federation(home, limits=LIMITS, store=store)
    charge_release(
        federation,
        campaign_digest="c" * 64,
        round_number=1,
        plan_sha256="a" * 64,
        event=GaussianEvent(noise_multiplier=1.5),
    )

    document = federation_document(settings_of(home), store)

    # Balle and Wang 2018: sigma 1.5, sensitivity 1, delta 1e-3.
    assert document["epsilon"] == pytest.approx(1.912, abs=1e-3)
    assert (document["epsilon_limit"], document["delta"]) == (12.5, 1e-3)
    assert [entry["kind"] for entry in document["entries"]] == ["genesis", "reserve"]
