"""Campaign files: what people write, and the one error they get."""

import io

import pytest
from rich.console import Console

from fl_core.campaign.loading import Resolved, lock, parse_campaign, read_campaign
from fl_core.errors import CampaignError
from flows.cli.templates import CAMPAIGN
from flows.cli.views import schedule_table
from tests.worlds import WRITTEN


def test_ten_lines_of_toml_are_a_campaign():
    campaign = parse_campaign(WRITTEN, source="first.toml")

    assert campaign.base_model.name == "some-model"
    assert campaign.aggregation.kind == "mean"
    assert campaign.total_steps == 12
    assert "base_model.sha256" in campaign.unlocked_fields


def test_yaml_gives_the_same_campaign_and_numbers_may_be_text():
    text = """
id: first
base_model: some-model
sites: [north, south]
max_rounds: 3
gate: labelled-texts
evaluation: {holdout: public}
task: {labels: ["yes", "no"]}
adapter: {targets: [query]}
training: {local_steps: 4, batch_size: 16, learning_rate: 1.0}
privacy: {record: {epsilon: 8, delta: 1e-5, clip_norm: 0.3, sampling_rate: 0.1}}
"""

    assert parse_campaign(text, source="first.yaml") == parse_campaign(WRITTEN, source="a.toml")


def test_text_without_a_file_name_may_be_toml_yaml_or_json():
    campaign = parse_campaign(WRITTEN, source="c.toml")
    as_json = campaign.model_dump_json(exclude_none=True)

    assert parse_campaign(WRITTEN, source="campaign text") == campaign
    assert parse_campaign(as_json, source="campaign text") == campaign


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('id = "first"', 'id = "First!"', ["c.toml", "id", "First!"]),
        ("max_rounds = 3", "max_rounds = 0", ["c.toml", "max_rounds", "0", "greater"]),
        ("max_rounds = 3", "max_round = 3", ["max_round", "did you mean 'max_rounds'"]),
        ("local_steps = 4", "local_stepz = 4", ["training.local_stepz", "'local_steps'"]),
        ("epsilon = 8", "epsilon = 0", ["privacy.record.epsilon", "0", "greater than 0"]),
        ("epsilon = 8", "epsilon = -1", ["privacy.record.epsilon", "-1"]),
        ("delta = 1e-5", "delta = 1", ["privacy.record.delta", "1", "less than 1"]),
        ("sampling_rate = 0.1", "sampling_rate = 1.5", ["privacy.record.sampling_rate", "1.5"]),
        ("batch_size = 16", "batch_size = true", ["training.batch_size", "True", "yes or no"]),
        ('["yes", "no"]', '["yes"]', ["task", "two labels"]),
        ('["yes", "no"]', '["yes", "yes"]', ["task", "differ"]),
        ('"north", "south"', '"north", "north"', ["sites must differ"]),
        ('sites = ["north", "south"]\n', "", ["sites is missing"]),
        ('base_model = "some-model"', "base_model = ", ["c.toml", "not TOML"]),
        ('base_model = "some-model"', 'base_model = ""', ["base_model"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_campaign_gets_one_line_with_file_field_and_value(old, new, parts):
    assert old in WRITTEN

    with pytest.raises(CampaignError) as caught:
        parse_campaign(WRITTEN.replace(old, new), source="c.toml")

    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_missing_privacy_statement_says_what_to_write():
    without = "\n".join(line for line in WRITTEN.splitlines() if "privacy" not in line)

    with pytest.raises(
        CampaignError, match=r"privacy is missing and has no default.*privacy\.none"
    ):
        parse_campaign(without, source="c.toml")


def test_privacy_and_no_privacy_together_are_refused():
    both = WRITTEN + 'privacy.none = { reason = "public data, no person in it" }\n'

    with pytest.raises(CampaignError, match=r"\[privacy\.none\] with a reason"):
        parse_campaign(both, source="c.toml")


def test_no_privacy_needs_a_reason_of_twenty_characters():
    lines = [line for line in WRITTEN.splitlines() if "privacy" not in line]

    with pytest.raises(CampaignError, match=r"privacy\.none\.reason is 'because'"):
        parse_campaign(
            "\n".join([*lines, 'privacy.none = { reason = "because" }']), source="c.toml"
        )


def test_text_over_sixteen_kilobytes_is_refused():
    with pytest.raises(CampaignError, match="at most 16384"):
        parse_campaign("#" * 20_000, source="c.toml")


def test_absent_file_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(CampaignError, match=r"nothing\.toml: cannot be read") as caught:
        read_campaign(tmp_path / "nothing.toml")

    assert "fedloom init" in caught.value.hint


def test_the_template_of_init_is_a_campaign():
    campaign = parse_campaign(CAMPAIGN.format(file="x.toml", id="mine"), source="x.toml")

    assert campaign.id == "mine"
    assert campaign.privacy.record is not None


RESOLVED = Resolved(
    base_sha256="1" * 64,
    gate_sha256="2" * 64,
    holdout_sha256="3" * 64,
    modules={"layer.query": (4, 4)},
    head_inputs=4,
    noise_multiplier=0.8,
)


def test_digest_exists_only_once_every_name_is_bound():
    campaign = parse_campaign(WRITTEN, source="c.toml")

    with pytest.raises(CampaignError, match="not locked"):
        _ = campaign.digest
    assert len(lock(campaign, RESOLVED).digest) == 64


def test_locked_campaign_survives_its_file(tmp_path):
    locked = lock(parse_campaign(WRITTEN, source="c.toml"), RESOLVED)
    path = tmp_path / "campaign.json"

    path.write_text(locked.model_dump_json(exclude_none=True))

    assert read_campaign(path).digest == locked.digest


@pytest.mark.parametrize("trick", ["\\u001b[2J", "\\n", "\\r", "\\u202e"], ids=repr)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"some-model"', '"some-model{}epsilon 0.1"'),
        ('"labelled-texts"', '"labelled-texts{}epsilon 0.1"'),
        (
            WRITTEN.split("\n")[10],
            'privacy.none.reason = "made-up rows, nothing{}to protect"',
        ),
    ],
    ids=["base model", "gate", "reason"],
)
def test_names_that_repaint_the_terminal_of_whoever_approves_are_refused(old, new, trick):
    text = WRITTEN.replace(old, new.format(trick))
    assert text != WRITTEN

    with pytest.raises(CampaignError, match="one line without control characters") as caught:
        parse_campaign(text, source="first.toml")

    assert str(caught.value).isprintable()


def test_reason_for_no_privacy_is_shown_as_it_is_written():
    reason = "[black on black]made-up rows, nothing to protect[/]"
    text = WRITTEN.replace(WRITTEN.split("\n")[10], f'privacy.none.reason = "{reason}"')
    console = Console(file=io.StringIO(), width=120)

    console.print(schedule_table(parse_campaign(text, source="first.toml"), []))

    assert reason in " ".join(console.file.getvalue().split())


@pytest.mark.parametrize("value", ["inf", "nan", "[1.0, inf]", "2026-01-01"])
def test_parameter_that_has_no_json_form_of_its_own_is_refused(value):
    text = f'{WRITTEN}\naggregation = {{ kind = "mean", weight = {value} }}\n'

    with pytest.raises(CampaignError, match=r"aggregation.*(finite|JSON)"):
        parse_campaign(text, source="first.toml")
