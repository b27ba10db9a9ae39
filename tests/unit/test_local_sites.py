"""The sites of a local stack: what a folder holds once one was made there."""

from pathlib import Path

import pytest

from fl_core.errors import CampaignError
from fl_core.privacy.policy_template import policy_text
from flows.local_sites import LocalSite, made_sites, make_local_site, site_home
from flows.local_stack import Stack
from flows.stack_file import prepared_stack_file
from tasks.site_config import open_site, read_site_config, site_settings

POLICY = policy_text(epsilon=8.0, delta=1e-5)


@pytest.fixture
def stack(tmp_path):
    file = prepared_stack_file(
        tmp_path, sites=("north", "south"), prefect_port=None, mlflow_port=None
    )
    return Stack(tmp_path, file, {})


def test_site_reaches_the_stack_with_its_own_keys(stack):
    make_local_site(stack, LocalSite("north", Path("rows.csv"), POLICY))

    home = site_home(stack.home, "north")
    config = read_site_config(home)
    settings = site_settings(home, config)
    assert config.prefect_api_url == f"{stack.prefect_url}/api"
    assert settings.s3_endpoint == stack.s3_endpoint
    assert settings.s3_credentials_file.read_text().split() == [
        stack.file.sites["north"].access_key,
        stack.file.sites["north"].secret_key,
    ]
    assert len(open_site(home, config).ledger.entries()) == 1


def test_only_sites_that_were_made_are_listed(stack):
    (stack.home / "sites" / "south").mkdir(parents=True)

    make_local_site(stack, LocalSite("north", Path("rows.csv"), POLICY))

    assert made_sites(stack.home) == ["north"]


def test_site_is_never_made_again(stack):
    site = LocalSite("north", Path("rows.csv"), POLICY)
    make_local_site(stack, site)

    with pytest.raises(CampaignError, match="never made again"):
        make_local_site(stack, site)
