"""What a simulation refuses before it loads anything."""

import pytest

from fl_core.errors import CampaignError
from tasks.locking import Shelves
from tasks.simulation_setting import setting_of
from tests.worlds import campaign_of


def start(data):
    campaign = campaign_of(sites=tuple(sorted(data)))
    setting_of(campaign, data=data, shelves=Shelves(), seed=1)


def test_rows_are_needed_for_exactly_the_campaigns_sites(tmp_path):
    data = {"a": tmp_path / "a.csv", "d": tmp_path / "d.csv"}

    with pytest.raises(CampaignError, match="they differ in b, c, d"):
        setting_of(campaign_of(), data=data, shelves=Shelves(), seed=None)


@pytest.mark.parametrize("mark", ["policy.toml", "ledger"])
@pytest.mark.parametrize("where", ["rows.csv", "data/rows.csv"])
def test_rule_07_a_folder_with_a_sites_ledger_is_refused(tmp_path, mark, where):
    (tmp_path / mark).mkdir()
    rows = tmp_path / where
    rows.parent.mkdir(exist_ok=True)
    rows.touch()

    with pytest.raises(CampaignError, match="lies in a site's folder with a ledger"):
        start({"a": rows})


def test_rule_07_a_link_to_a_sites_rows_is_refused(tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere" / "deeper"
    (site / "ledger").mkdir(parents=True)
    elsewhere.mkdir(parents=True)
    (site / "rows.csv").touch()
    (elsewhere / "rows.csv").symlink_to(site / "rows.csv")

    with pytest.raises(CampaignError, match="lies in a site's folder with a ledger"):
        start({"a": elsewhere / "rows.csv"})
