"""A change of a site's keys that is pending: what else may be asked, and how it is taken back."""

import pytest
from site_folders import SITE, site_folder

from fl_core.campaign.roster import latest_roster
from fl_core.errors import CampaignError
from fl_core.updates.signing import public_hex, read_key
from tasks.gateway_access import ROTATION
from tasks.key_change import (
    NEXT,
    abandon_change,
    admit_change,
    begin_change,
    finish_change,
)


@pytest.fixture
def site(tmp_path):
    return site_folder(tmp_path)


def test_lost_key_is_not_answered_with_the_request_that_it_signed(site):
    begin_change(site.home, site.config)
    site.home.key.unlink()

    with pytest.raises(CampaignError, match="that the old key signed is pending") as caught:
        begin_change(site.home, site.config, is_lost=True)

    assert "--finish --lost-key" in caught.value.hint


def test_change_of_the_certificate_alone_is_not_answered_with_one_of_the_key(site):
    begin_change(site.home, site.config)

    with pytest.raises(CampaignError, match="not of the certificate alone"):
        begin_change(site.home, site.config, only_certificate=True)


def test_key_that_is_lost_while_its_change_is_pending_is_followed_by_the_next(site):
    site.answer()
    change = begin_change(site.home, site.config)
    admit_change(site.store, change)
    site.home.key.unlink()

    with pytest.raises(CampaignError, match="cannot read the signing key") as caught:
        finish_change(site.home, site.config)
    finish_change(site.home, site.config, is_lost=True)

    assert "--finish --lost-key" in caught.value.hint
    assert public_hex(read_key(site.home.key)) == change.new_key
    assert not (site.home.root / NEXT).exists()
    assert site.answer(2) == "uploaded"


def test_change_that_nobody_admitted_is_taken_back_and_the_next_request_has_other_keys(site):
    first = begin_change(site.home, site.config)

    abandon_change(site.home, site.config)
    second = begin_change(site.home, site.config)

    assert first.new_key != second.new_key
    assert first.old_key == second.old_key == latest_roster(site.store).entry(SITE).signing_key


def test_change_that_is_admitted_is_not_taken_back(site):
    admit_change(site.store, begin_change(site.home, site.config))

    with pytest.raises(CampaignError, match="has admitted the next keys"):
        abandon_change(site.home, site.config)

    assert (site.home.root / ROTATION).exists()


def test_change_is_not_taken_back_where_its_keys_are_the_only_ones_left(site):
    begin_change(site.home, site.config)
    site.home.key.unlink()

    with pytest.raises(CampaignError, match="cannot read the signing key"):
        abandon_change(site.home, site.config)

    assert (site.home.root / NEXT / "key.pem").exists()
