"""Where a machine looks for what campaigns name."""

import pytest

from fl_core.campaign.loading import parse_campaign
from fl_core.errors import CampaignError
from tasks.locking import Shelves, holdout_path, lock_campaign, shelves_of
from tasks.settings import Folders
from tests.worlds import WRITTEN


def test_base_model_is_known_by_the_name_of_its_folder(tmp_path):
    (tmp_path / "minilm").mkdir()

    shelves = shelves_of(Folders(models=tmp_path, holdouts=tmp_path / "public"))

    assert shelves == Shelves(
        holdouts=tmp_path / "public", base_models={"minilm": tmp_path / "minilm"}
    )


@pytest.mark.parametrize("folders", [Folders(), Folders(models="/nowhere")], ids=["none", "absent"])
def test_without_a_folder_of_models_none_is_known_by_name(folders):
    assert shelves_of(folders).base_models == {}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_holdout_is_found_by_its_name(tmp_path, suffix):
    file = tmp_path / f"public.{suffix}"
    file.touch()

    assert holdout_path("public", Shelves(holdouts=tmp_path)) == file
    assert holdout_path(str(file), Shelves()) == file


@pytest.mark.parametrize("has_folder", [True, False])
def test_absent_holdout_says_where_it_was_looked_for(tmp_path, has_folder):
    folder = tmp_path if has_folder else None

    with pytest.raises(CampaignError, match=r"public\.csv") as caught:
        holdout_path("public", Shelves(holdouts=folder))

    assert (str(tmp_path) if has_folder else "FEDLOOM_HOLDOUTS is not set") in str(caught.value)


def test_holdout_with_a_label_that_the_campaign_does_not_know_is_not_locked(tmp_path):
    (tmp_path / "public.csv").write_text("text,label\nwell,yes\nbroken,maybe\nfine,no\n")
    campaign = parse_campaign(WRITTEN, source="first.toml")

    with pytest.raises(CampaignError, match=r"public\.csv: 1 rows cannot be used.* rows 2;"):
        lock_campaign(campaign, Shelves(holdouts=tmp_path))
