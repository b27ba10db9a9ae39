"""What a site is to a round: its work on its rows, and what it owns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fl_core.artifacts.store import ObjectStore
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_documents import LedgerEntry
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.privacy.randomness import NoiseStream, SecureStream
from fl_core.privacy.witness import WitnessedStore
from fl_core.rounds.upload_time import WALL_CLOCK, Clock
from fl_core.updates.outbox import Outbox
from fl_core.updates.records import GateReport
from fl_core.updates.signing import SigningKey
from fl_core.updates.work import Exchange, Trained


class SiteWork(Protocol):
    """What needs the site's rows: judged and trained on at the site, never sent."""

    def gate(self) -> GateReport:
        """Return the cached verdict on the site's rows."""

    def train(self, exchange: Exchange) -> Trained:
        """Train from the exchange's base adapter.

        The result is checked by reloading it before it is returned.
        """


@dataclass(frozen=True, slots=True)
class Site:
    """What a site owns.

    Attributes:
        name: As campaigns and the roster use it.
        key: Ed25519 private key; signs ledger entries and everything that leaves.
        policy: What the site allows, written by the site only.
        ledger: Ledger of the site's dataset.
        outbox: What leaves goes in here first.
        witnesses: Who keeps copies of the ledgers' entries.
        client_ledger: Ledger of the site's whole data as one unit; None without such a limit.
        clock: Tells when an answer may leave.
        federation_copies: The site's copies of the federation's ledger; None: campaigns whose noise
            the coordinator adds are refused.
        streams: Makes the stream of the noise on one whole update; only a simulation has others.
        read_outs: Where the site keeps what noise did to its rounds; None keeps nothing.
        decisions: What the site's operator decided; None where nobody can.
        witnessed: By unit, what each witness was found to hold in this round (``publish``); None
            outside a round.
    """

    name: str
    key: SigningKey
    policy: SitePolicy
    ledger: Ledger
    outbox: Outbox
    witnesses: tuple[WitnessedStore, ...] = ()
    client_ledger: Ledger | None = None
    clock: Clock = WALL_CLOCK
    federation_copies: ObjectStore | None = None
    streams: Callable[[], NoiseStream] = SecureStream
    read_outs: ObjectStore | None = None
    decisions: ObjectStore | None = None
    witnessed: dict[str, dict[int, LedgerEntry]] | None = None
