"""Who is enrolled: certificates of a roster, and how a newer roster is noticed."""

import asyncio
from datetime import UTC, datetime

import pytest

from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.roster import Roster, RosterEntry, enrol, revoke
from fl_core.errors import StoreUnavailable
from flows.gateway.members import Members, RosterWatch
from tasks.certificates import certificate_sha256, make_certificate

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    return {
        name: make_certificate(folder / f"{name}.crt", folder / f"{name}.key", common_name=name)
        for name in ("north", "south")
    }


def entry(name, pem, **changes):
    # No two sites may have one key, so it is made of the name.
    return RosterEntry(
        site=name,
        signing_key=name.encode().hex().ljust(64, "0"),
        certificate=pem,
        since=NOW,
        **changes,
    )


def test_certificate_leads_to_its_entry(pems):
    members = Members.of(Roster(version=1, entries=tuple(entry(n, p) for n, p in pems.items())))

    assert members.by_certificate[certificate_sha256(pems["north"])].site == "north"
    assert members.certificates() == list(pems.values())


@pytest.mark.parametrize("order", [1, -1])
def test_living_entry_counts_before_a_withdrawn_one_of_the_same_certificate(pems, order):
    gone = entry("north", pems["north"], revoked=NOW)
    living = entry("north", pems["north"])
    members = Members.of(Roster(version=1, entries=(gone, living)[::order]))

    assert members.by_certificate[certificate_sha256(pems["north"])] == living


def test_withdrawn_certificate_is_still_known_so_that_it_can_be_refused_by_name(pems):
    gone = entry("north", pems["north"], revoked=NOW)
    members = Members.of(Roster(version=1, entries=(gone,)))

    assert members.by_certificate[certificate_sha256(pems["north"])].revoked == NOW


def test_entry_with_a_certificate_that_is_none_does_not_stop_the_others(pems):
    broken = entry("south", "-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    members = Members.of(Roster(version=1, entries=(broken, entry("north", pems["north"]))))

    assert members.certificates() == [pems["north"]]


@pytest.mark.parametrize("revoked", [None, NOW], ids=["living", "withdrawn"])
@pytest.mark.parametrize("before", ["", "\n"], ids=["same-text", "other-text"])
def test_certificate_of_another_site_is_no_members(pems, revoked, before):
    first = entry("north", pems["north"], revoked=revoked)
    thief = entry("south", before + pems["north"])

    members = Members.of(Roster(version=2, entries=(first, thief)))

    assert members.by_certificate == {certificate_sha256(pems["north"]): first}
    assert members.certificates() == [pems["north"]]


class CountingStore(MemoryStore):
    def __init__(self):
        super().__init__()
        self.lists = 0
        self.is_away = False

    def list(self, prefix):
        self.lists += 1
        if self.is_away:
            raise StoreUnavailable("away")
        return super().list(prefix)


def test_requests_at_one_time_share_one_look_at_the_store(pems):
    store, changes = CountingStore(), []
    enrol(store, entry("north", pems["north"]))
    store.lists = 0

    async def ask():
        watch = RosterWatch(store, changes.append)
        await asyncio.gather(*(watch.fresh(max_age_s=60) for _ in range(50)))
        return watch.members

    members = asyncio.run(ask())

    assert store.lists == 1
    assert members.roster.names() == ("north",)
    assert len(changes) == 1


def test_request_that_asks_for_the_newest_roster_gets_one_that_is_newer_than_itself(pems):
    store = CountingStore()
    enrol(store, entry("north", pems["north"]))

    async def ask():
        watch = RosterWatch(store, lambda _: None)
        before = (await watch.fresh(max_age_s=0)).roster.names()
        await asyncio.to_thread(revoke, store, "north", now=NOW, reason="test")
        return before, (await watch.fresh(max_age_s=0)).roster.names()

    assert asyncio.run(ask()) == (("north",), ())


def test_store_that_is_away_is_an_error_of_the_request_and_not_an_empty_roster(pems):
    store = CountingStore()
    store.is_away = True

    async def ask():
        await RosterWatch(store, lambda _: None).fresh()

    with pytest.raises(StoreUnavailable):
        asyncio.run(ask())
