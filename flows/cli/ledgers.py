"""What `fedloom ledger` shows: the entries of a site's ledger and what they amount to.

A ledger holds events; epsilon is worked out here under the policy as it is now.
"""

from pathlib import Path
from typing import Any

from rich.table import Table

from fl_core.errors import CampaignError, LedgerCorrupt
from flows.local_sites import made_sites, site_home
from tasks.site_config import SiteHome, open_site, read_site_config


def site_homes(home: Path, site: str) -> list[SiteHome]:
    """Return the sites that a folder stands for: one site's own, or those of a local stack.

    Raises:
        CampaignError: There is no site, or none of that name.
    """
    if (home / "site.toml").exists() and not site:
        return [SiteHome(home)]
    found = made_sites(home)
    if site and site not in found:
        known = ", ".join(found) or "none"
        raise CampaignError(f"{home} holds no site {site!r}; its sites are {known}")
    if not found:
        raise CampaignError(
            f"{home} holds no site",
            hint="name the folder of a site, or of a local stack with sites",
        )
    return [site_home(home, name) for name in ([site] if site else found)]


def ledger_document(home: SiteHome, *, verify: bool) -> dict[str, Any]:
    """Return a ledger as plain values, with what it amounts to under the site's policy.

    ``broken`` names the first entry that does not hold; without ``verify`` that is an error.

    Raises:
        LedgerCorrupt: The ledger does not hold and ``verify`` is off.
    """
    from fl_core.privacy.budget import spend
    from fl_core.privacy.ledger_entries import verify_ledger
    from fl_core.updates.signing import public_hex

    site = open_site(home, read_site_config(home))
    document: dict[str, Any] = {
        "site": site.name,
        "dataset": site.policy.dataset,
        "epsilon_limit": site.policy.epsilon,
        "delta": site.policy.delta,
        "entries": [],
        "broken": "",
    }
    if verify:
        findings = verify_ledger(home.store("ledger"), public_hex(site.key))
        document["broken"] = findings[0] if findings else ""
    try:
        entries, events = site.ledger.entries(), site.ledger.events()
    except LedgerCorrupt:
        if not document["broken"]:
            raise
        return document
    spent = spend(site.policy, events)
    finite = spent.epsilon if spent.epsilon != float("inf") else None
    return document | {
        "epsilon": finite,
        "accountant": spent.accountant,
        "entries": [e.model_dump(mode="json", exclude_none=True) for e in entries],
    }


def ledger_table(document: dict[str, Any]) -> Table:
    """Return a ledger as a table, newest entry last."""
    epsilon = document.get("epsilon")
    shown = "infinite" if epsilon is None else f"{epsilon:.2f} by {document['accountant']}"
    caption = (
        f"BROKEN: {document['broken']}"
        if document["broken"]
        else f"epsilon {shown} of {document['epsilon_limit']:g} at delta {document['delta']:g}"
    )
    table = Table(title=f"ledger of {document['site']} ({document['dataset']})", caption=caption)
    for name in ("seq", "kind", "campaign", "round", "event", "time"):
        table.add_column(name, justify="right" if name in {"seq", "round"} else "left")
    for entry in document["entries"]:
        table.add_row(
            str(entry["seq"]),
            entry["kind"],
            str(entry.get("campaign_digest", ""))[:12],
            str(entry.get("round", "")),
            event_text(entry.get("event")),
            str(entry["time"])[:19],
        )
    return table


def event_text(event: dict[str, Any] | None) -> str:
    """Return an event in words, such as ``8 x (gaussian 0.8 at rate 0.1)``."""
    if event is None:
        return ""
    match event["kind"]:
        case "gaussian":
            return f"gaussian {event['noise_multiplier']:g}"
        case "poisson":
            return f"{event_text(event['event'])} at rate {event['sampling_rate']:g}"
        case "self_composed":
            return f"{event['count']} x ({event_text(event['event'])})"
        case "composed":
            return " + ".join(event_text(each) for each in event["events"])
        case kind:
            return str(kind).replace("_", " ")
