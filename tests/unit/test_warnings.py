"""Settings that are allowed and mean nothing."""

import pytest
from worlds import NO_PRIVACY, campaign_of

from fl_core.privacy.warnings import campaign_warnings, client_signal, record_signal

# One pair on a (3, 4) module at rank 2, A 2x4 and B 3x2, and a head 2x4 with bias 2.
DIMENSION = 8 + 6 + 8 + 2
CLIENT = {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0}


def record(**changes):
    return {"record": campaign_of().privacy.record.model_dump() | changes}


def client(**changes):
    return {"client": CLIENT | {"mechanism": "gaussian", "noise_multiplier": 1.0} | changes}


def fields(campaign):
    return [warning.field for warning in campaign_warnings(campaign)]


def test_usual_campaign_warns_of_nothing():
    assert campaign_warnings(campaign_of()) == ()


def test_campaign_without_guarantee_warns_of_nothing():
    assert campaign_warnings(campaign_of(privacy=NO_PRIVACY)) == ()


@pytest.mark.parametrize(
    ("privacy", "expected"),
    [
        (record(epsilon=50.0), []),
        (record(epsilon=50.1), ["privacy.record.epsilon"]),
        (client(epsilon=1000.0), ["privacy.client.epsilon"]),
        (
            record(epsilon=60.0) | client(epsilon=60.0),
            ["privacy.record.epsilon", "privacy.client.epsilon"],
        ),
    ],
    ids=["at the limit", "record", "client", "both"],
)
def test_epsilon_above_fifty_is_named(privacy, expected):
    assert fields(campaign_of(privacy=privacy)) == expected


def test_delta_that_publishing_a_row_would_keep_is_named():
    # 16 / 0.1 is some 160 rows, so one row in them is 0.00625.
    record = campaign_of().privacy.record.model_dump()
    deltas = {
        delta: [
            warning.field
            for warning in campaign_warnings(
                campaign_of(privacy={"record": record | {"delta": delta}})
            )
        ]
        for delta in (0.00624, 0.00626)
    }

    assert deltas == {0.00624: [], 0.00626: ["privacy.record.delta"]}


def test_signal_of_a_step_is_that_of_the_smallest_site():
    campaign = campaign_of(
        training={
            "local_steps": 8,
            "learning_rate": 0.1,
            "batch_size": {"a": 64.0, "b": 6.0, "c": 12.0},
        },
        privacy=record(noise_multiplier=2.0),
    )

    # By hand: 6 / (2 sqrt(9)).
    assert record_signal(campaign, campaign.privacy.record, 9) == pytest.approx(1.0)


def test_adaptive_clip_counts_the_larger_noise_of_the_gradient():
    plain = campaign_of()
    moving = campaign_of(privacy=record(adaptive_clip={"count_stddev": 0.5}))

    # Andrew et al. 2021, theorem 1: (0.8^-2 - (2 x 0.5)^-2)^-1/2 = 4/3.
    ratio = record_signal(moving, moving.privacy.record, 24)
    assert ratio / record_signal(plain, plain.privacy.record, 24) == pytest.approx(0.8 * 3 / 4)


@pytest.mark.parametrize(
    ("mechanism", "expected"), [("gaussian", 3 / 4), ("local_gaussian", 3**0.5 / 4)]
)
def test_signal_of_a_release_grows_with_the_sites(mechanism, expected):
    campaign = campaign_of(privacy=client(mechanism=mechanism, noise_multiplier=2.0))

    assert client_signal(campaign, campaign.privacy.client, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.001, []), (0.999, ["privacy.record.noise_multiplier"])]
)
def test_signal_under_one_percent_is_named(factor, expected):
    # 0.01 = batch / (0.8 sqrt(d)) at batch 0.008 sqrt(d); the campaign's own d is counted.
    batch = factor * 0.01 * 0.8 * DIMENSION**0.5
    campaign = campaign_of(training={"local_steps": 8, "learning_rate": 0.1, "batch_size": batch})

    assert fields(campaign) == expected


def test_signal_of_whole_sites_is_named():
    campaign = campaign_of(privacy=client(noise_multiplier=500.0))

    assert fields(campaign) == ["privacy.client.noise_multiplier"]


def test_before_locking_only_epsilon_is_judged():
    open_modules = campaign_of().adapter.model_dump() | {"modules": None}
    campaign = campaign_of(
        adapter=open_modules,
        training={"local_steps": 8, "learning_rate": 0.1, "batch_size": 1e-6},
        privacy=record(epsilon=99.0),
    )

    assert fields(campaign) == ["privacy.record.epsilon"]


def test_warning_is_one_line_with_field_numbers_and_remedy():
    (warning,) = campaign_warnings(campaign_of(privacy=record(epsilon=99.0)))

    assert warning.line.startswith("privacy.record.epsilon: 99 is above 50")
    assert "state 10 or less" in warning.line
    assert "\n" not in warning.line
