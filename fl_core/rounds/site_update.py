"""What leaves a site in one round: payload, signed manifest, budget statement, in this order.

All of it goes into the outbox first and is uploaded from there, so a retry sends the same bytes.
"""

import logging
from collections.abc import Mapping
from importlib.metadata import version

from fl_core.artifacts import keys
from fl_core.artifacts.documents import sha256_hex, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.privacy.stated_budget import budget_statement
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.site import Site
from fl_core.rounds.site_charge import Reserves, row_budget, site_budget
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.payload import salted
from fl_core.updates.records import Charge, GateReport
from fl_core.updates.signing import sign
from fl_core.updates.update import Array

log = logging.getLogger(__name__)

# The manifest goes last: its presence tells the coordinator that the rest is there.
UPLOADED = (keys.BUDGET, keys.PAYLOAD, keys.MANIFEST)


def signed_files(  # noqa: PLR0913  what a manifest signs, each from another step
    site: Site,
    assembly: Assembly,
    plan: RoundPlan,
    *,
    delta: Mapping[str, Array],
    gate: GateReport,
    reserves: Reserves,
) -> dict[str, bytes]:
    """Return everything that one update sends, by file name, signed."""
    payload = assembly.codec.encode(delta)
    central = assembly.central_noise
    if central is not None:
        payload = salted(payload)
    event, site_event = assembly.row_event, assembly.site_event
    manifest = UpdateManifest(
        campaign_digest=assembly.digest,
        round=plan.round,
        site=site.name,
        base_hash=plan.base_hash,
        payload_sha256=sha256_hex(payload),
        payload_bytes=len(payload),
        codec=assembly.campaign.codec.kind,
        shapes={name: tensor.shape for name, tensor in delta.items()},
        local_steps=assembly.campaign.training.local_steps,
        norm_bound=None if central is None else central.clip_norm,
        charge=None if event is None else Charge(event=event, ledger_seq=reserves.row.seq),
        client_charge=(
            None
            if site_event is None or reserves.site is None
            else Charge(event=site_event, ledger_seq=reserves.site.seq)
        ),
        gate=gate,
        code_version=version("fedloom"),
    )
    files = {keys.PAYLOAD: payload, keys.MANIFEST: to_bytes(sign(manifest, site.key))}
    if event is not None and site.policy.budget_statement == "stated":
        statement = budget_statement(
            site.key,
            site=site.name,
            campaign_digest=assembly.digest,
            round_number=plan.round,
            record=row_budget(site, assembly),
            client=site_budget(site, assembly),
        )
        files[keys.BUDGET] = to_bytes(statement)
    return files


def upload_files(
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    site: str,
    files: Mapping[str, bytes],
) -> None:
    """Write the files of an update to the store.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        plan: The round's plan.
        site: Name of the site.
        files: From the outbox, by name; what is not in ``UPLOADED`` stays there.
    """
    prefix = keys.update_prefix(assembly.campaign.id, plan.round, site)
    for name in UPLOADED:
        if name in files:
            store.put_once(prefix + name, files[name])
    log.info("update uploaded site=%s round=%d", site, plan.round)
