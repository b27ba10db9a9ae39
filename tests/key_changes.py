"""Sites whose keys change, in memory: what the commands do, step by step."""

from fl_core.artifacts import keys
from fl_core.campaign.roster import RosterEntry, rotate
from fl_core.privacy.budget import spend
from fl_core.privacy.ledger_documents import NO_ENTRY, LedgerEntry
from fl_core.privacy.recovery import LostLedger
from fl_core.rounds.site_rotation import hand_over
from fl_core.updates.signing import generate_key, public_hex
from tests.worlds import NOW


def change_keys(world, name="a"):
    """Do what `fedloom site rotate`, `fedloom rotate` and `--finish` do, in memory."""
    site, key = world.sites[name], generate_key()
    entry = RosterEntry(site=name, signing_key=public_hex(key), since=NOW)
    rotate(world.store, entry, old_key=public_hex(site.key))
    world.sites[name] = hand_over(site, key)
    return key


def own_witness(world):
    return next(w for w in world.sites["a"].witnesses if w.is_own)


def copies(world):
    """Return the prefix of site a's copies at its witnesses."""
    return keys.witness("a", world.sites["a"].policy.dataset, "row")


def lost(world, key, *, lost_key, ledger_store):
    """Return what is left of site a's ledger, to be recovered with a key."""
    policy = world.sites["a"].policy
    return LostLedger("a", policy.dataset, "row", key, ledger_store, lost_key=lost_key)


def true_epsilon(world, n_draws):
    site = world.sites["a"]
    return spend(site.policy, [world.assembly.noise.event] * n_draws).epsilon


def rotation(world, *, old, new, seq=2, previous=NO_ENTRY, **changes):
    fields = {
        "seq": seq,
        "dataset": world.sites["a"].policy.dataset,
        "unit": "row",
        "kind": "rotated",
        "old_key": public_hex(old),
        "new_key": public_hex(new),
        "time": NOW,
        "previous_sha256": previous,
    }
    return LedgerEntry.model_validate(fields | changes)
