"""The sites that live in a local stack's home, each in a folder of its own under ``sites/``.

A real site is made by its operator with `fedloom site init`. Where a whole federation is started
on one machine (demo, benchmark, tests), the same folder is made here, with the stack's invite, so
that it reaches the gateway, and nothing else, as a real one does. What a site is made of is
imported when one is made, because every command knows this module.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.local_stack import Stack
    from flows.stack_file import StackFile
    from tasks.enrolment import Enrolment
    from tasks.site_config import SiteHome


@dataclass(frozen=True, slots=True)
class LocalSite:
    """What a site of a local stack is made of.

    Attributes:
        name: The site's name.
        data: File of rows, relative to the site's folder.
        policy_text: The policy's TOML, with ``{dataset}`` still to be filled.
        declared_examples: Public size, rounded to a power of two; None to declare none.
    """

    name: str
    data: Path
    policy_text: str
    declared_examples: int | None = None


def site_home(home: Path, site: str) -> "SiteHome":
    """Return the folder of one site in a stack's home."""
    from tasks.site_config import SiteHome

    return SiteHome(home / "sites" / site)


def made_sites(home: Path) -> list[str]:
    """Return the names of the sites that were made in a stack's home, sorted."""
    return [path.parent.name for path in sorted((home / "sites").glob("*/site.toml"))]


def follow_gateway(home: Path, file: "StackFile") -> list[str]:
    """Have the sites of a home take the invite of its gateway where theirs leads nowhere.

    Their owner is the home's, so nobody is asked.

    Returns:
        Names of the sites that were changed.
    """
    sites = made_sites(home)
    if not sites:
        return []
    from flows.local_gateway import GatewayFiles, local_invite
    from tasks.invite import read_invite
    from tasks.new_invite import invited_access, pinned_pem, take_invite
    from tasks.site_config import read_site_config

    invite, changed = local_invite(home, file), []
    urls = read_invite(GatewayFiles(home).invite).urls()
    for site in sites:
        own = site_home(home, site)
        config = read_site_config(own)
        if config.gateway is None:
            continue
        if config.gateway.url not in urls or pinned_pem(own, config) != invite.certificate:
            take_invite(own, config, invite, invited_access(config, invite, signs=None))
            changed.append(site)
    return changed


def make_local_site(stack: "Stack", site: LocalSite) -> "Enrolment":
    """Make a site's folder in the stack's home, with the way through the stack's gateway.

    Its ledger has two witnesses, the stack's store and a folder of the home beside the sites'. They
    show a ledger that was set back alone; a snapshot of the whole home takes them along, so a real
    site names a folder on another disk.

    Raises:
        CampaignError: There is a site in the folder already.
    """
    from fl_core.privacy.policy_documents import CoordinatorWitness, FolderWitness
    from fl_core.privacy.policy_template import WITNESS_EXAMPLE, witness_tables
    from flows.local_gateway import local_invite
    from tasks.enrolment import NewSite, make_site
    from tasks.invite import accept_invite
    from tasks.site_config import SiteConfig

    home = site_home(stack.home, site.name)
    access = accept_invite(local_invite(stack.home, stack.file), home.root)
    config = SiteConfig(site=site.name, data=site.data, gateway=access)
    witnesses = (
        CoordinatorWitness(),
        FolderWitness(path=Path("..") / ".." / "witnesses" / site.name),
    )
    text = site.policy_text.replace(WITNESS_EXAMPLE, witness_tables(witnesses))
    return make_site(home, NewSite(config, text, site.declared_examples))
