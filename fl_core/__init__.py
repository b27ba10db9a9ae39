"""The federation's core: campaigns, rounds, privacy accounting, training; no orchestration.

The names in ``__all__`` are what code outside this project may rely on: they change with a major
version only. Everything else may move. They load when they are first asked for, because training
brings torch and a command that reads a ledger should not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_core import errors
    from fl_core.aggregation.aggregator import AGGREGATORS
    from fl_core.campaign.campaign import Campaign
    from fl_core.campaign.components import Part
    from fl_core.campaign.guarantees import NoPrivacy, RecordDp
    from fl_core.campaign.loading import read_campaign
    from fl_core.codecs.codec import CODECS
    from fl_core.cohorts.selection import SELECTIONS
    from fl_core.facade import FedClient, FedServer
    from fl_core.privacy.mechanism import MECHANISMS
    from fl_core.simulation import Setting, SimulatedSite, simulate

__all__ = [
    "AGGREGATORS",
    "CODECS",
    "MECHANISMS",
    "SELECTIONS",
    "Campaign",
    "FedClient",
    "FedServer",
    "NoPrivacy",
    "Part",
    "RecordDp",
    "Setting",
    "SimulatedSite",
    "errors",
    "read_campaign",
    "simulate",
]

_HOMES = {
    "AGGREGATORS": "fl_core.aggregation.aggregator",
    "CODECS": "fl_core.codecs.codec",
    "MECHANISMS": "fl_core.privacy.mechanism",
    "SELECTIONS": "fl_core.cohorts.selection",
    "Campaign": "fl_core.campaign.campaign",
    "FedClient": "fl_core.facade",
    "FedServer": "fl_core.facade",
    "NoPrivacy": "fl_core.campaign.guarantees",
    "Part": "fl_core.campaign.components",
    "RecordDp": "fl_core.campaign.guarantees",
    "Setting": "fl_core.simulation",
    "SimulatedSite": "fl_core.simulation",
    "read_campaign": "fl_core.campaign.loading",
    "simulate": "fl_core.simulation",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("fl_core.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'fl_core' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
