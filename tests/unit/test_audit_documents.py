"""The report of an audit, what it says of a claim, and where it may go."""

from datetime import UTC, datetime

import pytest

from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import PrivacyError
from fl_core.privacy.audit_documents import AuditReport, WhiteBoxCheck
from fl_core.privacy.audits import keep_audit, read_audits, write_audit
from fl_core.training.white_box_statistics import chi_square_score, noise_steps, steps_needed
from flows.cli.audit_views import sentences
from tasks.tracking_audit import audit_metrics


def report(**changes) -> AuditReport:
    gradient = {
        "kind": "gradient",
        "canaries": 1000,
        "guesses": 100,
        "correct": 80,
        "lower_bound": 1.4,
        "ceiling": 3.2,
    }
    fields = {
        "campaign_id": "tiny",
        "site": "a",
        "rows": "public",
        "source": "made-up rows",
        "claimed_epsilon": 2.0,
        "delta": 1e-5,
        "rounds": 3,
        "steps": 24,
        "confidence": 0.95,
        "gradient": gradient,
        "code_version": "1",
        "made": datetime(2026, 3, 1, tzinfo=UTC),
    }
    return AuditReport.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("claimed", "verdict", "words"),
    [
        (1.0, "refuted", "does not hold"),
        (2.0, "not refuted", "could have proven up to 3.20"),
        (4.0, "cannot refute", "even a perfect attack proves at most 3.20"),
    ],
)
def test_rule_23_verdict_names_what_the_audit_could_have_proven(claimed, verdict, words):
    found = report(claimed_epsilon=claimed)

    assert found.verdict == verdict
    assert words in sentences(found)[0]


def test_failed_checks_are_named_and_said():
    checks = [
        WhiteBoxCheck(check="noise_scale", measured="0.1", expected="1", passed=False),
        WhiteBoxCheck(check="noise_mean", measured="0", expected="0", passed=True),
    ]

    found = report(checks=checks)

    assert found.failed_checks == ("noise_scale",)
    assert any("1 checks failed" in said for said in sentences(found))


def test_rule_23_a_report_on_private_rows_is_written_to_no_store_but_the_sites():
    store = MemoryStore()

    with pytest.raises(PrivacyError, match="stays at the site"):
        write_audit(store, report(rows="private"))

    assert store.list("") == []
    assert keep_audit(store, report(rows="private")) == 1


def test_audits_are_numbered_and_never_replaced():
    store = MemoryStore()

    numbers = [write_audit(store, report(site=site)) for site in ("a", "b", "c")]

    assert numbers == [1, 2, 3]
    assert [found.site for _, found in read_audits(store, "tiny")] == ["a", "b", "c"]


def test_what_is_no_audit_is_not_read_as_one():
    store = MemoryStore()
    store.put_once("campaigns/tiny/audits/notes.json", b"{}")
    write_audit(store, report())

    assert [number for number, _ in read_audits(store, "tiny")] == [1]


def test_rule_23_no_figure_in_mlflow_calls_a_lower_bound_epsilon():
    names = audit_metrics(report())

    assert names["audit/lower_bound"] == 1.4
    assert [name for name in names if "epsilon" in name] == ["audit/claimed_epsilon"]


@pytest.mark.parametrize(
    ("value", "degrees", "score"),
    [
        # Quantiles of chi-square from published tables: 97.5 % and 2.5 % with 10 and 100 degrees.
        (20.483, 10, 1.96),
        (3.247, 10, -1.96),
        (129.561, 100, 1.96),
        (74.222, 100, -1.96),
    ],
)
def test_score_of_a_chi_square_is_that_of_its_quantile(value, degrees, score):
    assert chi_square_score(value, degrees) == pytest.approx(score, abs=0.02)


def test_steps_show_noise_that_is_one_percent_off():
    # 21,127 numbers of the demo's adapter: 34 steps are 718,318 values.
    assert steps_needed(21_127) == 34
    assert steps_needed(10**7) == 32
    assert noise_steps(10**7) == 4
    assert steps_needed(10) == 640
