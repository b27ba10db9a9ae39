"""Ledgers of an earlier fedloom stay readable, and go on under a next key."""

import base64
from datetime import UTC, datetime
from pathlib import Path

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_entries import read_ledger
from fl_core.updates.signing import generate_key, public_hex, read_key

# Written before entries could name keys, by the commit e65bc87 of this project, with the key whose
# 32 secret bytes are 0 to 31 (RFC 8032 keys from their seed).
LINES = Path(__file__).parents[1] / "data" / "old_ledgers" / "before-rotations.jsonl"
PUBLIC = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
PEM = """\
-----BEGIN PRIVATE KEY-----
{seed}
-----END PRIVATE KEY-----
"""


def stored():
    store = MemoryStore()
    for seq, line in enumerate(LINES.read_text(encoding="utf-8").splitlines(), start=1):
        store.put_once(keys.ledger_entry(seq), line.encode())
    return store


def seed_key(folder):
    # RFC 8410, section 7: the header of a PKCS8 Ed25519 key before its 32 bytes.
    der = bytes.fromhex("302e020100300506032b657004220420") + bytes(range(32))
    path = folder / "key.pem"
    path.touch(mode=0o600)
    path.write_text(PEM.format(seed=base64.b64encode(der).decode()), encoding="ascii")
    return read_key(path)


def test_ledger_from_before_keys_could_change_verifies_to_the_same_events():
    chain = read_ledger(stored(), PUBLIC)

    assert [entry.kind for entry in chain.entries] == ["genesis", "reserve", "commit"]
    assert chain.events() == [dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=8)]
    assert chain.signers == (PUBLIC,)


def test_ledger_from_before_keys_could_change_goes_on_under_a_next_key(tmp_path):
    store, key = stored(), generate_key()
    old = seed_key(tmp_path)
    ledger = Ledger(store, dataset="d", unit="row", key=old, clock=lambda: datetime.now(UTC))

    ledger.hand_over(key)

    assert public_hex(old) == PUBLIC
    assert read_ledger(store, public_hex(key)).signers == (PUBLIC, public_hex(key))
