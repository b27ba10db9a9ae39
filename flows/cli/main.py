"""The command `fedloom`: one file per group of commands.

The modules of the groups import nothing heavy at their top, so `fedloom --help` is quick and a
command pays for what it uses only. An error of ours ends with one line and a hint, never with a
traceback.
"""

import sys

import typer

from fl_core.errors import FedloomError
from flows.cli import (
    audit,
    backup,
    campaigns,
    decisions,
    demo,
    deployment,
    doctor,
    federation,
    gateway,
    ledger,
    plan,
    readouts,
    roster,
    simulation,
    site_gateway,
    site_table,
    sites,
    stack,
    statement,
)
from flows.cli.output import fail

app = typer.Typer(
    name="fedloom",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Fine-tune one language model together while every record stays at its site.\n\n"
        "Start with `fedloom demo`; it needs nothing else."
    ),
)
app.command("demo")(demo.demo)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.command("doctor")(doctor.doctor)
app.command("init")(campaigns.init)
app.command("check")(campaigns.check)
app.command("plan")(plan.plan)
app.command("run")(campaigns.run)
app.command("status")(campaigns.status)
app.command("statement")(statement.statement)
app.command("simulate")(simulation.simulate)
app.command("audit")(audit.audit)
app.command("enrol")(roster.enrol)
app.command("revoke")(roster.revoke)
app.command("rotate")(roster.rotate)
app.command("sites")(site_table.sites)
app.command("secrets")(deployment.secrets)
app.command("register")(deployment.register)
app.command("schedule")(deployment.schedule)

app.command("backup")(backup.backup)
app.command("restore")(backup.restore)

ledger_app = typer.Typer()
ledger_app.callback(invoke_without_command=True)(ledger.ledger)
ledger_app.command("recover")(ledger.ledger_recover)
app.add_typer(ledger_app, name="ledger")

site_app = typer.Typer(no_args_is_help=True, help="What a site's operator runs at the site.")
site_app.command("init")(sites.site_init)
site_app.command("start")(sites.site_start)
site_app.command("approve")(sites.site_approve)
site_app.command("outbox")(decisions.site_outbox)
site_app.command("pause")(decisions.site_pause)
site_app.command("resume")(decisions.site_resume)
site_app.command("refuse")(decisions.site_refuse)
site_app.command("leave")(decisions.site_leave)
site_app.command("witness")(sites.site_witness)
site_app.command("enrolment")(roster.site_enrolment)
site_app.command("gateway")(site_gateway.site_gateway)
site_app.command("rotate")(roster.site_rotate)
site_app.command("readout")(readouts.site_readout)
app.add_typer(site_app, name="site")

federation_app = typer.Typer(
    no_args_is_help=True, help="The ledger of a coordinator that adds noise itself."
)
federation_app.command("init")(federation.federation_init)
federation_app.command("show")(federation.federation_show)
app.add_typer(federation_app, name="federation")

gateway_app = typer.Typer(
    no_args_is_help=True, help="The sites' only door: one TLS port at the coordinator."
)
gateway_app.command("start")(gateway.gateway_start)
gateway_app.command("show")(gateway.gateway_show)
app.add_typer(gateway_app, name="gateway")

evaluation_app = typer.Typer(no_args_is_help=True, help="The worker with the public holdout.")
evaluation_app.command("start")(sites.evaluation_start)
app.add_typer(evaluation_app, name="evaluation")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except FedloomError as error:
        try:
            fail(error)
        except typer.Exit as ending:
            sys.exit(ending.exit_code)


if __name__ == "__main__":
    main()
