"""`fedloom site gateway`: a site takes another invite, and keeps everything else."""

import json

import pytest
from typer.testing import CliRunner

from fl_core.artifacts.documents import to_bytes
from fl_core.errors import CampaignError
from flows.cli.main import app
from tasks.certificates import certificate_sha256, make_certificate
from tasks.invite import Invite
from tasks.site_config import SiteHome, read_site_config

OLD, NEW = "https://old.example:8443", "https://new.example:9443"


def invite(folder, name, url):
    """Write an invite with a certificate of its own, and return file and certificate."""
    pem = make_certificate(
        folder / f"{name}.crt", folder / f"{name}.key", common_name="gateway", hosts=["gateway"]
    )
    path = folder / f"{name}.json"
    path.write_bytes(to_bytes(Invite(url=url, certificate=pem)))
    return path, pem


def fedloom(*words, answer=""):
    return CliRunner().invoke(app, ["site", *map(str, words)], input=answer)


def make(folder, *options):
    (folder / "rows.csv").write_text("text,label\na,x\n", encoding="utf-8")
    home = SiteHome(folder / "site")
    made = fedloom(
        *("init", "north", "--data", folder / "rows.csv", "--epsilon", 8, "--delta", "1e-5"),
        *("--home", home.root, "--witness", folder / "witness", *options),
    )
    assert made.exit_code == 0, made.output
    return home


@pytest.fixture
def home(tmp_path):
    return make(tmp_path, "--gateway", invite(tmp_path, "old", OLD)[0])


def contents(home):
    return {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()}


def test_site_takes_the_new_address_and_certificate_and_keeps_all_else(tmp_path, home):
    path, pem = invite(tmp_path, "new", NEW)
    home.config.write_text(home.config.read_text() + "# mine\n")
    before = contents(home)

    taken = fedloom("gateway", "--invite", path, "--home", home.root, "--yes", "--json")

    after = contents(home)
    changed = {each.name for each in after if after[each] != before.get(each)}
    assert (changed, set(after)) == ({"gateway.crt", "site.toml"}, set(before))
    assert (home.root / "gateway.crt").read_text() == pem
    assert home.config.read_text() == before[home.config].decode().replace(OLD, NEW)
    shown = json.loads(taken.stdout)
    assert (shown["changed"], shown["url"], shown["identify"]) == (True, NEW, "certificate")
    assert shown["certificate_sha256"].replace(" ", "") == certificate_sha256(pem)


def test_both_fingerprints_are_shown_and_a_no_changes_nothing(tmp_path, home):
    path, pem = invite(tmp_path, "new", NEW)
    before = contents(home)

    refused = fedloom("gateway", "--invite", path, "--home", home.root, answer="n\n")

    assert isinstance(refused.exception, CampaignError)
    assert contents(home) == before
    said = refused.stderr.replace(" ", "")
    old = certificate_sha256((home.root / "gateway.crt").read_text())
    assert said.index(old) < said.index(certificate_sha256(pem))


def test_invite_that_the_site_has_already_asks_nothing_and_writes_nothing(tmp_path, home):
    before = contents(home)

    same = fedloom("gateway", "--invite", tmp_path / "old.json", "--home", home.root, "--json")

    assert same.exit_code == 0, same.output
    assert json.loads(same.stdout)["changed"] is False
    assert contents(home) == before


def test_site_may_sign_its_requests_from_now_on_and_is_told_to_enrol_again(tmp_path, home):
    words = ("gateway", "--invite", tmp_path / "old.json", "--home", home.root, "--yes")

    signs = fedloom(*words, "--sign-requests")
    kept = fedloom(*words)
    identify = read_site_config(home).gateway.identify
    back = fedloom(*words, "--show-certificate")

    assert "fedloom site enrolment" in signs.stderr
    assert "nothing to change" in kept.stderr
    assert identify == "token"
    assert back.exit_code == 0, back.output
    assert read_site_config(home).gateway.identify == "certificate"


def test_lost_pin_comes_back_with_the_invite(tmp_path, home):
    pin = home.root / "gateway.crt"
    before = pin.read_bytes()
    pin.unlink()

    taken = fedloom("gateway", "--invite", tmp_path / "old.json", "--home", home.root, "--yes")

    assert taken.exit_code == 0, taken.output
    assert pin.read_bytes() == before
    assert "absent" in taken.stderr


def test_config_in_another_form_is_written_anew_with_the_same_values(tmp_path, home):
    config = read_site_config(home)
    plain = config.model_dump(mode="json", exclude_none=True)
    gateway = ", ".join(f"{k} = {json.dumps(v)}" for k, v in plain["gateway"].items())
    home.config.write_text(
        f'site = "north"\ndata = {json.dumps(plain["data"])}\nthreads = 2\n'
        f"gateway = {{{gateway}}}\n"
    )

    path, _ = invite(tmp_path, "new", NEW)
    taken = fedloom("gateway", "--invite", path, "--home", home.root, "--yes")

    assert taken.exit_code == 0, taken.output
    found = read_site_config(home)
    assert (found.threads, found.gateway.url, found.data) == (2, NEW, config.data)


def test_site_without_a_gateway_is_not_moved_behind_one(tmp_path):
    home = make(tmp_path, "--store", (tmp_path / "store").as_uri())
    before = contents(home)

    refused = fedloom(
        *("gateway", "--invite", invite(tmp_path, "new", NEW)[0], "--home", home.root, "--yes")
    )

    assert isinstance(refused.exception, CampaignError)
    assert contents(home) == before


def test_init_over_a_site_that_is_there_keeps_its_files_and_names_the_command(tmp_path, home):
    path, _ = invite(tmp_path, "new", NEW)
    before = contents(home)
    (home.root / "gateway.crt").unlink()

    refused = fedloom(
        *("init", "north", "--data", tmp_path / "rows.csv", "--epsilon", 8, "--delta", "1e-5"),
        *("--home", home.root, "--gateway", path),
    )

    assert isinstance(refused.exception, CampaignError)
    assert "fedloom site gateway" in refused.exception.hint
    assert contents(home) == {k: v for k, v in before.items() if k.name != "gateway.crt"}
