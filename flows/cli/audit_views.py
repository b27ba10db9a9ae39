"""What people see of an audit: checks, bounds, and what they mean in words."""

from rich import box
from rich.table import Table
from rich.text import Text

from fl_core.privacy.audit_documents import AuditReport, CanaryAudit


def checks_table(report: AuditReport) -> Table:
    """Return the white-box checks: measured, expected, verdict."""
    table = Table(
        title="training, checked from inside",
        caption="each alarms by chance once in a million audits",
        box=box.SIMPLE_HEAD,
    )
    for name in ("check", "measured", "expected", ""):
        table.add_column(name)
    for check in report.checks:
        verdict = Text("ok", style="green") if check.passed else Text("FAILED", style="bold red")
        table.add_row(
            check.check.replace("_", " "), Text(check.measured), Text(check.expected), verdict
        )
    return table


def findings_table(report: AuditReport) -> Table:
    """Return bounds of every kind of canary beside the claim."""
    table = Table(
        title=f"{report.campaign_id}: what an attack could prove",
        caption=f"{report.confidence:.0%} confidence, delta {report.delta:g}, "
        f"{report.rounds} rounds, {report.steps} noised steps, {report.rows} rows",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("attack")
    for name in ("canaries", "guesses", "right", "audit lower\nbound", "could\nprove"):
        table.add_column(name, justify="right")
    table.add_column("claimed\nepsilon", justify="right")
    for audit, attack in (
        (report.gradient, "every noised step, canary gradients"),
        (report.text, "final adapter, canary texts"),
    ):
        if audit is not None:
            table.add_row(attack, *_figures(audit), f"{report.claimed_epsilon:.2f}")
    return table


def sentences(report: AuditReport) -> list[str]:
    """Return what an audit says, in words; never more than it says."""
    said = [_VERDICTS[report.verdict].format(report=report)]
    found = report.membership
    if found is not None:
        said.append(
            f"Membership of a row, told from its loss: AUC {found.auc:.2f} "
            f"({found.low:.2f} to {found.high:.2f}; 0.5 tells nothing) with {found.members} rows "
            f"that took part and {found.others} that did not."
        )
    if report.failed_checks:
        said.append(
            f"{len(report.failed_checks)} checks failed: what is trained here is not what is "
            "accounted for. Do not train on private rows with this installation."
        )
    if report.label is not None:
        said.append(f"Label: {report.label}.")
    return said


_VERDICTS = {
    "refuted": (
        "REFUTED: the attack proves more than the claimed epsilon {report.claimed_epsilon:.2f}. "
        "The guarantee does not hold."
    ),
    "not refuted": (
        "Not refuted: the attack proves {report.lower_bound:.2f} and could have proven up to "
        "{report.gradient.ceiling:.2f}; {report.claimed_epsilon:.2f} is claimed. This speaks of "
        "this run only."
    ),
    "cannot refute": (
        "Cannot refute: with {report.gradient.canaries} canaries even a perfect attack proves at "
        "most {report.gradient.ceiling:.2f}, less than the claimed {report.claimed_epsilon:.2f}. "
        "A small bound here says nothing; the checks above do."
    ),
}


def _figures(audit: CanaryAudit) -> tuple[str, ...]:
    return (
        f"{audit.canaries}",
        f"{audit.guesses}",
        f"{audit.correct}",
        f"{audit.lower_bound:.2f}",
        f"{audit.ceiling:.2f}",
    )


def unkept(campaign_id: str, *, is_store_there: bool) -> str:
    """Return why a report is only shown, and what would keep one."""
    if not is_store_there:
        return "not kept: no store is reached; start the stack, or set FEDLOOM_STORE"
    return (
        f"not kept: campaign {campaign_id} has not started in this store; once it has, "
        f"`fedloom audit {campaign_id}` keeps a report that later versions' statements quote"
    )
