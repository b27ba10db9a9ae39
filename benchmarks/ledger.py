"""What one charge costs on a long ledger: reserve, witness, commit, witness.

    python -m benchmarks.ledger --entries 20 200 2000 --repeats 30

Ledgers of every length lie on a disk beside their witness and are charged in turn, so that a busy
machine disturbs all of them alike. Printed are medians in milliseconds, and how much of a charge is
the disk (one entry written, synced and read back). Opening, which checks every entry once per
process, grows with the ledger and is shown apart. The epsilon of a charge is measured by
``benchmarks.accounting``. Ends with exit code 1 if a charge takes 10 ms more of the processor on
the longest ledger than on the shortest: what still grows is the listing of two folders.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.memory import MemoryStore
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_documents import LedgerEntry
from fl_core.privacy.ledger_entries import ChainReader
from fl_core.privacy.witness import WitnessedStore, publish
from fl_core.updates.records import EventRecord
from fl_core.updates.signing import SigningKey, generate_key, public_hex

MOST_GROWTH_MS = 10.0
DIGEST, PLAN = "c" * 64, "a" * 64
NOW = datetime(2026, 11, 24, tzinfo=UTC)


@dataclass
class LongLedger:
    """A ledger on a disk with its witness, and what its charges took so far.

    Attributes:
        entries: Length at the start.
        store: The ledger's store.
        key: The site's key.
        reader: Has checked the ledger once.
        witness: Its witness.
        opened_s: Seconds that the first, full check took.
        charges_s: Seconds of every charge.
        processor_s: Seconds of the processor that every charge took.
    """

    entries: int
    store: LocalStore
    key: SigningKey
    reader: ChainReader
    witness: WitnessedStore
    opened_s: float
    charges_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)

    def charge(self, event: EventRecord, round_number: int) -> None:
        """Charge one round as a site does, and note what it took."""
        began, began_processor = time.perf_counter(), time.process_time()
        # A site opens its ledger afresh in every round, with what its process has checked before.
        ledger = Ledger(self.store, dataset="d", unit="row", key=self.key, reader=self.reader)
        held: dict[int, LedgerEntry] = {}
        publish(ledger, [self.witness], owner="site", held=held)
        reserve = ledger.reserve(
            campaign_digest=DIGEST,
            round_number=round_number,
            plan_sha256=PLAN,
            event=event,
            require=lambda _: None,
        )
        publish(ledger, [self.witness], owner="site", held=held)
        ledger.commit(reserve)
        publish(ledger, [self.witness], owner="site", held=held)
        self.charges_s.append(time.perf_counter() - began)
        self.processor_s.append(time.process_time() - began_processor)


def filled(folder: Path, entries: int, key: SigningKey) -> LongLedger:
    """Return a ledger of so many entries, written without syncs, with a witness up to date."""
    memory = MemoryStore()
    ledger = Ledger.create(memory, dataset="d", unit="row", key=key, now=NOW)
    event = dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=8)
    for number in range(1, entries // 2 + 1):
        ledger.commit(
            ledger.reserve(
                campaign_digest="d" * 64,
                round_number=number,
                plan_sha256=PLAN,
                event=event,
                require=lambda _: None,
            )
        )
    prefix = keys.witness("site", "d", "row")
    for seq in range(1, len(ledger.entries()) + 1):
        data = memory.get(keys.ledger_entry(seq))
        for path in (keys.ledger_entry(seq), keys.witnessed_entry(prefix, seq)):
            target = folder / ("ledger" if path.startswith(keys.LEDGER) else "witness") / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    store, reader = LocalStore(folder / "ledger"), ChainReader(public_hex(key))
    opened_s = _seconds(lambda: reader.read(store))
    witness = WitnessedStore("disk", LocalStore(folder / "witness"), is_own=True)
    return LongLedger(entries, store, key, reader, witness, opened_s)


def disk_ms(folder: Path, repeats: int) -> float:
    """Return what writing one entry takes on this disk, median in milliseconds."""
    store = LocalStore(folder / "probe")
    return 1000 * statistics.median(
        _seconds(lambda n=n: store.put_once(f"probe/{n}.json", b"x" * 600))  # type: ignore[misc]
        for n in range(repeats)
    )


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(folder: Path, lengths: list[int], repeats: int) -> dict[str, object]:
    """Return the figures of one run as plain values."""
    key, event = generate_key(), dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=8)
    ledgers = [filled(folder / str(length), length, key) for length in lengths]
    for number in range(1, repeats + 1):
        for ledger in ledgers:
            ledger.charge(event, number)
    # The first charge of a process makes folders and warms imports.
    medians = [1000 * statistics.median(each.charges_s[1:]) for each in ledgers]
    return {
        "entries": lengths,
        "charge_ms": [round(value, 1) for value in medians],
        "processor_ms": [
            round(1000 * statistics.median(each.processor_s[1:]), 1) for each in ledgers
        ],
        "ratio": [round(value / medians[0], 2) for value in medians],
        "open_ms": [round(1000 * each.opened_s, 1) for each in ledgers],
        "one_write_ms": round(disk_ms(folder, repeats), 2),
        "writes_per_charge": 4,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 1 if a charge is not flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.entries, options.repeats)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:18} {value}")
    spent = found["processor_ms"]
    is_flat = isinstance(spent, list) and spent[-1] - spent[0] <= MOST_GROWTH_MS
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
