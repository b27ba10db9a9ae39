"""What `fedloom ledger` shows: the entries of a site's ledger and what they amount to.

A ledger holds events; epsilon is worked out here under the policy as it is now.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fl_core.errors import CampaignError, LedgerCorrupt
from flows.local_sites import made_sites, site_home
from tasks.event_words import event_text
from tasks.site_config import SiteHome, open_site, read_site_config

if TYPE_CHECKING:
    from fl_core.privacy.ledger import Ledger
    from fl_core.privacy.ledger_entries import Chain
    from fl_core.privacy.witness import WitnessVerdict
    from fl_core.rounds.site import Site


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


def ledger_documents(home: SiteHome, *, verify: bool) -> list[dict[str, Any]]:
    """Return every ledger of a site as plain values, with what it amounts to under the policy.

    ``broken`` names the first entry that does not hold; without ``verify`` that is an error.

    Raises:
        LedgerCorrupt: A ledger does not hold and ``verify`` is off.
    """
    from fl_core.rounds.site_witness import ledgers_of

    site = open_site(home, read_site_config(home))
    return [_ledger_document(site, ledger, verify=verify) for ledger in ledgers_of(site)]


def _ledger_document(site: "Site", ledger: "Ledger", *, verify: bool) -> dict[str, Any]:
    from fl_core.privacy.accounting import LIVE_GRID
    from fl_core.privacy.budget import spend
    from fl_core.privacy.stated_budget import both_shown

    policy = site.policy if ledger is site.ledger else site.policy.client_policy() or site.policy
    document: dict[str, Any] = {
        "site": site.name,
        "dataset": policy.dataset,
        "unit": ledger.unit,
        "epsilon_limit": policy.epsilon,
        "delta": policy.delta,
        "entries": [],
        "witnesses": [],
        "broken": "",
    }
    if verify:
        document |= _verdicts(site, ledger)
    try:
        entries, events = ledger.entries(), ledger.events()
    except LedgerCorrupt:
        if not document["broken"]:
            raise
        return document
    spent = spend(policy, events)
    finite = spent.epsilon if spent.epsilon != float("inf") else None
    pld, rdp = both_shown(events, delta=policy.delta, grid=LIVE_GRID)
    return document | {
        "epsilon": finite,
        "accountant": spent.accountant,
        "epsilon_pld": pld,
        "epsilon_rdp": rdp,
        "entries": [e.model_dump(mode="json", exclude_none=True) for e in entries],
    }


def _verdicts(site: "Site", ledger: "Ledger") -> dict[str, Any]:
    """Check a ledger by itself, then against its witnesses as far as it could be read."""
    from dataclasses import asdict

    from fl_core.privacy.witness import ask_witnesses

    def ask() -> "tuple[Chain, list[WitnessVerdict]]":
        chain = ledger.check()
        return chain, ask_witnesses(ledger, chain.entries, site.witnesses, owner=site.name)

    chain, verdicts = ask()
    if any(verdict.complaint for verdict in verdicts):
        # A round may have been charged between the two looks.
        chain, verdicts = ask()
    complaints = [*chain.findings, *(each.complaint for each in verdicts if each.complaint)]
    return {
        "broken": complaints[0] if complaints else "",
        "witnesses": [asdict(verdict) for verdict in verdicts],
    }


def _both_text(document: dict[str, Any]) -> str:
    by = {"pld": document.get("epsilon_pld"), "rdp": document.get("epsilon_rdp")}
    shown = [f"{value:.2f} by {name}" for name, value in by.items() if value is not None]
    return f"; for comparison {', '.join(shown)}" if shown else ""


def ledger_table(document: dict[str, Any]) -> Table:
    """Return a ledger as a table, newest entry last."""
    epsilon = document.get("epsilon")
    shown = "infinite" if epsilon is None else f"{epsilon:.2f} by {document['accountant']}"
    caption = (
        f"BROKEN: {document['broken']}"
        if document["broken"]
        else f"epsilon {shown} of {document['epsilon_limit']:g} at delta {document['delta']:g}"
        f"{_both_text(document)}"
    )
    caption += "".join(f"\n{witness_text(each)}" for each in document["witnesses"])
    title = f"ledger of {document['site']} ({document['dataset']}), unit {document['unit']}"
    table = Table(title=title, caption=caption)
    for name in ("seq", "kind", "campaign", "round", "event", "time"):
        table.add_column(name, justify="right" if name in {"seq", "round"} else "left")
    for entry in document["entries"]:
        table.add_row(
            str(entry["seq"]),
            entry["kind"],
            str(entry.get("campaign_digest", ""))[:12],
            str(entry.get("round", "")),
            event_text(entry.get("event")) or recovery_text(entry),
            str(entry["time"])[:19],
        )
    return table


def witness_text(verdict: dict[str, Any]) -> str:
    """Return what one witness says, in words."""
    if verdict["is_away"]:
        return f"witness {verdict['name']}: away, nothing is known from it"
    return f"witness {verdict['name']}: {verdict['complaint'] or 'agrees'}"


def recovery_text(entry: dict[str, Any]) -> str:
    """Return what a recovery charged, or which keys changed; empty for any other entry."""
    if entry["kind"] == "rotated":
        lost = "" if entry.get("old_signature") else " (lost)"
        return f"key {entry['old_key'][:16]}{lost} to {entry['new_key'][:16]}"
    if entry["kind"] != "recovered":
        return ""
    return "; ".join(
        f"round {charge['round']} of {charge['campaign_digest'][:8]}: {event_text(charge['event'])}"
        for charge in entry["charges"]
    )
