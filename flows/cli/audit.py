"""`fedloom audit`: attack the private training, and check it from inside.

Runs in this process on public or made-up rows, or at a site on its own rows. It says how far an
attack came, how far it could have come at all, and what the accountant claims, side by side.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import CampaignError
from flows.cli.context import HomeOption, JsonOption
from flows.cli.output import console_err, print_json, progress

if TYPE_CHECKING:
    from rich.progress import Progress

    from fl_core.artifacts.store import ObjectStore
    from fl_core.campaign.campaign import Campaign
    from fl_core.data.rows import Rows
    from fl_core.privacy.audit_documents import AuditReport
    from tasks.audit_steps import Request


def audit(  # noqa: PLR0913, PLR0917  one parameter per option of the command
    file: Annotated[
        str, typer.Argument(help="Campaign file, TOML, YAML or locked, or an id in the store.")
    ],
    rows: Annotated[
        Path | None,
        typer.Option(help="Public rows; left out: the demo's own, or made-up texts."),
    ] = None,
    site_home: Annotated[
        Path | None,
        # Private rows are audited where this is said, and never because a variable is set.
        typer.Option(help="A site's own folder: audit on its rows; the report stays there."),
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="Site whose public batch size is used; else the first.")
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=0, max=100_000, help="Gradient canaries; 0: what the claim needs.")
    ] = 0,
    text_canaries: Annotated[
        int, typer.Option(min=0, max=10_000, help="Made-up texts with random labels.")
    ] = 200,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Confidence of bounds and intervals.")
    ] = 0.95,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of training.")] = 1,
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Audit a campaign: a lower bound on epsilon from an attack, beside the claimed upper bound.

    Also checks noise, clipping and batches of the training code from inside. Ends with 1 if the
    claim is refuted or a check fails.

    Example: `fedloom audit my-first.toml --rows public.csv`
    """
    from tasks.audit_steps import Request

    if site_home is not None and rows is not None:
        raise CampaignError("--site-home audits on the site's rows; leave out one of it and --rows")
    store = None if site_home is not None else _store(home)
    campaign = _campaign(file, store)
    request = Request(
        campaign=campaign,
        site=like,
        canaries=canaries or None,
        text_canaries=text_canaries,
        confidence=confidence,
        threads=threads,
    )
    if site_home is not None:
        report, kept = _at_site(request, site_home)
    else:
        report = _on_public(request, rows)
        kept = _publish(report, store, home)
    _show(report)
    console_err.print(kept["where"], markup=False, soft_wrap=True)
    if json_output:
        print_json(_document(report) | {"kept": kept})
    if report.verdict == "refuted" or report.failed_checks:
        raise typer.Exit(1)


def _campaign(file: str, store: "ObjectStore | None") -> "Campaign":
    """Return the frozen campaign where the store has it, else the file's."""
    from fl_core.artifacts import keys
    from fl_core.artifacts.store import exists
    from fl_core.campaign.loading import read_campaign
    from flows.cli.plan import read_planned
    from tasks.audit_steps import require_same_campaign

    path = Path(file)
    if not path.is_file():
        return read_planned(file, store)
    written = read_campaign(path)
    if store is None or not exists(store, keys.campaign(written.id)):
        return written
    return require_same_campaign(written, read_planned(written.id, store))


def _store(home: Path) -> "ObjectStore | None":
    from flows.cli.plan import store_if_any

    return store_if_any(home)


def _on_public(request: "Request", rows: Path | None) -> "AuditReport":
    from tasks.audit_steps import audit_public
    from tasks.locking import shelves_of
    from tasks.settings import read_folders

    with progress(counts=True) as bar:
        return audit_public(
            request,
            _rows(request.campaign, rows),
            shelves=shelves_of(read_folders()),
            on_progress=_steps(bar, request.campaign.max_rounds),
        )


def _at_site(request: "Request", site: Path) -> tuple["AuditReport", dict[str, Any]]:
    from tasks.audit_steps import audit_at_site
    from tasks.site_config import SiteHome

    with progress(counts=True) as bar:
        report, number = audit_at_site(
            request, SiteHome(site), on_progress=_steps(bar, request.campaign.max_rounds)
        )
    where = f"kept as number {number} in {site / 'audits'}, for people of this site only"
    return report, {"number": number, "mlflow_run_id": None, "where": where}


def _steps(bar: "Progress", rounds: int) -> Any:
    """Return a callback that shows what is being done: the model, the checks, every round."""
    task = bar.add_task("starting", total=rounds + 2)
    begun = False

    def show(what: str) -> None:
        nonlocal begun
        bar.update(task, description=what, advance=1 if begun else 0)
        begun = True

    return show


def _rows(campaign: "Campaign", file: Path | None) -> "Rows | None":
    """Return public rows: of a file, or of the demo's package for the demo's campaign."""
    from flows.demo_data import LABELS, demo_rows
    from tasks.simulation_setting import require_no_ledger

    if file is not None:
        from tasks.site_rows import read_rows

        require_no_ledger(file)
        return read_rows(file)
    is_demo = campaign.task.labels == LABELS and campaign.task.target == "label"
    if not (is_demo and campaign.privacy.record and campaign.privacy.record.unit == "row"):
        return None
    from fl_core.data.rows import rows_of

    found = demo_rows()
    return rows_of(found[found["label"].isin(LABELS)], "public work orders of the demo")


def _publish(report: "AuditReport", store: "ObjectStore | None", home: Path) -> dict[str, Any]:
    """Keep a report beside its campaign, if there is one in a store."""
    import os

    from fl_core.artifacts import keys
    from fl_core.artifacts.store import exists
    from tasks.audit_steps import publish_audit

    if store is None or not exists(store, keys.campaign(report.campaign_id)):
        from flows.cli.audit_views import unkept

        where = unkept(report.campaign_id, is_store_there=store is not None)
        return {"number": None, "mlflow_run_id": None, "where": where}
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _local_mlflow(home)
    kept = publish_audit(store, report, tracking_uri=uri)
    in_mlflow = "" if kept["mlflow_run_id"] is None else ", and on the campaign's run in MLflow"
    where = f"kept as {keys.audit(report.campaign_id, kept['number'])} in the store{in_mlflow}"
    return {**kept, "where": where}


def _local_mlflow(home: Path) -> str | None:
    from flows.local_stack import connect

    stack = connect(home, needed=("mlflow",))
    return None if stack is None else stack.mlflow_url


def _document(report: "AuditReport") -> dict[str, Any]:
    return report.model_dump(mode="json") | {
        "lower_bound": report.lower_bound,
        "verdict": report.verdict,
        "failed_checks": list(report.failed_checks),
    }


def _show(report: "AuditReport") -> None:
    from flows.cli.audit_views import checks_table, findings_table, sentences

    console_err.print(checks_table(report))
    console_err.print(findings_table(report))
    for sentence in sentences(report):
        console_err.print(sentence, markup=False, soft_wrap=True)
