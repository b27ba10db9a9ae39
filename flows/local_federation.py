"""The federation's ledger of a local stack, made at its first start.

A coordinator that adds noise itself chooses its limits with `fedloom federation init`. On one
machine, where demo, examples and tests run, the folder is made here with limits for small
federations; they may be changed in its ``federation.toml`` before the first campaign.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.local_stack import Stack

# Below one over the sites for up to a thousand of them.
EPSILON, DELTA = 10.0, 1e-3


def federation_folder(home: Path) -> Path:
    """Return the folder of a stack's home with limits and key of the federation's ledger."""
    return home / "coordinator" / "federation"


def make_local_federation(stack: "Stack") -> None:
    """Make the federation's ledger of a running stack, unless it has one.

    Raises:
        PolicyRefused: The stack's store has one of another key.
    """
    if (federation_folder(stack.home) / "federation.toml").exists():
        return
    # What accounts is imported once in the life of a home, and takes seconds.
    from fl_core.privacy.federation import FederationLimits
    from flows.local_workers import environment
    from tasks.federation import FederationHome, make_federation
    from tasks.settings import open_store, read_settings

    make_federation(
        FederationHome(federation_folder(stack.home)),
        limits=FederationLimits(epsilon=EPSILON, delta=DELTA),
        store=open_store(read_settings(environment(stack))),
    )
