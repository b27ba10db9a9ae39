"""What a run may choose for its rounds without changing the frozen campaign."""

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.errors import CampaignError
from fl_core.rounds.documents import RoundChoice
from fl_core.rounds.plan import open_round
from flows.cli import campaigns
from tests.round_steps import finish, plan_of, take_part
from tests.worlds import NO_PRIVACY, NOW, campaign_of, world_of

UNIFORM = {"kind": "uniform", "params": {"size": 2}}


def open_campaign_of(**cohort):
    return campaign_of(privacy=NO_PRIVACY, cohort=cohort)


def test_run_may_choose_a_stricter_quorum_and_a_grace_time_for_the_rounds_it_opens():
    world = world_of(open_campaign_of(quorum=2))
    choice = RoundChoice(quorum=3, grace_s=5)
    plan = open_round(world.assembly, world.store, round_number=1, now=NOW, choice=choice)
    for site in "ab":
        take_part(world, site)

    outcome = finish(world)

    assert (plan.quorum, plan.grace_s) == (3, 5)
    assert outcome.status == "skipped"


def test_choice_of_a_run_changes_no_plan_that_is_there():
    world = world_of(open_campaign_of())
    first = plan_of(world)
    choice = RoundChoice(quorum=3)

    again = open_round(world.assembly, world.store, round_number=1, now=NOW, choice=choice)

    assert again == first


@pytest.mark.parametrize(
    ("campaign", "choice", "text"),
    [
        (open_campaign_of(quorum=2), {"quorum": 1}, "allows 2 to 3; a run may ask for more"),
        (open_campaign_of(), {"quorum": 4}, "allows 1 to 3"),
        (open_campaign_of(selection=UNIFORM), {"quorum": 3}, "round 1 wants 2 updates"),
        (campaign_of(), {"grace_s": 5}, "cohort.grace_s lets the speed of a site decide"),
        (open_campaign_of(), {"grace_s": 600}, "600 s was chosen .* ends every round after 600 s"),
    ],
    ids=["laxer", "more than there are", "more than are asked", "speed", "past the deadline"],
)
def test_choice_that_breaks_the_campaign_is_refused_before_anybody_is_asked(campaign, choice, text):
    world = world_of(campaign)

    with pytest.raises(CampaignError, match=text):
        open_round(
            world.assembly,
            world.store,
            round_number=1,
            now=NOW,
            choice=RoundChoice.model_validate(choice),
        )

    assert world.store.list(keys.rounds("tiny")) == []


def test_command_refuses_a_laxer_quorum_before_anything_runs(tmp_path, monkeypatch):
    world = world_of(open_campaign_of(quorum=2))
    store = LocalStore(tmp_path)
    for key in world.store.list(""):
        store.put_once(key, world.store.get(key))
    monkeypatch.setenv("FEDLOOM_STORE", tmp_path.as_uri())
    # Nobody listens there: the refusal comes before the server is asked.
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    with pytest.raises(CampaignError, match="allows 2 to 3; a run may ask for more"):
        campaigns.run("tiny", quorum=1)
