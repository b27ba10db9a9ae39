"""Eight processes charge one ledger on a disk at once, with its witness on the disk as well."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from worlds import campaign_of, policy_of

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_entries import ChainReader
from fl_core.privacy.policy import spend
from fl_core.privacy.witness import WitnessedStore, ask_witnesses
from fl_core.updates.signing import generate_key, public_hex, write_key

N_PROCESSES, N_ROUNDS = 8, 3

# What one process does: charge its own campaign's rounds until the policy refuses.
WORKER = """
import json, sys
from pathlib import Path
from fl_core.artifacts.local import LocalStore
from fl_core.errors import BudgetExhausted
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy import SitePolicy, verdict
from fl_core.privacy.witness import WitnessedStore, publish
from fl_core.updates.signing import read_key

home, number, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
policy = SitePolicy.model_validate_json((home / "policy.json").read_text())
ledger = Ledger(
    LocalStore(home / "ledger"), dataset=policy.dataset, unit="row", key=read_key(home / "key.pem")
)
witness = WitnessedStore("disk", LocalStore(home / "witness"), is_own=True)
event = dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=8)
print("ready", flush=True)
sys.stdin.readline()
answers = []
for round_number in range(1, rounds + 1):
    try:
        entry = ledger.reserve(
            campaign_digest=f"{number:064x}",
            round_number=round_number,
            plan_sha256="a" * 64,
            event=event,
            require=lambda events: verdict(policy, events, event),
        )
        publish(ledger, [witness], owner="site")
        ledger.commit(entry)
        answers.append(entry.seq)
    except BudgetExhausted:
        answers.append(None)
print(json.dumps(answers))
"""


def _start(home: Path, number: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(home), str(number), str(N_ROUNDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_eight_processes_lose_no_charge_and_never_overspend(tmp_path):
    # By dp_accounting's RDP at order 2.6, 72 steps are 10.74 and 80 steps 11.24 or more: 9 rounds
    # of 8 steps fit, 24 are asked for.
    policy = policy_of(campaign_of(), "a", epsilon=11.0, series=None, rdp_order=2.6)
    key = generate_key()
    write_key(key, tmp_path / "key.pem")
    (tmp_path / "policy.json").write_text(policy.model_dump_json())
    store = LocalStore(tmp_path / "ledger")
    now = datetime.now(UTC)
    ledger = Ledger.create(store, dataset=policy.dataset, unit="row", key=key, now=now)

    workers = [_start(tmp_path, number) for number in range(N_PROCESSES)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [worker.communicate()[0] for worker in workers]

    told = [seq for answer in answers for seq in json.loads(answer) if seq is not None]
    charged = [entry.seq for entry in ledger.entries() if entry.kind == "reserve"]
    assert sorted(told) == charged
    assert len(charged) == 9
    assert spend(policy, ledger.events()).epsilon <= policy.epsilon
    assert ChainReader(public_hex(key)).read(store).findings == []
    # Every charge reached the witness before its process went on; the last commits may follow.
    witness = WitnessedStore("disk", LocalStore(tmp_path / "witness"), is_own=True)
    verdicts = ask_witnesses(ledger, ledger.entries(), [witness], owner="site")
    prefix = keys.witness("site", policy.dataset, "row")
    held = set(witness.store.list(prefix))
    assert {keys.witnessed_entry(prefix, seq) for seq in charged} <= held
    assert [verdict.complaint for verdict in verdicts] == [""]
