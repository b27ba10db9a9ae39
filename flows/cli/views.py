"""What people see of a campaign: tables, and the live line while rounds run.

All of it is read from the store, so it can be watched from anywhere and without Prefect.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fl_core.artifacts import keys
from fl_core.artifacts.store import ObjectStore, exists
from fl_core.assembly import Assembly
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import ROW, ClientDp, RecordDp
from fl_core.privacy.federation import Federation
from fl_core.rounds.plan import read_assembly
from fl_core.rounds.status import CampaignStatus, RoundStatus, campaign_status
from flows.cli.output import console_err
from tasks.round_table import budget_rows, round_rows


def campaign_ids(store: ObjectStore) -> list[str]:
    """Return the ids of all campaigns in the store, sorted."""
    found = map(keys.campaign_id_of, store.list("campaigns/"))
    return sorted(campaign_id for campaign_id in found if campaign_id is not None)


class StatusReader:
    """Reads a campaign's status again and again; what cannot change any more is read once.

    Args:
        store: The campaigns' store.
        campaign_id: The campaign.
        federation: Finds the ledger that pays for noise of the coordinator, where there is one.
    """

    def __init__(
        self,
        store: ObjectStore,
        campaign_id: str,
        *,
        federation: Callable[[Assembly], Federation | None] = lambda _: None,
    ) -> None:
        self._store, self._campaign_id, self._find = store, campaign_id, federation
        self._federation: Federation | None = None
        self._assembly: Assembly | None = None
        self._known: dict[int, RoundStatus] = {}

    def read(self) -> CampaignStatus | None:
        """Return the status now; None while the campaign is not frozen."""
        if self._assembly is None:
            if not exists(self._store, keys.campaign(self._campaign_id)):
                return None
            self._assembly = read_assembly(self._store, self._campaign_id)
            self._federation = self._find(self._assembly)
        status = campaign_status(
            self._assembly,
            self._store,
            known=self._known,
            federation=self._federation,
        )
        self._known = {r.round: r for r in status.rounds if r.is_final}
        return status


def schedule_table(
    campaign: Campaign, epsilons: Sequence[float], client_epsilons: Sequence[float] = ()
) -> Table:
    """Return the epsilons after every round, before anything runs.

    Args:
        campaign: With its noise stated.
        epsilons: Of one unit of a site's rows after each round; empty without RecordDp.
        client_epsilons: Of a whole site after each round; empty without ClientDp.
    """
    record, client = campaign.privacy.record, campaign.privacy.client
    title = f"campaign {campaign.id}: {len(campaign.sites)} sites, {campaign.max_rounds} rounds"
    if record is None and client is None:
        reason = campaign.privacy.none.reason if campaign.privacy.none else ""
        table = Table(title=title, caption=Text(f"no privacy: {reason}"))
        table.add_column("no guarantee, no epsilon")
        return table
    captions: list[str] = []
    columns: dict[str, Sequence[float]] = {}
    if record is not None:
        columns["epsilon"] = epsilons
        captions.append(
            f"every {protected(record)} of every site, delta {record.delta:g}, "
            f"limit {record.epsilon:g}, by PLD"
        )
    if client is not None:
        columns["site epsilon"] = client_epsilons
        captions.append(
            f"every site as a whole, delta {client.delta:g}, limit {client.epsilon:g}, exact; "
            f"noise of the {noise_owner(client)}"
        )
    if campaign.cohort.upload_after_s is not None:
        captions.append(f"answers leave {campaign.cohort.upload_after_s:g} s after each plan")
    # A table of two narrow columns would fold its title and what it promises into five lines.
    widest = max(map(len, [title, *captions]))
    table = Table(
        title=title, caption="\n".join(captions), min_width=min(widest + 2, console_err.width)
    )
    table.add_column("after round", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for number, spent in enumerate(zip(*columns.values(), strict=True), start=1):
        table.add_row(str(number), *(f"{epsilon:.2f}" for epsilon in spent))
    return table


def noise_owner(client: ClientDp) -> str:
    """Return who adds the noise on whole sites, in words that say whom it protects against."""
    if client.mechanism == "local_gaussian":
        return "sites, against everybody"
    return "coordinator, which itself sees updates without it"


def protected(record: RecordDp) -> str:
    """Return whom a guarantee protects, such as ``patient_id (up to 4 rows each)``."""
    if record.unit == ROW:
        return "record"
    rows = "one row" if record.max_rows_per_unit == 1 else f"up to {record.max_rows_per_unit} rows"
    return f"{record.unit} ({rows} each)"


def rounds_table(status: CampaignStatus) -> Table:
    """Return the rounds of a campaign."""
    ending = f", {status.end}" if status.end else ""
    return _table(
        round_rows(status.rounds),
        title=f"campaign {status.campaign_id}{ending}",
        left=("sites",),
    )


def budgets_table(status: CampaignStatus) -> Table:
    """Return the latest budget of every site, as the sites state it."""
    return _table(
        budget_rows(status),
        title="privacy budgets, over all campaigns of a site's data",
        left=("site", "accountant"),
    )


def _table(rows: Sequence[Mapping[str, str]], *, title: str, left: Container[str]) -> Table:
    # Narrow enough for 80 columns: a head is broken between its words, a figure never.
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0] if rows else ("nothing yet",):
        table.add_column(
            name.replace(" ", "\n"),
            justify="left" if name in left else "right",
            no_wrap=name != "sites",
        )
    for row in rows:
        # Text, not markup: a reason or a name is shown as it is written.
        table.add_row(*(Text(cell) for cell in row.values()))
    return table


class LiveRounds:
    """The live view of a run: the rounds so far, and which sites have answered in the open one."""

    def __init__(self, campaign_id: str) -> None:
        self._campaign_id = campaign_id
        self._live = Live(console=console_err, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        self._live.update(f"campaign {self._campaign_id}: is being locked and frozen")
        return self

    def update(self, status: CampaignStatus | None) -> None:
        """Show the current status; None while the campaign is not frozen yet."""
        if status is not None:
            self._live.update(rounds_table(status))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
