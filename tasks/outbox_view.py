"""What a site's operator can see of what left, what is ready to leave, and what was decided.

Everything is read from the site's own folder, so it can be looked at without the network and
without trust in anybody else. It holds public numbers, hashes, and what has left or would leave;
no figure from the rows is in it, so that whoever decides by it about an update that is held decides
by nothing that was not charged (SOUNDNESS, rule 18).
"""

import math
from dataclasses import replace
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, from_bytes
from fl_core.errors import LedgerCorrupt
from fl_core.privacy.accounting import LIVE_GRID
from fl_core.privacy.budget import spend
from fl_core.privacy.ledger_entries import Chain
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.rounds.site_decision import SiteDecision, decisions
from fl_core.rounds.site_update import UPLOADED
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.outbox import Outbox
from fl_core.updates.outbox_record import Progress
from tasks.event_words import event_text
from tasks.outgoing import Outgoing, read_record
from tasks.site_config import DECISIONS, SiteHome, open_site, read_site_config, site_policy
from tasks.site_decisions import campaign_name, known_campaigns, outbox_of, standing_of


class FileView(Document):
    """One file of an exchange; ``leaves`` is False for what stays in the outbox for ever."""

    name: str
    size_bytes: int
    sha256: str
    leaves: bool


class ChargeView(Document):
    """What a round was charged, and what that does to the budget.

    Attributes:
        event: In words.
        ledger_seq: Its number on the ledger.
        epsilon_before: Of all that was charged before it; None is infinite.
        epsilon_after: With it.
        epsilon_limit: The policy's limit.
        delta: At which both are worked out.
    """

    event: str
    ledger_seq: int
    epsilon_before: float | None
    epsilon_after: float | None
    epsilon_limit: float
    delta: float


class ExchangeView(Document):
    """One exchange of the outbox.

    Attributes:
        campaign: Id of the campaign, or the first digits of its digest.
        digest: Its digest.
        round: From 1.
        progress: How far it has come.
        attempts: Trainings that were begun.
        times: When it was held, sent, withheld or declined.
        until: Until when it can be approved, while it is held.
        why: Why it was withheld or declined; stays at the site.
        files: What was committed.
        manifest: What the site states about its update, signed.
        charge: None where nothing was charged, or the ledger cannot be read.
    """

    campaign: str
    digest: str
    round: int
    progress: Progress
    attempts: int
    times: dict[str, AwareDatetime]
    until: AwareDatetime | None = None
    why: str = ""
    files: tuple[FileView, ...] = ()
    manifest: UpdateManifest | None = None
    charge: ChargeView | None = None

    @property
    def leaving_bytes(self) -> int:
        """Bytes of the files that leave."""
        return sum(file.size_bytes for file in self.files if file.leaves)


class RequestView(Document):
    """One request of the site's record of what left.

    Attributes:
        at: When it left, or was refused here.
        process: Which process of the site.
        method: HTTP method.
        what: The store's key, or the path.
        size_bytes: Length of its body.
        sha256: Of its body; empty without one.
        status: HTTP status of the answer; None: no answer.
        kept: Why it was refused at the site and did not leave; empty for what left.
    """

    at: AwareDatetime
    process: str
    method: str
    what: str
    size_bytes: int
    sha256: str
    status: int | None
    kept: str


class OutboxView(Document):
    """All of it.

    Attributes:
        site: Name of the site.
        folder: The site's folder, absolute, so that a command shown with it holds anywhere.
        dataset: Opaque id of its data.
        hold: Whether an update waits for the operator's word.
        is_paused: Whether no new round is taken part in.
        refused: Campaigns and rounds that are refused, in words.
        left: Campaigns that the site has left.
        exchanges: Newest first.
        n_exchanges: How many there are, shown or not.
        requests: The newest, in the order of the record.
        n_requests: How many left, shown or not.
        n_kept: How many were refused at the site.
        n_unreadable: Lines of the record that nobody can read, so that requests may be missing.
        sent_bytes: Bytes of all bodies that left.
        decisions: All of them, in order.
        log_lines: Always 0: a site sends no log line, whatever Prefect's settings say.
        complaint: Why the ledger cannot be read; empty if it can.
    """

    site: str
    folder: str
    dataset: str
    hold: bool
    is_paused: bool
    refused: tuple[str, ...]
    left: tuple[str, ...]
    exchanges: tuple[ExchangeView, ...]
    n_exchanges: int
    requests: tuple[RequestView, ...]
    n_requests: int
    n_kept: int
    n_unreadable: int
    sent_bytes: int
    decisions: tuple[SiteDecision, ...]
    log_lines: Literal[0] = 0
    complaint: str = ""


def read_outbox(
    home: SiteHome, *, most: int | None = None, since: datetime | None = None
) -> OutboxView:
    """Read what left a site, what is ready to leave, and what was decided.

    Args:
        home: The site's folder.
        most: How many exchanges and requests to show, the newest; None is all.
        since: Leave out requests that are older; None is all.

    Raises:
        CampaignError: There is no site here.
        ObjectCorrupt: The outbox or the decisions are not what was written.
    """
    config, policy = read_site_config(home), site_policy(home)
    record = read_record(home.root, since=since)
    requests = record.requests
    left = [each for each in requests if not each.kept]
    chain, complaint = _chain(home)
    prefixes = _newest_first(outbox_of(home), policy)
    made = decisions(home.store(DECISIONS))
    now, names = standing_of(home), {one.digest: one.name for one in known_campaigns(home)}
    return OutboxView(
        site=config.site,
        folder=str(home.root.resolve()),
        dataset=policy.dataset,
        hold=policy.hold,
        is_paused=now.is_paused,
        refused=tuple(
            names.get(digest, digest[:12]) + ("" if number is None else f", round {number}")
            for digest, number in sorted(now.refused, key=lambda each: (each[0], each[1] or 0))
        ),
        left=tuple(sorted(names.get(digest, digest[:12]) for digest in now.left)),
        exchanges=tuple(_exchange(home, policy, chain, prefix) for prefix in prefixes[:most]),
        n_exchanges=len(prefixes),
        requests=tuple(map(_request, requests if most is None else requests[-most:])),
        n_requests=len(left),
        n_kept=len(requests) - len(left),
        n_unreadable=record.n_unreadable,
        sent_bytes=sum(each.payload_bytes for each in left),
        decisions=tuple(made),
        complaint=complaint,
    )


def read_exchange(home: SiteHome, digest: str, round_number: int) -> ExchangeView:
    """Read one exchange.

    Raises:
        ObjectCorrupt: It is not what was committed.
    """
    policy = site_policy(home)
    chain, _ = _chain(home)
    return _exchange(home, policy, chain, keys.exchange(policy.dataset, digest, round_number))


def _chain(home: SiteHome) -> tuple[Chain, str]:
    try:
        return open_site(home, read_site_config(home)).ledger.chain(), ""
    except LedgerCorrupt as error:
        return Chain(), str(error)


def _newest_first(outbox: Outbox, policy: SitePolicy) -> list[str]:
    prefixes = outbox.exchanges(keys.exchanges(policy.dataset))
    return sorted(prefixes, key=lambda prefix: (_newest(outbox, prefix), prefix), reverse=True)


def _newest(outbox: Outbox, prefix: str) -> float:
    times = (note.time.timestamp() for note in outbox.record(prefix).notes.values())
    # What has no note yet is being worked on.
    return max(times, default=math.inf)


def _exchange(home: SiteHome, policy: SitePolicy, chain: Chain, prefix: str) -> ExchangeView:
    outbox = outbox_of(home)
    record, about = outbox.record(prefix), keys.exchange_of(prefix)
    if about is None:
        raise ValueError(f"{prefix!r} is the prefix of no exchange")
    digest, number = about
    # A session may commit at this very moment; what the record does not know is not shown yet.
    files = (outbox.committed(prefix) or {}) if record.files else {}
    stated = files.get(keys.MANIFEST)
    why = [record.notes[kind].text for kind in ("withheld", "declined") if kind in record.notes]
    held = record.notes.get("held")
    return ExchangeView(
        campaign=campaign_name(home.store("approvals"), digest),
        digest=digest,
        round=number,
        progress=record.progress,
        attempts=record.attempts,
        times={kind: note.time for kind, note in record.notes.items()},
        until=held.until if held is not None and record.progress == "held" else None,
        why="; ".join(why),
        files=tuple(
            FileView(
                name=name,
                size_bytes=len(data),
                sha256=record.files[name],
                leaves=name in UPLOADED,
            )
            for name, data in files.items()
        ),
        manifest=None if stated is None else from_bytes(UpdateManifest, stated, what=prefix),
        charge=_charge(policy, chain, digest, number),
    )


def _charge(policy: SitePolicy, chain: Chain, digest: str, number: int) -> ChargeView | None:
    entry = chain.reserve_of(digest, number)
    if entry is None or entry.event is None or chain.is_voided(entry):
        return None
    index = chain.entries.index(entry)
    before, after = (
        _epsilon(policy, replace(chain, entries=chain.entries[:end])) for end in (index, index + 1)
    )
    return ChargeView(
        event=event_text(entry.event.model_dump(mode="json")),
        ledger_seq=entry.seq,
        epsilon_before=before,
        epsilon_after=after,
        epsilon_limit=policy.epsilon,
        delta=policy.delta,
    )


def _epsilon(policy: SitePolicy, chain: Chain) -> float | None:
    spent = spend(policy, chain.events(), grid=LIVE_GRID).epsilon
    return spent if math.isfinite(spent) else None


def _request(one: Outgoing) -> RequestView:
    return RequestView(
        at=one.at,
        process=one.process,
        method=one.method,
        what=one.key or one.path,
        size_bytes=one.payload_bytes,
        sha256=one.payload_sha256,
        status=one.status,
        kept=one.kept,
    )
