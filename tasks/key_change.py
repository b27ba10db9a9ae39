"""A site changes its keys, or goes on without one that it lost.

Two steps, because both sides must have the new keys before the old ones go. `fedloom site rotate`
makes them in the folder ``next`` and writes ``rotation.json``, signed by the old key and the new
one; the site works on as before. `fedloom rotate` at the coordinator admits them to the next
roster. `fedloom site rotate --finish` sees them there, hands the ledgers over and puts the new keys
in place of the old. Each step may be interrupted and run again.

A key that is lost cannot sign. The request then says so, the coordinator's operator confirms the
new fingerprint by voice, and the ledgers are recovered under the new key: what was spent stays
spent, and nothing begins afresh.
"""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fl_core.artifacts.documents import Document, to_bytes
from fl_core.artifacts.replacing import replace_file
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.roster import (
    Identify,
    PublicKey,
    Roster,
    RosterEntry,
    enrol,
    latest_roster,
    rotate,
)
from fl_core.campaign.specs import Name
from fl_core.errors import CampaignError
from fl_core.rounds.site_recovery import Agreed
from fl_core.rounds.site_rotation import hand_over
from fl_core.updates.outbox import exclusive
from fl_core.updates.signing import (
    generate_key,
    public_hex,
    read_key,
    sign,
    sign_both,
    verify_old_signature,
    verify_signature,
    write_key,
)
from tasks.certificates import make_certificate, require_site_certificate
from tasks.enrolment import read_own_enrolment, write_enrolment
from tasks.gateway_access import ROTATION, TLS_CERTIFICATE, TLS_KEY, SiteDoor
from tasks.gateway_client import GatewayClient
from tasks.gateway_store import GatewayStore
from tasks.handed_files import read_handed
from tasks.ledger_recovery import NOTHING_SAID, recover_ledgers
from tasks.outgoing import OutgoingLog
from tasks.settings import open_store
from tasks.site_config import SiteConfig, SiteHome, open_site, site_settings

NEXT = "next"
_KEY = "key.pem"
_SIGNATURE = r"^[0-9a-f]{128}$"


class KeyChange(Document):
    """A site's next keys, as it asks the coordinator to admit them.

    Attributes:
        site: Name, as campaigns use it.
        old_key: Ed25519 public key that stood for the site up to now, hex.
        new_key: The one that stands for it from now on; the same where only TLS changes.
        certificate: Its TLS certificate from now on, PEM; None for a site that uses no gateway.
        identify: How it shows the gateway who it is; None for one that uses none.
        old_signature: Of the old key over the rest but ``signature``; None where it is lost.
        signature: Of the new key over the rest.
    """

    site: Name
    old_key: PublicKey
    new_key: PublicKey
    certificate: Annotated[str, Field(max_length=4096)] | None = None
    identify: Identify | None = None
    old_signature: Annotated[str, Field(pattern=_SIGNATURE)] | None = None
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")] = ""

    @property
    def is_of_lost_key(self) -> bool:
        """Whether nobody could sign with the old key."""
        return self.old_signature is None


def begin_change(
    home: SiteHome, config: SiteConfig, *, only_certificate: bool = False, is_lost: bool = False
) -> KeyChange:
    """Make a site's next keys and the request to admit them; the site works on with the old ones.

    A second time returns the request that is pending, since its keys may be admitted already.

    Args:
        home: The site's folder.
        config: Its config.
        only_certificate: Keep the signing key, and change what opens connections.
        is_lost: The signing key is lost, so the new one signs alone.

    Raises:
        CampaignError: The old key cannot be read and is not said to be lost; the only thing that
            was to change is not used here; or a change of another kind is pending.
    """
    if (home.root / ROTATION).exists():
        return _pending(home, only_certificate=only_certificate, is_lost=is_lost)
    if only_certificate and (config.gateway is None or is_lost):
        raise CampaignError(
            "there is no certificate to change alone: the signing key is lost, or this site uses "
            "no gateway; leave out --certificate-only"
        )
    folder = home.root / NEXT
    # What lies there without a request was given to nobody.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    old_key = None if is_lost else read_key(home.key)
    new_key = old_key if only_certificate and old_key is not None else generate_key()
    write_key(new_key, folder / _KEY)
    pem = None
    if config.gateway is not None:
        pem = make_certificate(folder / TLS_CERTIFICATE, folder / TLS_KEY, common_name=config.site)
    request = KeyChange(
        site=config.site,
        old_key=read_own_enrolment(home).signing_key if old_key is None else public_hex(old_key),
        new_key=public_hex(new_key),
        certificate=pem,
        identify=None if config.gateway is None else config.gateway.identify,
    )
    signed = (
        sign(request, new_key)
        if old_key is None
        else sign_both(request, old_key=old_key, new_key=new_key)
    )
    replace_file(home.root / ROTATION, to_bytes(signed))
    return signed


def _pending(home: SiteHome, *, only_certificate: bool, is_lost: bool) -> KeyChange:
    change = read_change(home.root / ROTATION)
    if is_lost and not change.is_of_lost_key:
        raise CampaignError(
            f"{home.root}: a change that the old key signed is pending, and needs no other request",
            hint="have it admitted by `fedloom rotate`, then run `fedloom site rotate --finish "
            "--lost-key`",
        )
    if only_certificate and change.new_key != change.old_key:
        raise CampaignError(
            f"{home.root}: a change of the signing key is pending, not of the certificate alone",
            hint="`--finish` it, or take it back with `fedloom site rotate --abandon`",
        )
    return change


def abandon_change(home: SiteHome, config: SiteConfig) -> KeyChange:
    """Take back a request that the coordinator has not admitted; its keys are removed.

    Raises:
        CampaignError: Nothing is pending, it is admitted already, or the key in use is not here, so
            that the pending change holds the only way on.
        StoreUnavailable: The coordinator cannot be asked.
    """
    change = _required_change(home)
    read_key(home.key)
    entry = latest_roster(open_store(site_settings(home, config))).entry(change.site)
    if entry is not None and _is_admitted(entry, change):
        raise CampaignError(
            f"the coordinator has admitted the next keys of {change.site!r} already",
            hint="run `fedloom site rotate --finish`, then rotate once more",
        )
    (home.root / ROTATION).unlink()
    shutil.rmtree(home.root / NEXT, ignore_errors=True)
    return change


def read_change(path: Path) -> KeyChange:
    """Read a request to admit a site's next keys, and check who signed it.

    Raises:
        CampaignError: Absent, not such a request, or a signature on it does not hold.
    """
    hint = "it is the rotation.json that `fedloom site rotate` wrote at the site"
    change = read_handed(KeyChange, path, hint=hint)
    is_handed_over = change.is_of_lost_key or verify_old_signature(change, change.old_key)
    if not (verify_signature(change, change.new_key) and is_handed_over):
        raise CampaignError(
            f"{path}: a signature on it does not hold, so it was changed since the site wrote it",
            hint="have it sent again; " + hint,
        )
    if change.certificate is not None:
        require_site_certificate(change.certificate, site=change.site)
    return change


def admit_change(store: ObjectStore, change: KeyChange, *, is_confirmed: bool = False) -> Roster:
    """Write the next roster with a site's next keys; its declared size stays.

    Args:
        store: The campaigns' store.
        change: The request, its signatures checked.
        is_confirmed: A person has confirmed with the site's operator that the old key is lost, or
            that the site comes back after it was revoked.

    Raises:
        CampaignError: The old key did not sign, or was revoked, and nobody confirmed; the site
            never was enrolled, or with another key than the one that signed; or as
            ``fl_core.campaign.roster.rotate``.
    """
    roster = latest_roster(store)
    earlier = roster.history(change.site)
    if not earlier:
        raise CampaignError(
            f"site {change.site!r} is not enrolled, so it has no keys to change",
            hint="enrol it: `fedloom site enrolment` at the site, `fedloom enrol` here",
        )
    known = roster.entry(change.site) or earlier[-1]
    entry = RosterEntry(
        site=change.site,
        signing_key=change.new_key,
        certificate=change.certificate,
        identify=change.identify,
        declared_examples=known.declared_examples,
        since=datetime.now(UTC),
    )
    if not change.is_of_lost_key and known.revoked is None:
        return rotate(store, entry, old_key=change.old_key)
    if not is_confirmed:
        why = "its key is lost" if change.is_of_lost_key else "it was revoked"
        raise CampaignError(
            f"no key that stands for site {change.site!r} signed this: {why}",
            hint="confirm that and the fingerprint with its operator by voice, then run it again "
            "with --replace",
        )
    return enrol(store, entry, is_confirmed=True)


def finish_change(
    home: SiteHome, config: SiteConfig, *, said: Agreed = NOTHING_SAID, is_lost: bool = False
) -> KeyChange:
    """Put admitted keys in place of the old ones, ledgers first; safe to run again.

    Args:
        home: The site's folder.
        config: Its config.
        said: Of a lost key: what the operator says of campaigns that nothing shows to be approved.
        is_lost: The old key signed the request and was lost since, so it hands nothing over.

    Raises:
        PolicyRefused: There are such campaigns, and he has not.
        CampaignError: Nothing is pending, the coordinator has not admitted it, or the key in use
            cannot be read and is not said to be lost.
        LedgerConflict: A session of the site is in a round; wait for its end.
        LedgerCorrupt: A ledger does not hold, or was set back.
        WitnessUnavailable: No witness of the site's own acknowledged the change.
        StoreUnavailable: The coordinator cannot be asked.
    """
    change = _required_change(home)
    _require_admitted(home, config, change)
    changes_key = change.new_key != change.old_key
    if change.is_of_lost_key or (is_lost and changes_key and _is_key_lost(home)):
        _put_in_place(home, config)
        recover_ledgers(home, config, lost_key=change.old_key, said=said)
    else:
        with exclusive(home.root / "outbox.lock"):
            if changes_key and _key_in_use(home) != change.new_key:
                hand_over(open_site(home, config), read_key(home.root / NEXT / _KEY))
            _put_in_place(home, config)
    (home.root / ROTATION).unlink()
    shutil.rmtree(home.root / NEXT)
    return change


def _required_change(home: SiteHome) -> KeyChange:
    if not (home.root / ROTATION).exists():
        raise CampaignError(
            f"{home.root}: no change of keys is pending", hint="`fedloom site rotate` begins one"
        )
    return read_change(home.root / ROTATION)


def _key_in_use(home: SiteHome) -> str:
    try:
        return public_hex(read_key(home.key))
    except CampaignError as error:
        raise CampaignError(
            f"{error}, and it has to hand the ledger over to the next key",
            hint=f"{error.hint if home.key.exists() else 'put it back from a backup'}; if it is "
            "lost, run `fedloom site rotate --finish --lost-key`",
        ) from error


def _is_key_lost(home: SiteHome) -> bool:
    try:
        in_use = public_hex(read_key(home.key))
    except CampaignError:
        return True
    # After an interruption the next key is in place, and the ledger still to be recovered.
    return in_use == public_hex(read_key(home.root / NEXT / _KEY))


def _is_admitted(entry: RosterEntry, change: KeyChange) -> bool:
    return (entry.signing_key, entry.certificate) == (change.new_key, change.certificate)


def _require_admitted(home: SiteHome, config: SiteConfig, change: KeyChange) -> None:
    entry = latest_roster(_store_as_changed(home, config)).entry(change.site)
    if entry is None or not _is_admitted(entry, change):
        raise CampaignError(
            f"the coordinator has not admitted the next keys of {change.site!r}; nothing was "
            "changed",
            hint=f"give it {home.root / ROTATION}; it runs `fedloom rotate` on it",
        )


def _store_as_changed(home: SiteHome, config: SiteConfig) -> ObjectStore:
    """Return the campaigns' store as the site reaches it with its next keys."""
    access = config.gateway
    if access is None:
        return open_store(site_settings(home, config))
    pinned = access.certificate
    if pinned is not None:
        access = access.model_copy(update={"certificate": (home.root / pinned).resolve()})
    door = SiteDoor(site=config.site, home=(home.root / NEXT).resolve(), access=access)
    return GatewayStore(GatewayClient(door, OutgoingLog(home.root, process="command")))


def _put_in_place(home: SiteHome, config: SiteConfig) -> None:
    declared: int | None = None
    if home.enrolment.exists():
        declared = read_own_enrolment(home).declared_examples
    replace_file(home.key, _next(home, _KEY), mode=0o600)
    if config.gateway is not None:
        replace_file(home.root / TLS_KEY, _next(home, TLS_KEY), mode=0o600)
        replace_file(home.root / TLS_CERTIFICATE, _next(home, TLS_CERTIFICATE))
    write_enrolment(home, config, key=read_key(home.key), declared_examples=declared)


def _next(home: SiteHome, name: str) -> bytes:
    return (home.root / NEXT / name).read_bytes()
