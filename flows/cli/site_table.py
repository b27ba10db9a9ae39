"""`fedloom sites`: who is enrolled, who is there, and what everybody does."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fl_core.errors import ServerFailed
from flows.cli.context import HomeOption, JsonOption, use_coordinator
from flows.cli.output import console_err, print_json

if TYPE_CHECKING:
    from datetime import datetime

    from flows.site_presence import Presence
    from tasks.site_states import SiteFacts


@dataclass(frozen=True, slots=True)
class _Row:
    facts: "SiteFacts"
    presence: "Presence | None"
    state: str


def sites(home: HomeOption = Path(".fedloom"), json_output: JsonOption = False) -> None:
    """Show every site that was ever enrolled: key, last seen, versions, rounds, state.

    Without Prefect the rest is shown, and who is there now is unknown.

    Example: `fedloom sites`
    """
    use_coordinator(home, needed=("s3",))
    from flows.site_presence import Presence, presences
    from tasks.settings import open_store, read_settings
    from tasks.site_states import site_facts, state_of

    found = site_facts(open_store(read_settings()))
    there: dict[str, Presence] | None = None
    away = ""
    try:
        there = presences([facts.entry.site for facts in found])
    except ServerFailed as error:
        away = f"{error}"
        console_err.print(f"warning: who is there now is unknown: {error}", markup=False)
    rows = []
    for facts in found:
        presence = None if there is None else there[facts.entry.site]
        state = state_of(
            facts,
            campaign=None if presence is None else presence.campaign,
            is_online=None if presence is None else presence.is_online,
        )
        rows.append(_Row(facts, presence, state))
    console_err.print(_table(rows))
    for facts in found:
        for complaint in facts.complaints:
            console_err.print(f"warning: {complaint}", markup=False)
    if json_output:
        print_json({"sites": [_plain(row) for row in rows], "prefect": away or "answers"})


def _table(rows: list[_Row]) -> Table:
    table = Table(title="sites")
    for name in ("site", "fingerprint", "since", "last seen, UTC", "versions", "rounds", "state"):
        table.add_column(name, overflow="fold")
    for row in rows:
        facts, entry = row.facts, row.facts.entry
        table.add_row(
            entry.site,
            facts.fingerprint,
            _day(entry.since),
            _moment(None if row.presence is None else row.presence.last_seen),
            _versions(facts),
            f"{facts.answered}/{facts.asked}",
            row.state if entry.revoked is None else f"revoked {_day(entry.revoked)}",
        )
    return table


def _versions(facts: "SiteFacts") -> str:
    if facts.hello is None:
        return "-"
    found = facts.hello.versions
    return " ".join(f"{name} {found[name]}" for name in ("fedloom", "torch") if found.get(name))


def _plain(row: _Row) -> dict[str, Any]:
    entry, presence = row.facts.entry, row.presence
    seen = None if presence is None else presence.last_seen
    return {
        "site": entry.site,
        "fingerprint": row.facts.fingerprint,
        "signing_key": entry.signing_key,
        "since": entry.since.isoformat(),
        "revoked": None if entry.revoked is None else entry.revoked.isoformat(),
        "reason": entry.reason,
        "last_seen": None if seen is None else seen.isoformat(),
        "online": None if presence is None else presence.is_online,
        "versions": {} if row.facts.hello is None else row.facts.hello.versions,
        "complaints": list(row.facts.complaints),
        "asked": row.facts.asked,
        "answered": row.facts.answered,
        "due": list(row.facts.due),
        "state": row.state,
    }


def _day(when: "datetime") -> str:
    return f"{when:%Y-%m-%d}"


def _moment(when: "datetime | None") -> str:
    return "-" if when is None else f"{when:%Y-%m-%d %H:%M:%S}"
