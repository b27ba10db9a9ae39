"""Whether a site is fit for rounds, as its operator can find out: `fedloom doctor` at the site.

What a session needs is looked at in the order in which it is needed, and with the same code, so
that a site that is well here does not stop in a round. Nothing is charged, trained or changed.
"""

import stat
from collections.abc import Iterator

from fl_core.errors import FedloomError, PolicyRefused
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.privacy.witness import WitnessVerdict, ask_witnesses, require_enough_witnesses
from fl_core.rounds.site_witness import ledgers_of
from tasks.campaign_health import campaign_checks
from tasks.checks import INSTALL, Check, called, refused
from tasks.gateway_access import TLS_KEY
from tasks.gateway_health import gateway_checks
from tasks.hello import own_hello, welcome
from tasks.settings import open_store
from tasks.site_config import (
    CREDENTIALS,
    LEDGER,
    OUTBOX,
    SiteConfig,
    SiteHome,
    open_site,
    read_site_config,
    site_policy,
    site_settings,
    surroundings,
)
from tasks.site_machine import disk_checks
from tasks.unit_key import FILE as UNIT_KEY
from tasks.witnesses import weakness

RECOVER = "stop the site, find out what was restored, then run `fedloom ledger recover`"


def site_checks(home: SiteHome) -> Iterator[Check]:
    """Check a site's folder, machine, gateway, and the campaigns that it approved."""
    try:
        config = read_site_config(home)
    except (FedloomError, OSError) as error:
        yield refused("config", error, remedy="correct site.toml, and let this user read it")
        return
    yield Check("config", "ok", f"site {config.site} in {home.root}")
    yield _versions(config.site)
    yield _folder(home)
    yield from _secrets(home)
    yield from disk_checks({"ledger": home.root / LEDGER, "outbox": home.root / OUTBOX})
    way_in = list(_way_in(home, config))
    yield from way_in
    is_open = all(check.verdict != "fail" for check in way_in)
    try:
        policy = site_policy(home)
    except (FedloomError, OSError) as error:
        yield refused("policy", error, remedy="correct policy.toml, and let this user read it")
        return
    yield _policy(policy)
    yield from _ledgers(home, config, policy, is_open=is_open)
    yield from _places(home, config, policy)
    yield from campaign_checks(home, config, is_open=is_open)


def _versions(site: str) -> Check:
    hello = own_hello(site)
    complaints = welcome(hello).complaints
    if complaints:
        return Check("versions", "fail", "; ".join(complaints), INSTALL)
    found = ", ".join(f"{name} {version}" for name, version in sorted(hello.versions.items()))
    return Check("versions", "ok", found)


def _folder(home: SiteHome) -> Check:
    """Check that nobody but the site's user sees sizes and times of the files in its folder."""
    mode = stat.S_IMODE(home.root.stat().st_mode)
    if mode & 0o077 == 0:
        return Check("folder", "ok", f"mode {mode:04o}")
    found = f"mode {mode:04o}, so others may see sizes and times of the files in it"
    return Check("folder", "warn", found, f"chmod 700 {home.root}")


def _secrets(home: SiteHome) -> Iterator[Check]:
    """Check that nobody but the site's user reads its keys."""
    for name in (home.key.name, TLS_KEY, UNIT_KEY, CREDENTIALS):
        path = home.root / name
        if not path.exists():
            if path == home.key:
                remedy = (
                    "restore it from the site's backup; without it, rotate with the coordinator"
                )
                yield Check(f"file {name}", "fail", "is not there", remedy)
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        is_closed = mode & 0o077 == 0
        found = f"mode {mode:04o}" + ("" if is_closed else ", so others may read it")
        yield Check(
            f"file {name}",
            "ok" if is_closed else "fail",
            found,
            "" if is_closed else f"chmod 600 {path}",
        )


def _way_in(home: SiteHome, config: SiteConfig) -> Iterator[Check]:
    settings = site_settings(home, config)
    if settings.door is not None:
        yield from gateway_checks(settings.door)
        return

    def read() -> str:
        return f"reads {len(open_store(settings).list('rosters/'))} rosters"

    yield called("store", read, remedy="look at the store's address and keys in site.toml")
    yield Check(
        "gateway",
        "warn",
        "this site reaches the store itself and sees what others send",
        "state [gateway] in site.toml for every site that is not on the coordinator's own machine",
    )


def _policy(policy: SitePolicy) -> Check:
    try:
        require_enough_witnesses([witness.is_own for witness in policy.witnesses])
    except PolicyRefused as error:
        return Check("policy", "warn", str(error), error.hint)
    approved = len(policy.campaigns)
    return Check("policy", "ok", f"{approved} campaigns approved")


def _ledgers(
    home: SiteHome, config: SiteConfig, policy: SitePolicy, *, is_open: bool
) -> Iterator[Check]:
    """Check every ledger by itself, then against each witness that can be asked."""
    try:
        site = open_site(home, config)
    except (FedloomError, OSError) as error:
        yield refused("ledger", error, remedy="run as the site's own user, or restore its folder")
        return
    names = {each.text for each in policy.witnesses if is_open or each.is_own}
    asked = [each for each in site.witnesses if each.name in names]
    for ledger in ledgers_of(site):
        chain, name = ledger.check(), f"ledger of unit {ledger.unit}"
        if chain.findings:
            yield Check(name, "fail", chain.findings[0], RECOVER)
        else:
            yield Check(name, "ok", f"{len(chain.entries)} entries hold")
        verdicts = ask_witnesses(ledger, chain.entries, asked, owner=site.name)
        yield from (_witness(verdict, ledger.unit, verdicts) for verdict in verdicts)


def _places(home: SiteHome, config: SiteConfig, policy: SitePolicy) -> Iterator[Check]:
    """Warn of witnesses that the same snapshot or the same people hold."""
    around = surroundings(home, config)
    for witness in policy.witnesses:
        try:
            found = weakness(witness, around)
        except OSError:
            continue  # a folder that is not there was said to be away
        if found:
            yield Check(f"place of witness {witness.text}", "warn", found, "name another place")


def _witness(verdict: WitnessVerdict, unit: str, verdicts: list[WitnessVerdict]) -> Check:
    name = f"witness {verdict.name}, unit {unit}"
    if verdict.complaint:
        return Check(name, "fail", verdict.complaint, RECOVER)
    if not verdict.is_away:
        return Check(name, "ok", "agrees")
    is_needed = verdict.is_own and not any(v.is_own and not v.is_away for v in verdicts)
    remedy = "mount the disk or start the server, then `fedloom site witness`"
    if is_needed:
        return Check(name, "fail", "is away, and nothing is trained without one", remedy)
    return Check(name, "warn", "is away", remedy)
