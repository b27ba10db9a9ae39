"""Evaluation and MLflow: views of a round that is closed already.

If the evaluation worker or MLflow is away, the round stands; whatever is not logged yet is logged
by the next call, in order. `logged.json` says that a round is in MLflow.
"""

import contextlib
import fcntl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, sha256_hex, to_bytes, write_document
from fl_core.artifacts.store import ObjectStore, exists
from fl_core.assembly import Assembly
from fl_core.errors import RoundError, StoreError
from fl_core.privacy.federation import Federation
from fl_core.privacy.plan_start import plan_from_first_round
from fl_core.privacy.statement_text import to_markdown
from fl_core.privacy.warnings import campaign_warnings
from fl_core.rounds.adapters import read_adapter
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.plan import read_assembly, read_outcome
from fl_core.rounds.status import (
    RoundStatus,
    campaign_status,
    next_round,
    round_numbers,
    round_status,
)
from fl_core.rounds.version_statement import version_statement
from tasks import reports
from tasks.federation import known_federation
from tasks.plan_figure import draw_plan
from tasks.settings import Settings, open_store, read_settings
from tasks.statement_page import to_html
from tasks.tracking import LoggedRound, RoundLog, close_campaign, log_round


@task(name="log-rounds", cache_policy=NO_CACHE, persist_result=False)
def log_pending(campaign_id: str, evaluate: Callable[[str, int], bool]) -> int:
    """Evaluate and log every closed round that is not in MLflow yet; return how many were.

    Args:
        campaign_id: The campaign.
        evaluate: Asks the evaluation worker for one release; False if it does not answer.
    """
    settings = read_settings()
    with one_writer(settings.store_url, campaign_id):
        return _log_pending(campaign_id, evaluate, settings)


def _log_pending(campaign_id: str, evaluate: Callable[[str, int], bool], settings: Settings) -> int:
    store = open_store(settings)
    assembly = read_assembly(store, campaign_id)
    logged, is_behind = 0, False
    for number in round_numbers(store, campaign_id):
        if exists(store, keys.logged(campaign_id, number)):
            continue
        status = round_status(assembly, store, number)
        if status.outcome is None:
            is_behind = True
            break
        is_due = status.outcome.status == "released" and status.evaluation is None
        if is_due and not evaluate(campaign_id, number):
            get_run_logger().warning("evaluation away, round %d is logged later", number)
            is_behind = True
            break
        if not _log(assembly, store, number, settings):
            is_behind = True
            break
        logged += 1
    if not is_behind:
        _close_if_ended(assembly, store, known_federation(assembly, settings, store))
    _report(assembly, store)
    return logged


@contextlib.contextmanager
def one_writer(store_url: str, campaign_id: str) -> Iterator[None]:
    """Let one process of this machine log a campaign at a time; others wait.

    MLflow has no conditional create: two coordinators that were both told to run a campaign would
    make two runs and two versions of one round.
    """
    name = sha256_hex(f"{store_url} {campaign_id}".encode())[:16]
    with (Path(tempfile.gettempdir()) / f"fedloom-log-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def round_log(assembly: Assembly, store: ObjectStore, number: int, settings: Settings) -> RoundLog:
    """Gather from the store all that MLflow shows of one round."""
    campaign = assembly.campaign
    status = round_status(assembly, store, number)
    outcome = status.outcome
    plan = read_document(store, keys.plan(campaign.id, number), RoundPlan)
    if outcome is None:
        raise RoundError(f"round {number} of campaign {campaign.id!r} has no outcome yet")
    released = outcome.result_hash
    statement = version_statement(assembly, store, number) if released is not None else None
    prefix = "" if released is None else keys.adapter(campaign.id, released)
    return RoundLog(
        campaign=campaign,
        outcome=outcome,
        evaluation=status.evaluation,
        budgets=status.budgets,
        federation=status.federation,
        adapter_files=None if released is None else read_adapter(store, campaign.id, released),
        adapter_uri=f"{settings.store_url.rstrip('/')}/{prefix}" if prefix else "",
        bytes_up=status.bytes_up,
        bytes_down=status.bytes_down,
        code_version=plan.code_version,
        statement_json=None if statement is None else to_bytes(statement),
        statement_markdown=None if statement is None else to_markdown(statement),
        statement_html=None if statement is None else to_html(statement),
        **_first_plan(assembly, status),
    )


def _first_plan(assembly: Assembly, status: RoundStatus) -> dict[str, bytes]:
    # Once per campaign: it says what all rounds will cost, and drawing takes a second.
    campaign = assembly.campaign
    if status.round != 1 or campaign.privacy.none is not None:
        return {}
    plan = plan_from_first_round(campaign, status.budgets, federation=status.federation)
    return {"plan_json": to_bytes(plan), "plan_png": draw_plan(plan)}


def _log(assembly: Assembly, store: ObjectStore, number: int, settings: Settings) -> bool:
    logger = get_run_logger()
    try:
        logged = log_round(round_log(assembly, store, number, settings))
    except StoreError as error:
        # A round never fails because of a view of it.
        logger.error("round %d is not in MLflow yet: %s", number, error)  # noqa: TRY400
        return False
    write_document(store, keys.logged(assembly.campaign.id, number), logged)
    logger.info(
        "round logged round=%d version=%s %s", number, logged.model_version, logged.chart_url
    )
    return True


def _close_if_ended(assembly: Assembly, store: ObjectStore, federation: Federation | None) -> None:
    """Close the campaign's run in MLflow when there is no further round; repeating it is safe."""
    campaign = assembly.campaign
    ending = next_round(assembly, store, federation=federation)
    numbers = round_numbers(store, campaign.id)
    last = read_outcome(store, campaign.id, numbers[-1]) if numbers else None
    if isinstance(ending, int) or last is None:
        return
    try:
        close_campaign(campaign, closed=last.closed, reason=ending)
    except StoreError as error:
        get_run_logger().warning("the campaign is closed in MLflow later: %s", error)


def last_logged(store: ObjectStore, campaign_id: str) -> LoggedRound | None:
    """Return the newest entry that MLflow has of a campaign with a model version, or None."""
    for number in reversed(round_numbers(store, campaign_id)):
        key = keys.logged(campaign_id, number)
        if exists(store, key):
            entry = read_document(store, key, LoggedRound)
            if entry.model_version is not None:
                return entry
    return None


def _report(assembly: Assembly, store: ObjectStore) -> None:
    newest = last_logged(store, assembly.campaign.id)
    reports.report_campaign(
        campaign_status(assembly, store),
        mlflow_url=None if newest is None else newest.chart_url,
        statement_url=None if newest is None else newest.statement_url,
        warnings=[warning.line for warning in campaign_warnings(assembly.campaign)],
    )
