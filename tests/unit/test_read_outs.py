"""What a site's own people see of its rounds, and what they should do about it."""

import json

import pytest
from typer.testing import CliRunner
from worlds import NOW, campaign_of

from fl_core.artifacts import keys
from fl_core.artifacts.documents import write_document
from fl_core.errors import ObjectCorrupt
from fl_core.privacy.policy import approve
from fl_core.updates.work import ReadOut
from flows.cli.main import app
from tasks.read_outs import FOLDER, read_outs
from tasks.site_config import SiteHome

CAMPAIGN = campaign_of()


def figures(number, *, cosine=0.3, norm_ratio=3.0, clipped_share=0.5):
    return ReadOut(round=number, cosine=cosine, norm_ratio=norm_ratio, clipped_share=clipped_share)


@pytest.fixture
def home(tmp_path):
    home = SiteHome(tmp_path / "north")
    home.root.mkdir()
    home.config.write_text("# the folder of a site")
    return home


def keep(home, *found, digest=CAMPAIGN.digest):
    for one in found:
        write_document(home.store(FOLDER), keys.read_out(digest, one.round), one)


def test_rounds_come_in_order_with_the_name_of_the_approved_campaign(home):
    approve(home.store("approvals"), CAMPAIGN, NOW)
    keep(home, figures(10), figures(2))

    found = read_outs(home)

    assert [(one.campaign, one.figures.round) for one in found] == [("tiny", 2), ("tiny", 10)]


def test_campaign_that_only_the_policy_names_is_shown_by_its_digest(home):
    keep(home, figures(1))

    assert read_outs(home)[0].campaign == CAMPAIGN.digest[:12]


def test_site_without_rounds_has_none(home):
    assert read_outs(home) == []


def test_file_that_is_no_read_out_is_named(home):
    home.store(FOLDER).put_once(keys.read_out(CAMPAIGN.digest, 1), b"{}")

    with pytest.raises(ObjectCorrupt, match="readouts/"):
        read_outs(home)


@pytest.mark.parametrize(
    ("changes", "is_lost", "said"),
    [
        ({"cosine": 0.0999}, True, "Almost all of it is noise"),
        ({"cosine": -0.5}, True, "Almost all of it is noise"),
        ({"cosine": 0.1}, False, "still of use"),
        ({"cosine": 0.9}, False, "clearly in it"),
        ({"clipped_share": 0.95}, False, "a higher clip_norm"),
        ({"clipped_share": 0.01}, False, "a lower clip_norm"),
        ({"cosine": 0.0, "norm_ratio": None, "clipped_share": None}, True, "Nothing was drawn"),
    ],
    ids=["lost", "against", "noisy", "clear", "all cut", "none cut", "empty"],
)
def test_figures_are_put_into_words(home, changes, is_lost, said):
    keep(home, figures(1, **changes))

    (one,) = read_outs(home)

    assert one.is_lost == is_lost
    assert said in one.meaning


def test_command_shows_a_table_and_marks_what_is_lost(home):
    approve(home.store("approvals"), CAMPAIGN, NOW)
    keep(home, figures(1, cosine=0.02), figures(2, cosine=0.7))

    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["site", "readout", "--home", str(home.root), "--json"]
    )

    assert result.exit_code == 0, result.output
    (document,) = json.loads(result.stdout)["readouts"]
    assert document["site"] == "north"
    assert [one["is_lost"] for one in document["rounds"]] == [True, False]
    assert [one["signal"] for one in document["rounds"]] == ["lost", "clear"]
    assert "lost !" in result.stderr
    # One sentence for what there is still something to do about, not one per round.
    assert "tiny, round 2: The direction of this site's rows is clearly in it" in result.stderr
    assert "tiny, round 1" not in result.stderr
    assert "not for anybody outside this site" in result.stderr


def test_folder_without_a_site_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["site", "readout", "--home", str(tmp_path)])

    assert result.exception is not None
    assert "holds no site" in str(result.exception)
