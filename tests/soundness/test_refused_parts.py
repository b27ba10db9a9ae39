"""SOUNDNESS, rules 1, 16, 17, 21, 24, 27 and 29 to 32: what would void a claim cannot be stated.

Each text asks for a part that this version does not have. It is refused when the file is read or
its parts are built, by a sentence that names the field or the part, so before any site is asked.
"""

import pytest

from fl_core.assembly import build_parts
from fl_core.campaign.loading import parse_campaign
from fl_core.errors import CampaignError, UnknownComponent
from tests.worlds import WRITTEN

# By rule: what is written beside the lines above, and the words that the refusal must have.
REFUSED = {
    "1 personal head": ('adapter.personal = ["head"]', "adapter.personal"),
    "1 control variates": ('algorithm = "scaffold"', "algorithm"),
    "1 class weights": ("task.class_weights = [1, 3]", "task.class_weights"),
    "1 local early stopping": ("early_stopping.patience = 2", "early_stopping"),
    "5 normalisation by rows": ("task.normalise = 1", "task.normalise"),
    "16 windows": ('window = "month"', "window"),
    "17 metrics of sites": ('metrics = ["loss"]', "metrics"),
    "21 drift": ('drift.column = "text"', "drift"),
    "22 holdout cut from sites": ("evaluation.share = 0.1", "evaluation.share"),
    "24 residuals": ("residuals = 1", "residuals"),
    "24 codec with blocks": ('codec = "int8"', "int8"),
    "24 codec with indices": ('codec = "top_k"', "top_k"),
    "27 buffers": ("cohort.buffer_size = 4", "cohort.buffer_size"),
    "29-32 masks": ("secure_aggregation.threshold = 2", "secure_aggregation"),
    "30 pinned peers": ('peers = ["north"]', "peers"),
    "24 robust rule": ('aggregation = "krum"', "krum"),
}
# By rule: what is written instead of what, and the words that the refusal must have.
REPLACED = {
    "5 divisor from rows": ("batch_size = 16", 'batch_size = "rows"', "training.batch_size"),
    "1 training with state": (
        "learning_rate = 1.0",
        'learning_rate = 1.0, control = "scaffold"',
        "training.control",
    ),
    "24 zeroth order": (
        "learning_rate = 1.0",
        'learning_rate = 1.0, optimizer = "mezo"',
        "training.optimizer",
    ),
    "24 noise on a grid": (
        "sampling_rate = 0.1",
        'sampling_rate = 0.1, mechanism = "discrete_gaussian"',
        "discrete_gaussian",
    ),
    "8 distributed noise": (
        "privacy.record = { epsilon = 8, delta = 1e-5, clip_norm = 0.3, sampling_rate = 0.1 }",
        (
            "privacy.client = { epsilon = 8, delta = 1e-5, clip_norm = 0.3, noise_multiplier = 9, "
            'mechanism = "distributed_discrete_gaussian" }'
        ),
        "distributed_discrete_gaussian",
    ),
    "6 noise seed": ("sampling_rate = 0.1", "sampling_rate = 0.1, seed = 7", "privacy.record.seed"),
    "5 weights from rows": ('id = "first"', 'id = "first"\nweights = "reported"', "weights"),
}


def built(text: str) -> None:
    """Do all that is done with a campaign file before a site is asked."""
    from fl_core.privacy.forecast import with_noise

    build_parts(with_noise(parse_campaign(text, source="first.toml")))


def test_the_campaign_without_them_is_taken():
    built(WRITTEN)


@pytest.mark.parametrize(("line", "named"), REFUSED.values(), ids=REFUSED)
def test_rules_1_to_32_a_part_that_is_not_there_is_refused_by_name(line, named):
    with pytest.raises(CampaignError, match=named.replace(".", r"\.")):
        # Before the other lines, so that it belongs to no table.
        built(line + WRITTEN)


@pytest.mark.parametrize(("old", "new", "named"), REPLACED.values(), ids=REPLACED)
def test_rules_1_to_24_a_setting_that_would_void_the_claim_is_refused_by_name(old, new, named):
    text = WRITTEN.replace(old, new)
    assert text != WRITTEN

    with pytest.raises(CampaignError, match=named.replace(".", r"\.")):
        built(text)


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian"])
def test_rule_24_mechanisms_of_masks_are_unknown_parts(kind):
    text = WRITTEN.replace("sampling_rate = 0.1", f'sampling_rate = 0.1, mechanism = "{kind}"')

    with pytest.raises(UnknownComponent, match=kind):
        built(text)
