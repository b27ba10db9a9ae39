"""What a session lets through of its rows before it answers a plan."""

import time
from datetime import UTC, datetime

import pytest
from prefect.exceptions import ParameterTypeError

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.store import exists
from fl_core.errors import StoreUnavailable
from fl_core.privacy.forecast import with_noise
from fl_core.privacy.policy_template import policy_text
from fl_core.rounds.closing import close_collection
from fl_core.rounds.collection import new_answers
from fl_core.rounds.plan import open_round
from fl_core.rounds.site_round import client_round
from flows.site_session import site_session
from tasks import client_steps, session_steps
from tasks.client_steps import Session
from tasks.enrolment import NewSite, make_site
from tasks.gateway_store import GatewayStore
from tasks.session_steps import SessionRequest, Waiting, _prepare, _serve_plans, is_due
from tasks.site_config import SiteConfig, SiteHome
from tests.round_steps import finish, take_part
from tests.worlds import NO_PRIVACY, NOW, campaign_of, world_of


@pytest.fixture(name="soon")
def started_now():
    """When the test starts: a plan opened at import may be past its deadline by then."""
    return datetime.now(UTC)


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


def test_round_that_went_on_before_its_deadline_is_not_due_and_costs_nothing(tmp_path, soon):
    campaign = campaign_of(privacy=NO_PRIVACY, cohort={"quorum": 2, "grace_s": 0})
    world = world_of(campaign)
    session = session_of(world, tmp_path, broken_by_a_row)
    plan = open_round(world.assembly, world.store, round_number=1, now=soon)
    before = is_due(session, plan)
    for site in "bc":
        own, work = world.sites[site], world.works[site]
        client_round(own, work, assembly=world.assembly, store=world.store, plan=plan)
    answers = new_answers(world.assembly, world.store, plan, known=())

    closed = close_collection(world.assembly, world.store, plan, answers=answers, now=soon)

    assert closed.answers["a"].status == "missing"
    assert (before, is_due(session, plan)) == (True, False)


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


@pytest.fixture
def plain_task(monkeypatch):
    """The task of a round as a function: a task run would start a Prefect server."""
    monkeypatch.setattr(session_steps, "take_part", client_steps.take_part.fn)


class WaitingStore(GatewayStore):
    """A gateway's store over a store in memory, which counts what is asked."""

    def __init__(self, store, *, appears):
        self.inner, self.appears, self.asked = store, list(appears), []

    def get(self, key, *, max_bytes=None):
        self.asked.append(("get", key))
        return self.inner.get(key, max_bytes=max_bytes)

    def put_once(self, key, data):
        self.asked.append(("put", key))
        return self.inner.put_once(key, data)

    def list(self, prefix):
        self.asked.append(("list", prefix))
        return self.inner.list(prefix)

    def wait(self, keys, *, seconds):
        self.asked.append(("wait", seconds))
        if self.appears:
            self.appears.pop(0)()
        return [key for key in keys if exists(self.inner, key)]


def served(tmp_path, world, store, *, idle_s=3600.0):
    """Serve a session of site a on ready-made answers, and return how it ended."""
    session = session_of(world, tmp_path, lambda *_: world.works["a"])
    session.store = store
    config = session.config.model_copy(update={"idle_s": idle_s})
    request = SessionRequest("tiny", "run", session.home, config)
    session.answer = lambda plan: take_part(world, "a", plan.round).status
    session.has_left = lambda: False
    return _serve_plans(session, request, Waiting(idle_s=idle_s, since=time.monotonic()))


@pytest.mark.usefixtures("plain_task")
def test_session_behind_a_gateway_waits_in_open_requests_and_answers_what_appears(tmp_path, soon):
    world = world_of(campaign_of(("a", "b")))
    store = WaitingStore(
        world.store,
        appears=[
            lambda: None,
            lambda: open_round(world.assembly, world.store, round_number=1, now=soon),
            lambda: world.store.put_once(keys.stop("tiny", "run"), b"{}"),
        ],
    )

    ended = served(tmp_path, world, store)

    assert ended == "stopped"
    assert world.store.list(keys.manifest("tiny", 1, "a"))
    asked = [what for what, _ in store.asked]
    # The first round's number, three waits, the plan, and whether the site has answered.
    assert asked == ["list", "wait", "wait", "get", "list", "wait"]


def test_session_ends_when_nothing_happens_for_long(tmp_path):
    world = world_of(campaign_of(("a", "b")))
    store = WaitingStore(world.store, appears=[])

    assert served(tmp_path, world, store, idle_s=0.3) == "idle"
    assert all(0 < each[1] <= 25 for each in store.asked if each[0] == "wait")


@pytest.mark.parametrize("named", [(), ("campaigns/tiny/rounds/0007/plan.json",)])
def test_gateway_that_answers_nothing_at_once_is_asked_five_times_a_second_at_most(tmp_path, named):
    world = world_of(campaign_of(("a", "b")))
    store = WaitingStore(world.store, appears=[])
    store.wait = lambda *_, **__: store.asked.append(("wait", 0)) or list(named)

    ended = served(tmp_path, world, store, idle_s=1.0)

    assert ended == "idle"
    assert sum(what == "wait" for what, _ in store.asked) <= 1.0 / session_steps.FAST_S + 1


def test_plans_that_are_not_for_the_site_are_read_five_times_a_second_at_most(tmp_path):
    world = world_of(campaign_of(("a", "b")))
    session = session_of(world, tmp_path, broken_by_a_row)
    session.store = store = WaitingStore(world.store, appears=[])
    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    until = time.monotonic() + 1.0

    def invent(keys_asked, **_):
        store.asked.append(("wait", 0))
        stop_key, plan_key = keys_asked
        if time.monotonic() > until:
            return [stop_key]
        number = len([what for what, _ in store.asked if what == "wait"])
        world.store.put_once(plan_key, to_bytes(plan.model_copy(update={"round": number})))
        return [plan_key]

    store.wait = invent
    request = SessionRequest("tiny", "run", session.home, session.config)

    ended = _serve_plans(session, request, Waiting(idle_s=60.0, since=time.monotonic()))

    assert ended == "stopped"
    assert sum(what == "wait" for what, _ in store.asked) <= 1.0 / session_steps.FAST_S + 2


def test_store_that_is_away_does_not_end_a_session(tmp_path):
    def away():
        raise StoreUnavailable("the gateway does not answer")

    world = world_of(campaign_of(("a", "b")))
    stop = keys.stop("tiny", "run")
    store = WaitingStore(world.store, appears=[away, lambda: world.store.put_once(stop, b"{}")])

    assert served(tmp_path, world, store) == "stopped"


@pytest.mark.usefixtures("plain_task")
def test_site_that_left_gets_no_further_plan(tmp_path, soon):
    world = world_of(campaign_of(("a", "b")))
    open_round(world.assembly, world.store, round_number=1, now=soon)
    session = session_of(world, tmp_path, lambda *_: world.works["a"])
    session.store = WaitingStore(world.store, appears=[])
    session.answer, session.has_left = (lambda _: "declined"), (lambda: True)
    request = SessionRequest("tiny", "run", session.home, session.config)

    ended = _serve_plans(session, request, Waiting(idle_s=60.0, since=time.monotonic()))

    assert ended == "left"
