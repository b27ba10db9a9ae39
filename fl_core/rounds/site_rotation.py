"""A site's ledgers go on under its next key.

Before the key that is given up signs for the last time, all witnesses are asked, so that a ledger
that was set back shows first; afterwards they get the entry that names the next key. From there on
the old key appends nothing: a folder from before the change finds its ledger corrupt, as after any
other rollback (SOUNDNESS, rule 14). Interrupted anywhere, the same call finishes it.
"""

from dataclasses import replace

from fl_core.privacy.ledger import Ledger
from fl_core.privacy.witness import publish
from fl_core.rounds.site import Site
from fl_core.updates.signing import SigningKey


def hand_over(site: Site, key: SigningKey) -> Site:
    """Have a site's next key sign its ledgers, and return the site as it is then.

    Raises:
        LedgerCorrupt: A ledger does not hold, or a witness shows that it was set back.
        WitnessUnavailable: No witness of the site's own acknowledged a ledger's last entry.
    """
    whole = site.client_ledger
    return replace(
        site,
        key=key,
        ledger=_handed_over(site, site.ledger, key),
        client_ledger=None if whole is None else _handed_over(site, whole, key),
    )


def _handed_over(site: Site, ledger: Ledger, key: SigningKey) -> Ledger:
    after = ledger.opened_with(key)
    if after.check().findings:
        _publish(site, ledger)
        after = ledger.hand_over(key)
    _publish(site, after)
    return after


def _publish(site: Site, ledger: Ledger) -> None:
    # A site without a witness of its own takes part where nothing is promised.
    if any(witness.is_own for witness in site.witnesses):
        publish(ledger, site.witnesses, owner=site.name)
