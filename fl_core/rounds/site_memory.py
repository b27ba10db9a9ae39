"""What one round at a site leaves at the site: state for the next exchange, and the read-out.

State is part of the outbox record of its exchange and becomes current with the commit; a round that
failed or was voided leaves the state before it (SOUNDNESS, rule 12). The read-out compares noised
with clean gradients, so it goes into a store of the site's own and nowhere else: it is not in the
outbox record, no upload knows its name, and no log line has its numbers.
"""

import logging
from collections.abc import Mapping

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.assembly import Assembly
from fl_core.errors import StoreError
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.site import Site
from fl_core.updates.work import Exchange, ReadOut, Trained

log = logging.getLogger(__name__)


def exchange_of(
    site: Site, assembly: Assembly, plan: RoundPlan, *, base: Mapping[str, bytes]
) -> Exchange:
    """Return the training that a round asks for, with what the site's last exchange left.

    Raises:
        ObjectCorrupt: The state in the outbox is not what was committed.
    """
    state = None
    if assembly.noise is not None and assembly.noise.adaptive_clip is not None:
        dataset = site.policy.dataset
        state = site.outbox.last_state(dataset, assembly.digest, before=plan.round)
    return Exchange(round_number=plan.round, base=base, state=state)


def with_state(files: Mapping[str, bytes], trained: Trained) -> dict[str, bytes]:
    """Return the outbox record of an exchange: the files to send, and the state that stays."""
    return dict(files) if trained.state is None else {**files, keys.STATE: trained.state}


def keep_read_out(
    site: Site, assembly: Assembly, plan: RoundPlan, *, read_out: ReadOut | None
) -> None:
    """Write what noise did to a committed round into the site's own store, if it keeps one."""
    if site.read_outs is None or read_out is None:
        return
    try:
        site.read_outs.put_once(keys.read_out(assembly.digest, plan.round), to_bytes(read_out))
    except StoreError:
        # The round is committed; a figure for people must not keep it from being sent.
        log.exception("read-out not kept round=%d", plan.round)
