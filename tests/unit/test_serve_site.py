"""The process of a site's worker: the names it shares with the coordinator, and its limits."""

import tomllib

import pytest

from fl_core.errors import CampaignError
from tasks.hello import Welcome
from tasks.site_config import checked_config, config_text


def config_of(**more):
    plain = {"site": "north", "data": "rows.csv", "gateway": {"url": "https://fl.example.org"}}
    return checked_config(plain | more, source="here")


@pytest.mark.parametrize(
    "more", [{}, {"memory_gb": 6.5, "hard_limit_s": 86400.0}], ids=["unbounded", "bounded"]
)
def test_limits_survive_the_file(more):
    config = config_of(**more)

    text = config_text(config)

    assert checked_config(tomllib.loads(text), source="here") == config
    assert "memory_gb = " in text


@pytest.mark.parametrize("field", ["memory_gb", "hard_limit_s"])
@pytest.mark.parametrize("value", [0, -1, "much"])
def test_limit_that_is_none_is_refused(field, value):
    with pytest.raises(CampaignError, match=field):
        config_of(**{field: value})


def test_every_complaint_about_versions_is_in_the_refusal():
    from fl_core.errors import ServerFailed
    from flows.way_out import require_welcome

    require_welcome(Welcome(fedloom="1.0"))
    with pytest.raises(ServerFailed, match="torch too old; peft too old"):
        require_welcome(Welcome(fedloom="1.0", complaints=("torch too old", "peft too old")))
