"""A home of an earlier fedloom, whose sites had keys of the store, taken behind the gateway.

Such a home has a ``stack.json`` of format 1, and sites whose config names Prefect and the S3
server. The next start draws the gateway's port and keys and forgets the sites' keys; each site of
the home then gets a TLS key, the gateway's certificate and a config that names the gateway alone,
and the roster its certificate. Signing keys, ledgers and outboxes stay as they are, so nothing that
was spent is forgotten. Every step may be repeated, so a start that was cut off goes on.

Sites in folders elsewhere are their operators' to change.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_core.artifacts.documents import from_bytes
from flows.local_sites import made_sites, site_home
from flows.processes import free_port
from flows.stack_file import S3Keys, StackFile, is_first_format, stack_path, write_stack_file

if TYPE_CHECKING:
    from flows.local_stack import Stack
    from tasks.site_config import SiteConfig, SiteHome


def upgrade_stack_file(home: Path) -> None:
    """Write a stack file of format 1 again in the present format; any other is left alone.

    Raises:
        ObjectCorrupt: It is not what that version wrote.
    """
    if not is_first_format(home):
        return
    path = stack_path(home)
    plain: dict[str, Any] = json.loads(path.read_bytes())
    plain.pop("sites", None)
    evaluation = plain.pop("evaluation", None) or S3Keys.draw().model_dump()
    plain |= {
        "version": 2,
        "gateway_port": free_port(),
        "gateway": S3Keys.draw().model_dump(),
        "evaluation": evaluation,
    }
    write_stack_file(home, from_bytes(StackFile, json.dumps(plain).encode(), what=str(path)))


def take_sites_through_gateway(stack: "Stack") -> list[str]:
    """Change the home's sites that still name the servers; return their names."""
    from tasks.site_config import read_site_config

    changed = []
    for site in made_sites(stack.home):
        home = site_home(stack.home, site)
        config = read_site_config(home)
        if config.store is not None and config.store.endpoint == stack.s3_endpoint:
            _take_through(stack, home, config)
            changed.append(site)
    return changed


def _take_through(stack: "Stack", home: "SiteHome", config: "SiteConfig") -> None:
    from fl_core.artifacts.replacing import replace_file
    from fl_core.campaign.roster import latest_roster
    from fl_core.updates.signing import read_key
    from flows.local_gateway import local_invite
    from flows.local_workers import environment
    from tasks.enrolment import admit, read_own_enrolment, write_enrolment
    from tasks.invite import accept_invite
    from tasks.settings import open_store, read_settings
    from tasks.site_config import CREDENTIALS, config_text

    access = accept_invite(local_invite(stack.home, stack.file), home.root)
    new = config.model_copy(update={"gateway": access, "store": None, "prefect_api_url": None})
    enrolment = write_enrolment(
        home,
        new,
        key=read_key(home.key),
        declared_examples=read_own_enrolment(home).declared_examples,
    )
    store = open_store(read_settings(environment(stack)))
    known = latest_roster(store).entry(config.site)
    # A name that was never admitted, or was withdrawn, stays so; a key that was replaced too.
    if known is not None and known.signing_key == enrolment.signing_key:
        admit(store, enrolment)
    replace_file(home.config, config_text(new).encode())
    (home.root / CREDENTIALS).unlink(missing_ok=True)
