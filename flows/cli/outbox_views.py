"""What `fedloom site outbox` and `fedloom site approve --round` show at the terminal."""

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from tasks.outbox_page import (
    approve_command,
    charge_text,
    manifest_lines,
    resume_command,
    size_text,
    unreadable_text,
)
from tasks.outbox_view import ExchangeView, OutboxView, RequestView

_DIGITS = 12


def outbox_tables(view: OutboxView) -> Iterator[Table | Text]:
    """Yield the outbox as tables: rounds, requests, and what holds now."""
    yield _rounds(view)
    if view.requests:
        yield _requests(view)
    yield Text("\n".join(_standing(view)))


def exchange_lines(one: ExchangeView) -> list[str]:
    """Return one exchange in lines: everything that would leave, and what it costs."""
    lines = [f"campaign {one.campaign} ({one.digest}), round {one.round}: {one.progress}"]
    lines += [
        f"  {'leaves' if file.leaves else 'stays '}  {file.name}  {file.size_bytes} bytes  "
        f"SHA-256 {file.sha256}"
        for file in one.files
    ]
    lines += [f"  {name}: {text}" for name, text in manifest_lines(one)]
    lines.append(f"  charged: {charge_text(one.charge)}")
    if one.until is not None:
        lines.append(f"  can be approved until {one.until.isoformat()}")
    return lines


def _rounds(view: OutboxView) -> Table:
    title = f"outbox of {view.site}: {len(view.exchanges)} of {view.n_exchanges} rounds"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for name in ("campaign", "round", "state", "leaves", "payload SHA-256", "charge", "why"):
        table.add_column(name, justify="right" if name in {"round", "leaves"} else "left")
    for one in view.exchanges:
        stated = one.manifest
        row = (
            one.campaign,
            str(one.round),
            one.progress,
            size_text(one.leaving_bytes) if one.files else "-",
            "-" if stated is None else stated.payload_sha256[:_DIGITS],
            charge_text(one.charge),
            one.why,
        )
        # Text, not markup: a reason may hold what looks like one.
        table.add_row(*map(Text, row), style="yellow" if one.progress == "held" else None)
    return table


def _requests(view: OutboxView) -> Table:
    title = (
        f"requests: {view.n_requests} left with {size_text(view.sent_bytes)}, "
        f"{view.n_kept} kept here, {len(view.requests)} shown"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for name in ("time", "request", "bytes", "SHA-256", "answer", "process"):
        # Folded, not cut: what left is named in full.
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for one in view.requests:
        table.add_row(
            *map(
                Text,
                (
                    f"{one.at:%m-%d %H:%M:%S}",
                    f"{one.method} {one.what}",
                    str(one.size_bytes),
                    one.sha256[:_DIGITS],
                    _answer(one),
                    one.process,
                ),
            )
        )
    return table


def _answer(one: RequestView) -> str:
    if one.kept:
        return f"kept: {one.kept}"
    return "none" if one.status is None else str(one.status)


def _standing(view: OutboxView) -> Iterator[str]:
    if view.is_paused:
        yield f"paused: no new round is taken part in; {resume_command(view)} ends it"
    for one in view.exchanges:
        if one.progress == "held" and one.until is not None:
            yield (
                f"held: {one.campaign}, round {one.round}, until {one.until.isoformat()}; "
                f"{approve_command(view, one)}"
            )
    if view.refused:
        yield f"refused: {'; '.join(view.refused)}"
    if view.left:
        yield f"left: {', '.join(view.left)}"
    if view.complaint:
        yield f"the ledger does not hold: {view.complaint}"
    if view.n_unreadable:
        yield unreadable_text(view.n_unreadable)
    yield f"log lines that left: {view.log_lines}"
