"""The privacy statement as a page for people, in Markdown, the answer first."""

import math
from collections.abc import Iterable, Sequence

from fl_core.privacy.statement_documents import (
    AuditFinding,
    Clip,
    PrivacyStatement,
    Promise,
    SiteSpend,
    Spent,
)
from fl_core.updates.records import EventRecord

_ADDED = {
    "gradient": "to every step's sum, at the site",
    "update": "to every site's update, before it leaves the site",
    "release": "to the sum of all updates, by the coordinator",
}
_LEVELS = {"record": "one unit of rows", "client": "a whole site", "none": "any row"}


def to_markdown(statement: PrivacyStatement) -> str:
    """Return the statement as one page, the answer first."""
    parts = [
        f"# Privacy of {statement.campaign}, version of round {statement.round}",
        *answer(statement),
        *_how(statement),
        *_sites(statement),
        *_federation(statement),
        *_whom(statement),
        *_raw(statement),
        "## Everything that leaves a site",
        _table(
            ("what", "how it depends on rows"),
            ((item.what, item.protection) for item in statement.leaves_site),
        ),
        "Rows, row counts, losses, norms, error texts and log lines stay at the site.",
        "## Not covered",
        "\n".join(f"- {item}" for item in statement.outside_claim),
        *_audits(statement),
        "## Where this comes from",
        _origin(statement),
    ]
    return "\n\n".join(parts) + "\n"


def answer(statement: PrivacyStatement) -> list[str]:
    """Return what is promised, one paragraph per promise."""
    promises = [p for p in (statement.record, statement.client) if p is not None]
    if not promises:
        return [f"**No guarantee is made for any row.** Reason given: {statement.reason}"]
    return [_promised(promise) for promise in promises]


def _promised(promise: Promise) -> str:
    if promise.level == "client":
        whom = "the whole data of each site, under replacing one site's update by zero"
        it = "site's data"
    else:
        it = _unit(promise)
        whom = f"each {it} of each site, under {_adjacency(promise)} of one {it}"
    return (
        f"**epsilon {promise.epsilon:.2f} at delta {promise.delta:g}** for {whom}: somebody "
        f"who can only toss a coin on whether that {it} took part (50 %) is right in at most "
        f"{100 * best_guess(promise.epsilon, delta=promise.delta):.2f} % of cases after seeing all "
        f"that this covers. The campaign promises at most {promise.epsilon_limit:g}."
    )


def best_guess(epsilon: float, *, delta: float) -> float:
    """Return how often the best guess of whether a unit took part is right, rounded up to 1e-4.

    Without the releases the guess is right half of the time. ``(e^eps + delta) / (e^eps + 1)``,
    from the region of false alarms and misses that (epsilon, delta) allows.

    Args:
        epsilon: Of the guarantee, 0 or more.
        delta: Beside it.

    Source: Kairouz, Oh and Viswanath 2015, theorem 2.1, at equal odds.
    """
    shrunk = math.exp(-epsilon)
    return math.ceil(1e4 * (1 + delta * shrunk) / (1 + shrunk)) / 1e4


def _unit(promise: Promise) -> str:
    return promise.unit if promise.unit == "row" else f"value of {promise.unit}"


def _adjacency(promise: Promise) -> str:
    return promise.adjacency.replace("_", "/")


def _how(statement: PrivacyStatement) -> list[str]:
    promises = [p for p in (statement.record, statement.client) if p is not None]
    if not promises:
        return []
    heads = ("", *(_LEVELS[p.level] for p in promises))
    columns = [_how_column(p, rounds=statement.round) for p in promises]
    rows = ((name, *(column[name] for column in columns)) for name in columns[0])
    return ["## How it is kept", _table(heads, rows)]


def _how_column(promise: Promise, *, rounds: int) -> dict[str, str]:
    noise = promise.noise
    return {
        "protected": _protected(promise),
        "kept by": f"{noise.mechanism}, charged by the {promise.charged_by}",
        "clip norm": _clip(noise.clip),
        "noise": (
            f"standard deviation {noise.noise_stddev:g} (multiplier {noise.noise_multiplier:g}) "
            f"added {_ADDED[noise.added_to]}"
        ),
        "sampling": _sampling(promise),
        "rounds": f"{rounds} rounds of {_steps(noise.steps_per_round)}",
        "epsilon": _by_accountants(promise.epsilon, promise),
    }


def _protected(promise: Promise) -> str:
    if promise.level == "client":
        return "all that one site holds"
    if promise.unit == "row":
        return "one row"
    return f"all rows of one {promise.unit}, at most {promise.max_rows_per_unit}"


def _clip(clip: Clip) -> str:
    if clip.kind == "groups":
        return f"{clip.adapter:g} for the LoRA pairs, {clip.head:g} for the head"
    if clip.kind == "adaptive":
        return (
            f"starts at {clip.norm:g} and follows the {clip.quantile:g} quantile; the count it "
            f"follows has noise {clip.count_stddev:g}, paid by the same charge"
        )
    return f"norm {clip.norm:g}, fixed"


def _sampling(promise: Promise) -> str:
    rate = promise.noise.sampling_rate
    if rate == 1:
        return "none is claimed: every round counts in full"
    return f"in each step each {_unit(promise)} is drawn with probability {rate:g}, independently"


def _steps(steps: int) -> str:
    return "one release" if steps == 1 else f"{steps} steps"


def _by_accountants(epsilon: float, of: Promise | Spent) -> str:
    others = {"pld": of.epsilon_pld, "rdp": of.epsilon_rdp}
    shown = [
        f"{name.upper()} {_figure(value)}"
        for name, value in others.items()
        if name != of.accountant
    ]
    return f"{epsilon:.2f} by {of.accountant.upper()} ({', '.join(shown)})"


def _sites(statement: PrivacyStatement) -> list[str]:
    if statement.guarantee == "none":
        return []
    parts = []
    if statement.sites:
        parts.append(
            _table(
                (
                    "site", "counts", "epsilon", "limit", "delta", "by", "other", "rounds left",
                    "round", "ledger",
                ),
                (row for site in statement.sites for row in _site_rows(site)),
            )
        )  # fmt: skip
        parts.append(_worst(statement))
        parts.append("\n".join(f"- {line}" for line in _reasons(statement.sites)))
    if statement.not_stated:
        parts.append(f"Not stated up to this round: {', '.join(statement.not_stated)}.")
    parts += [
        f"Not believed: {refused.site} {refused.complaint}." for refused in statement.not_believed
    ]
    return ["## What each site has spent, over all its campaigns", *parts] if parts else []


def _worst(statement: PrivacyStatement) -> str:
    whole = ""
    if statement.worst_client_epsilon is not None:
        whole = f" As whole sites, the worst: {statement.worst_client_epsilon:.2f}."
    return (
        f"Worst site: {statement.worst_site}, {statement.worst_epsilon:.2f}.{whole} Sites hold "
        "different rows, so their numbers do not add up; a person at two sites has both."
    )


def _site_rows(site: SiteSpend) -> Iterable[tuple[str, ...]]:
    for spent in (site.record, site.client):
        if spent is None:
            continue
        other = spent.epsilon_rdp if spent.accountant == "pld" else spent.epsilon_pld
        yield (
            site.site,
            spent.unit,
            f"{spent.epsilon:.2f}",
            f"{spent.epsilon_limit:g}",
            f"{spent.delta:g}",
            spent.accountant.upper(),
            f"{'RDP' if spent.accountant == 'pld' else 'PLD'} {_figure(other)}",
            str(spent.rounds_left),
            str(site.round),
            f"{spent.ledger_seq} `{spent.ledger_head_sha256[:12]}`",
        )


def _reasons(sites: Sequence[SiteSpend]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for site in sites:
        for spent in (site.record, site.client):
            if spent is not None:
                charged = "; ".join(map(_event, spent.events)) or "nothing"
                by_reason.setdefault(f"{spent.why}. Charged: {charged}.", []).append(site.site)
    return [f"{', '.join(dict.fromkeys(names))}: {why}" for why, names in by_reason.items()]


def _event(event: EventRecord) -> str:
    match event.kind:
        case "gaussian":
            return f"noise {event.noise_multiplier:g}"
        case "poisson":
            return f"noise {event.event.noise_multiplier:g} at rate {event.sampling_rate:g}"
        case "self_composed":
            return f"{event.count} x ({_event(event.event)})"
        case kind:
            return kind.replace("_", " ")


def _federation(statement: PrivacyStatement) -> list[str]:
    spent = statement.federation
    if spent is None:
        return []
    return [
        "## What the federation has spent on whole sites, over all its campaigns",
        (
            f"epsilon {spent.epsilon:.2f} of {spent.epsilon_limit:g} at delta {spent.delta:g}, "
            f"{spent.rounds_left} rounds left; the coordinator's own ledger, entry "
            f"{spent.ledger_seq} `{spent.ledger_head_sha256[:12]}`. {spent.why}."
        ),
    ]


def _whom(statement: PrivacyStatement) -> list[str]:
    title = "## Against whom"
    if len({claim.level for claim in statement.claims}) == 1:
        plain = ((claim.against, claim.holds) for claim in statement.claims)
        return [title, _table(("adversary", "what holds"), plain)]
    rows = ((c.against, _LEVELS[c.level], c.holds) for c in statement.claims)
    return [title, _table(("adversary", "protects", "what holds"), rows)]


def _raw(statement: PrivacyStatement) -> list[str]:
    raw = statement.raw_updates
    if raw is None:
        return []
    minutes = (raw.deleted - raw.opened).total_seconds() / 60
    return [
        "## Who could read un-noised updates, and how long",
        (
            f"{raw.readers}: from {raw.opened:%Y-%m-%d %H:%M} to {raw.deleted:%Y-%m-%d %H:%M} UTC, "
            f"{minutes:.1f} minutes. They were deleted when the round ended."
        ),
    ]


def _audits(statement: PrivacyStatement) -> list[str]:
    if not statement.audits:
        return ["## Audit", "No audit of this campaign was there when this was written."]
    rows = (_audit_row(audit) for audit in statement.audits)
    heads = ("audit", "rows", "lower bound", "could have shown", "claim", "AUC", "result")
    return [
        "## Audit",
        _table(heads, rows),
        (
            "An audit attacks the training itself, on rows that are nobody's secret. It speaks of "
            "the audited run only; a low bound proves no privacy, a high one would refute it."
        ),
    ]


def _audit_row(audit: AuditFinding) -> tuple[str, ...]:
    failed = f"; failed: {', '.join(audit.failed_checks)}" if audit.failed_checks else ""
    label = f"; {audit.label}" if audit.label else ""
    return (
        str(audit.number),
        audit.rows,
        f"{audit.lower_bound:.2f} at {audit.confidence:.0%}",
        f"{audit.ceiling:.2f}",
        f"{audit.claimed_epsilon:.2f}",
        "-" if audit.membership_auc is None else f"{audit.membership_auc:.2f}",
        f"{audit.verdict}{failed}{label}",
    )


def _origin(statement: PrivacyStatement) -> str:
    adapter = f" Adapter `{statement.adapter_sha256}`." if statement.adapter_sha256 else ""
    sites = f" Sites in it: {', '.join(statement.contributors)}." if statement.contributors else ""
    return (
        f"Made from the sites' signed budgets, the charges of the round and the frozen campaign "
        f"(digest `{statement.campaign_digest}`).{adapter}{sites} "
        "`fedloom statement --verify` makes it again from the store and compares."
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_in_cell, line)) + " |" for line in lines)


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
