"""What a site sends to be enrolled: one signature covers all of it."""

import stat

import pytest

from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import CampaignError
from fl_core.privacy.policy_template import policy_text
from fl_core.updates.signing import generate_key, public_hex, read_key, sign, sign_both
from tasks.certificates import certificate_sha256, make_certificate
from tasks.enrolment import (
    Enrolment,
    NewSite,
    admit,
    make_site,
    read_enrolment,
    write_enrolment,
)
from tasks.gateway_access import TLS_CERTIFICATE, TLS_KEY, GatewayAccess
from tasks.key_change import KeyChange, read_change
from tasks.site_config import SiteConfig, SiteHome


def config_of(site="north"):
    access = GatewayAccess(url="https://127.0.0.1:1")
    return SiteConfig(site=site, data="rows.csv", gateway=access)


@pytest.fixture
def made(tmp_path):
    home = SiteHome(tmp_path / "north")
    make_site(home, NewSite(config_of(), policy_text(epsilon=8.0, delta=1e-5), 1000))
    return home


def test_new_site_has_a_tls_key_of_its_own_and_one_signature_over_all_it_sends(made):
    enrolment = read_enrolment(made.enrolment)

    assert enrolment.signing_key == public_hex(read_key(made.key))
    assert enrolment.certificate == (made.root / TLS_CERTIFICATE).read_text()
    # 1,000 lies nearer to 1,024 than to 512.
    assert enrolment.declared_examples == 1024
    assert stat.S_IMODE((made.root / TLS_KEY).stat().st_mode) == 0o600
    assert b"PRIVATE" not in made.enrolment.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"site": "south"},
        {"declared_examples": 4096},
        {"certificate": None},
        {"identify": "token"},
        {"signing_key": public_hex(generate_key())},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changed_field_breaks_the_signature(made, change):
    enrolment = read_enrolment(made.enrolment)
    made.enrolment.write_bytes(to_bytes(enrolment.model_copy(update=change)))

    with pytest.raises(CampaignError, match="signature does not hold"):
        read_enrolment(made.enrolment)


def test_certificate_put_in_place_of_the_sites_breaks_the_signature(made, tmp_path):
    enrolment = read_enrolment(made.enrolment)
    pem = make_certificate(tmp_path / "x.crt", tmp_path / "x.key", common_name="north")
    made.enrolment.write_bytes(to_bytes(enrolment.model_copy(update={"certificate": pem})))

    with pytest.raises(CampaignError, match="signature does not hold"):
        read_enrolment(made.enrolment)


def test_enrolment_of_an_earlier_fedloom_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "enrol.json"
    file.write_text(f'{{"signing_key": "{"1" * 64}", "site": "north"}}', encoding="utf-8")

    with pytest.raises(CampaignError, match="is not signed") as caught:
        read_enrolment(file)

    assert "fedloom site enrolment" in caught.value.hint


@pytest.mark.parametrize("pem", ["nothing", "-----BEGIN CERTIFICATE-----\nAA\n"], ids=len)
def test_what_is_no_certificate_is_refused_although_signed(tmp_path, pem):
    key, file = generate_key(), tmp_path / "enrol.json"
    enrolment = Enrolment(site="north", signing_key=public_hex(key), certificate=pem)
    file.write_bytes(to_bytes(sign(enrolment, key)))

    with pytest.raises(CampaignError, match="not one PEM certificate"):
        read_enrolment(file)


def test_admitted_site_is_in_the_roster_with_both_keys(made):
    store = MemoryStore()

    roster = admit(store, read_enrolment(made.enrolment))

    entry = roster.entry("north")
    assert entry is not None
    assert entry.signing_key == public_hex(read_key(made.key))
    assert certificate_sha256(str(entry.certificate)) == certificate_sha256(
        (made.root / TLS_CERTIFICATE).read_text()
    )


def declared(site, size):
    key = public_hex(generate_key())
    return Enrolment(site=site, signing_key=key, declared_examples=size)


def test_size_far_above_the_others_is_admitted_only_when_a_person_confirms():
    store = MemoryStore()
    for site, size in (("a", 256), ("b", 512), ("c", 1024)):
        admit(store, declared(site, size))

    # The median of 256, 512 and 1,024 is 512; 16 times that is 8,192.
    admit(store, declared("d", 8192))
    with pytest.raises(CampaignError, match="at most 16 times the others' median of 768"):
        admit(store, declared("evil", 16384))
    roster = admit(store, declared("evil", 16384), is_confirmed=True)

    assert roster.names() == ("a", "b", "c", "d", "evil")


@pytest.mark.parametrize("size", [None, 1 << 40])
def test_size_of_an_enrolled_site_is_not_changed_unseen(size):
    store, north = MemoryStore(), declared("north", 512)
    admit(store, declared("south", 512))
    admit(store, north)
    changed = north.model_copy(update={"declared_examples": size})

    with pytest.raises(CampaignError, match=r"declares (no size any more|1,099,511,627,776)"):
        admit(store, changed)
    roster = admit(store, changed, is_confirmed=True)

    assert roster.entry("north").declared_examples == size


def test_enrolment_written_again_is_the_same_document(made):
    before = made.enrolment.read_bytes()

    write_enrolment(made, config_of(), key=read_key(made.key), declared_examples=1024)

    assert made.enrolment.read_bytes() == before
    assert from_bytes(Enrolment, before, what="enrol.json").signature


def test_site_on_the_coordinators_own_machine_needs_no_certificate(tmp_path):
    config = SiteConfig(
        site="north",
        data="rows.csv",
        prefect_api_url="http://127.0.0.1:4200/api",
        store={"url": tmp_path.as_uri()},
    )
    home = SiteHome(tmp_path / "north")

    enrolment = make_site(home, NewSite(config, policy_text(epsilon=8.0, delta=1e-5)))

    assert enrolment.certificate is None
    assert not (home.root / TLS_KEY).exists()
    assert admit(MemoryStore(), read_enrolment(home.enrolment)).names() == ("north",)


@pytest.mark.parametrize(
    "other_text",
    [
        lambda pem: "\n" + pem,
        lambda pem: "from north\n" + pem,
        lambda pem: pem.replace("\n", "\r\n"),
        lambda pem: pem.replace("\n", "\n\n", 2),
    ],
    ids=["line-before", "text-before", "crlf", "line-within"],
)
def test_certificate_in_another_text_cannot_be_enrolled_or_changed_to(made, tmp_path, other_text):
    # Rosters compare texts, so a second text of one certificate would pass for a fresh one.
    pem = other_text((made.root / TLS_CERTIFICATE).read_text())
    key = read_key(made.key)
    enrolment = Enrolment(site="north", signing_key=public_hex(key), certificate=pem)
    change = KeyChange(
        site="north", old_key=public_hex(key), new_key=public_hex(key), certificate=pem
    )
    (tmp_path / "enrol.json").write_bytes(to_bytes(sign(enrolment, key)))
    (tmp_path / "rotation.json").write_bytes(to_bytes(sign_both(change, old_key=key, new_key=key)))

    for read, name in ((read_enrolment, "enrol.json"), (read_change, "rotation.json")):
        with pytest.raises(CampaignError, match="certificate"):
            read(tmp_path / name)
