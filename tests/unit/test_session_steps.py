"""What a session lets through of its rows before it answers a plan."""

import pytest
from prefect.exceptions import ParameterTypeError

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.privacy.forecast import with_noise
from fl_core.privacy.policy_template import policy_text
from fl_core.rounds.plan import open_round
from flows.site_session import site_session
from tasks.client_steps import Session
from tasks.enrolment import NewSite, make_site
from tasks.session_steps import _prepare
from tasks.site_config import SiteConfig, SiteHome
from tests.round_steps import finish, take_part
from tests.worlds import NOW, campaign_of, world_of


def session_of(world, tmp_path, make_work):
    config = SiteConfig.model_validate(
        {
            "site": "a",
            "data": "rows.csv",
            "prefect_api_url": "http://127.0.0.1:1/api",
            "store": {"url": f"file://{tmp_path}/store"},
        }
    )
    return Session(SiteHome(tmp_path), config, world.assembly, world.store, make_work)


def broken_by_a_row(*_):
    raise ValueError("could not convert 'Mrs Miller' to numeric")


def test_rows_that_break_a_library_do_not_end_the_session(tmp_path):
    world = world_of(campaign_of())
    session = session_of(world, tmp_path, broken_by_a_row)

    _prepare(session)

    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    assert session._answer(world.sites["a"], plan) == "declined"
    assert b"Miller" not in world.store.get(keys.declined("tiny", 1, "a"))


@pytest.mark.parametrize(
    "changes",
    [{"campaign_digest": "0" * 64}, {"cohort": ("b",)}, {"round": 7}],
    ids=["another campaign", "another cohort", "past the last round"],
)
def test_plan_that_is_not_for_the_site_is_ignored_before_its_rows_are_read(tmp_path, changes):
    world = world_of(campaign_of())
    session = session_of(world, tmp_path, broken_by_a_row)
    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    before = world.store.list("")

    answer = session._answer(world.sites["a"], plan.model_copy(update=changes))

    assert answer == "ignored"
    assert world.store.list("") == before


@pytest.mark.parametrize("wrong", ["", "../other", "a/b", "a\nround answered", "A", "a" * 65])
@pytest.mark.parametrize("parameter", ["campaign_id", "run", "site"])
def test_session_whose_parameters_are_no_names_is_refused(parameter, wrong):
    good = {"campaign_id": "tiny", "run": "0f8fad5b-d9cb-469f-a165-70867728950e", "site": "a"}

    with pytest.raises(ParameterTypeError):
        site_session.validate_parameters(good | {parameter: wrong})

    assert site_session.validate_parameters(good) == good


def test_session_copies_the_federations_ledger_and_ends_on_no_account_of_it(tmp_path):
    client = {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "mechanism": "gaussian"}
    world = world_of(with_noise(campaign_of(privacy={"client": client})))
    session = session_of(world, tmp_path / "site", broken_by_a_row)
    make_site(session.home, NewSite(session.config, policy_text(epsilon=8.0, delta=1e-5)))
    copies = LocalStore(tmp_path / "site" / "federation-witness")

    session.watch_coordinator()
    before = copies.list(keys.LEDGER)
    for site in "abc":
        take_part(world, site)
    finish(world)
    session.watch_coordinator()
    after = copies.list(keys.LEDGER)
    world.store.discard(keys.FEDERATION + keys.ledger_entry(3))
    session.watch_coordinator()

    assert before == [keys.ledger_entry(1)]
    assert after == copies.list(keys.LEDGER) == [keys.ledger_entry(seq) for seq in (1, 2, 3)]
