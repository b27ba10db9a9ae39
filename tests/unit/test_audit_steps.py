"""What an audit runs on, and that a report speaks of the campaign that it is filed under."""

import pytest
from tiny_models import word_tokenizer
from worlds import NO_PRIVACY, campaign_of

from fl_core.data.units import unit_numbers
from fl_core.errors import CampaignError
from fl_core.privacy.randomness import SeededStream
from tasks.audit_steps import (
    SYNTHETIC_ROWS,
    Request,
    audit_at_site,
    audit_public,
    made_up_rows,
    require_same_campaign,
)
from tasks.locking import Shelves
from tasks.site_config import SiteHome

RECORD = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": 0.3,
    "sampling_rate": 0.1,
    "noise_multiplier": 0.8,
}


def test_made_up_people_have_as_many_rows_as_may_count():
    campaign = campaign_of(
        privacy={"record": {**RECORD, "unit": "patient_id", "max_rows_per_unit": 4}}
    )

    rows = made_up_rows(campaign, word_tokenizer(), SeededStream(1))

    assert len(rows) == SYNTHETIC_ROWS
    assert len(set(unit_numbers(rows, "patient_id").tolist())) == SYNTHETIC_ROWS // 4


def test_file_that_states_less_than_the_frozen_campaign_is_the_same_campaign():
    frozen = campaign_of()
    written = frozen.model_copy(
        update={"adapter": frozen.adapter.model_copy(update={"modules": None})}
    )

    assert require_same_campaign(written, frozen) is frozen


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_rounds": 7}, "max_rounds"),
        ({"privacy": {"record": {**RECORD, "clip_norm": 0.5}}}, "privacy.record.clip_norm"),
        ({"sites": ("a", "b")}, "sites"),
    ],
)
def test_file_with_another_number_than_the_frozen_campaign_is_refused(changes, named):
    with pytest.raises(CampaignError, match=named):
        require_same_campaign(campaign_of(**changes), campaign_of())


def test_campaign_that_promises_nothing_of_rows_is_refused_before_a_model_is_loaded():
    request = Request(campaign=campaign_of(privacy=NO_PRIVACY))

    with pytest.raises(CampaignError, match=r"states no privacy\.record"):
        audit_public(request, None, shelves=Shelves(), on_progress=lambda _: None)


def test_campaign_without_a_fixed_gate_is_refused_before_a_sites_rows_are_read(tmp_path):
    campaign = campaign_of()
    request = Request(
        campaign=campaign.model_copy(
            update={"gate": campaign.gate.model_copy(update={"sha256": None})}
        )
    )

    with pytest.raises(CampaignError, match="is not locked, so no gate"):
        audit_at_site(request, SiteHome(tmp_path), on_progress=lambda _: None)
