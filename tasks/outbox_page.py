"""The site's outbox as a page for its operator: what left, what waits for a word, what was decided.

A site has no server of its own and needs none for this: the page is a file that is opened from the
disk. Everything in it is text, also what came from a campaign or a coordinator's answer.
"""

import shlex
from datetime import datetime
from html import escape

from tasks.outbox_view import ChargeView, ExchangeView, FileView, OutboxView, RequestView
from tasks.page_frame import card_of, page_of, table_of

_KIB = 1024
_SHOWN_SHAPES = 4


def to_page(view: OutboxView, *, made: datetime) -> str:
    """Return the outbox as one self-contained page."""
    held = [one for one in view.exchanges if one.progress == "held"]
    parts = [f'<section class="cards">\n{_cards(view, held)}</section>\n', _standing(view)]
    if held:
        parts += ["<h2>Waiting for your word</h2>\n", *(_held(view, one) for one in held)]
    parts += ["<h2>Rounds</h2>\n", _exchanges(view), *map(_details, view.exchanges)]
    parts += ["<h2>Every request that left</h2>\n", _requests(view)]
    parts += ["<h2>Decisions</h2>\n", _decisions(view)]
    return page_of(
        f"What leaves {view.site}",
        subtitle=f"Read from the site's own folder on {_time(made)}; dataset {view.dataset}",
        body="".join(parts),
    )


def size_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    if size < _KIB:
        return f"{size} B"
    return f"{size / _KIB:.1f} KiB" if size < _KIB**2 else f"{size / _KIB**2:.1f} MiB"


def epsilon_text(epsilon: float | None) -> str:
    """Return an epsilon as people read it; None is infinite."""
    return "infinite" if epsilon is None else f"{epsilon:.2f}"


def unreadable_text(n_lines: int) -> str:
    """Say that requests may be missing from what is shown."""
    what = "1 line" if n_lines == 1 else f"{n_lines} lines"
    return (
        f"{what} of the record of requests cannot be read (cut off by a power cut, changed, or "
        "written by a later fedloom), so more may have left than is shown."
    )


def charge_text(charge: ChargeView | None) -> str:
    """Return what a round was charged and what it does to the budget, in words."""
    if charge is None:
        return "nothing was charged"
    return (
        f"{charge.event}, entry {charge.ledger_seq} of the ledger: epsilon from "
        f"{epsilon_text(charge.epsilon_before)} to {epsilon_text(charge.epsilon_after)} of "
        f"{charge.epsilon_limit:g} at delta {charge.delta:g}"
    )


def manifest_lines(one: ExchangeView) -> list[tuple[str, str]]:
    """Return what a manifest states, as names and words."""
    stated = one.manifest
    if stated is None:
        return []
    shapes = [f"{name} {'x'.join(map(str, shape))}" for name, shape in stated.shapes.items()]
    more = len(shapes) - _SHOWN_SHAPES
    bound = "none enforced" if stated.norm_bound is None else f"{stated.norm_bound:g}"
    gate = stated.gate
    verdict = "passed" if gate.passed else f"failed: {', '.join(gate.failed)}"
    return [
        ("gate's bit", verdict),
        ("local steps", str(stated.local_steps)),
        ("bound of the update's norm", bound),
        ("tensors", ", ".join(shapes[:_SHOWN_SHAPES]) + (f", and {more} more" if more > 0 else "")),
        ("starts from adapter", stated.base_hash),
        ("payload", f"{size_text(stated.payload_bytes)}, SHA-256 {stated.payload_sha256}"),
        ("fedloom", stated.code_version),
        ("signature", stated.signature),
    ]


def approve_command(view: OutboxView, one: ExchangeView) -> str:
    """Return the command that lets a held exchange go, whatever folder it is run in."""
    words = ["site", "approve", one.campaign, "--round", str(one.round), "--home", view.folder]
    return f"fedloom {shlex.join(words)}"


def resume_command(view: OutboxView) -> str:
    """Return the command that ends a pause, whatever folder it is run in."""
    return f"fedloom {shlex.join(['site', 'resume', '--home', view.folder])}"


def _cards(view: OutboxView, held: list[ExchangeView]) -> str:
    newest = next((one.charge for one in view.exchanges if one.charge is not None), None)
    cards = [
        card_of("rounds", str(view.n_exchanges), "in the outbox"),
        card_of("left this site", size_text(view.sent_bytes), f"in {view.n_requests} requests"),
        card_of("log lines that left", str(view.log_lines), "a site sends none"),
    ]
    if newest is not None:
        more = f"of {newest.epsilon_limit:g} at delta {newest.delta:g}"
        cards.append(card_of("epsilon after the newest", epsilon_text(newest.epsilon_after), more))
    if held:
        cards.append(card_of("waiting", str(len(held)), "for your word", kind="card none"))
    return "".join(cards)


def _standing(view: OutboxView) -> str:
    lines = [
        f"The site is paused: no new round is taken part in; {resume_command(view)} ends it."
        if view.is_paused
        else "The site takes part in rounds of the campaigns that its policy approves.",
        "An update waits for your word before it leaves."
        if view.hold
        else "An update leaves when it is ready; policy field hold is false.",
    ]
    lines += [f"Refused: {each}." for each in view.refused]
    lines += [f"Left: {each}." for each in view.left]
    if view.complaint:
        lines.append(f"The ledger does not hold: {view.complaint}.")
    if view.n_unreadable:
        lines.append(unreadable_text(view.n_unreadable))
    return "".join(f"<p>{escape(line)}</p>\n" for line in lines)


def _held(view: OutboxView, one: ExchangeView) -> str:
    name, until = escape(one.campaign), "" if one.until is None else _time(one.until)
    command = approve_command(view, one)
    return (
        f"<p><strong>{name}, round {one.round}</strong>: {size_text(one.leaving_bytes)} would "
        f"leave. To let exactly these bytes go by {until}: <code>{escape(command)}</code>. Do "
        "nothing, and nothing of it leaves; the round stays charged.</p>\n"
    )


def _exchanges(view: OutboxView) -> str:
    rows = [
        [
            escape(one.campaign),
            str(one.round),
            f"<strong>{one.progress}</strong>{_why(one)}",
            size_text(one.leaving_bytes) if one.files else "-",
            escape(charge_text(one.charge)),
            "<br>".join(
                f'<span class="time">{escape(kind)} {_time(at)}</span>'
                for kind, at in one.times.items()
            ),
        ]
        for one in view.exchanges
    ]
    heads = ["campaign", "round", "state", "leaves", "charge", "when"]
    return table_of(heads, rows) + _not_shown(len(view.exchanges), view.n_exchanges, "rounds")


def _why(one: ExchangeView) -> str:
    return f"<br>{escape(one.why)}" if one.why else ""


def _details(one: ExchangeView) -> str:
    if not one.files:
        return ""
    stated = [[escape(name), f"<code>{escape(text)}</code>"] for name, text in manifest_lines(one)]
    return (
        f"<details>\n<summary>{escape(one.campaign)}, round {one.round}: files and manifest"
        "</summary>\n"
        + table_of(["file", "bytes", "SHA-256", "leaves"], [_file(file) for file in one.files])
        + table_of(["manifest", ""], stated)
        + "</details>\n"
    )


def _file(file: FileView) -> list[str]:
    leaves = "yes" if file.leaves else "never"
    return [escape(file.name), str(file.size_bytes), f"<code>{file.sha256}</code>", leaves]


def _requests(view: OutboxView) -> str:
    if not view.requests:
        return "<p>None is recorded. A site without a gateway keeps no such record.</p>\n"
    heads = ["time", "request", "bytes", "SHA-256 of the body", "answer", "process"]
    rows = [_request(one) for one in reversed(view.requests)]
    total = view.n_requests + view.n_kept
    return table_of(heads, rows) + _not_shown(len(view.requests), total, "requests")


def _request(one: RequestView) -> list[str]:
    answer = "none" if one.status is None else str(one.status)
    return [
        f'<span class="time">{_time(one.at)}</span>',
        f"{escape(one.method)} {escape(one.what)}",
        str(one.size_bytes),
        f"<code>{escape(one.sha256)}</code>" if one.sha256 else "",
        f"kept here: {escape(one.kept)}" if one.kept else answer,
        escape(one.process),
    ]


def _decisions(view: OutboxView) -> str:
    names = {one.digest: one.campaign for one in view.exchanges}
    rows = [
        [
            str(one.seq),
            _time(one.time),
            one.kind,
            escape(names.get(one.campaign_digest or "", (one.campaign_digest or "")[:12])),
            "" if one.round is None else str(one.round),
            escape(one.why),
        ]
        for one in reversed(view.decisions)
    ]
    if not rows:
        return "<p>None so far.</p>\n"
    return table_of(["", "time", "decision", "campaign", "round", "why"], rows)


def _not_shown(shown: int, total: int, what: str) -> str:
    hidden = total - shown
    return f"<p>{hidden} older {what} are not shown.</p>\n" if hidden > 0 else ""


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
