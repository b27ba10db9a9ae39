"""A whole audit on a tiny model: every part is in the report, and no seeded run passes as one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import CLASSES, locked_spec, tiny_base, tiny_rows
from worlds import campaign_of

from fl_core.adapters.peft_layout import initial_state
from fl_core.assembly import noise_plan
from fl_core.models.peft_state import attach
from fl_core.privacy.audit_documents import AuditReport
from fl_core.privacy.forecast import epsilon_after
from fl_core.privacy.randomness import SecureStream, SeededStream
from fl_core.training.audit_report import SEEDED, Source, audit
from fl_core.training.audit_run import Claim, Setting

torch.set_num_threads(1)


def audited(rule: str, streams: Callable) -> tuple[AuditReport, list[str]]:
    base = tiny_base(CLASSES)
    campaign = campaign_of(
        ("north",),
        max_rounds=2,
        task=CLASSES.model_dump(),
        adapter=locked_spec(base, CLASSES, rank=64, rule=rule).model_dump(),
        training={"local_steps": 2, "batch_size": 8, "learning_rate": 0.1},
    )
    claim = Claim(epsilon_after(campaign, 2), 1e-5, 0.95)
    noise = noise_plan(campaign)
    assert noise is not None
    setting = Setting(
        campaign=campaign,
        noise=noise,
        site="north",
        model=attach(
            base, campaign.adapter, campaign.task, initial_state(campaign.adapter, campaign.task)
        ),
        rows=tiny_rows(CLASSES, 100),
        texts=tiny_rows(CLASSES, 40, seed=5),
        n_gradient_canaries=500,
        streams=streams,
    )
    said: list[str] = []
    report = audit(setting, claim, Source("public", "random tokens"), on_progress=said.append)
    return report, said


@pytest.fixture(scope="module")
def rolora() -> tuple[AuditReport, list[str]]:
    return audited("rolora", SecureStream)


def test_report_holds_the_claim_and_what_every_attack_came_to(rolora):
    report, _ = rolora

    assert report.claimed_epsilon > 0
    assert report.gradient.canaries == 500
    assert report.text is not None
    assert report.text.canaries == 40
    assert report.membership is not None
    assert report.membership.members + report.membership.others == 100
    assert report.steps == 4
    assert report.label is None


def test_tensors_that_only_even_rounds_train_are_checked_too(rolora):
    report, _ = rolora
    names = [check.check for check in report.checks]

    assert report.failed_checks == ()
    assert "noise_of_every_tensor" in names
    assert "noise_of_every_tensor_in_even_rounds" in names
    assert len(names) == len(set(names))


def test_what_is_being_done_is_said_before_each_part(rolora):
    _, said = rolora

    assert said == ["white-box checks", "round 1", "round 2", "bounds"]


def test_rule_07_an_audit_with_a_seed_says_that_it_is_none_and_finds_the_repeats():
    report, _ = audited("ffa_lora", lambda: SeededStream(1))

    assert report.label == SEEDED
    assert {"noise_is_fresh", "coins_are_fresh"} <= set(report.failed_checks)


def test_coins_of_canaries_are_fair(rolora):
    report, _ = rolora
    found = report.membership

    # 100 fair coins: 50 with deviation 5; 4.9 of them are passed once in a million.
    assert found is not None
    assert abs(found.members - 50) < 25
    assert np.isfinite(report.gradient.lower_bound)
