"""What a statement says in words: what leaves a site, what is not covered, what holds against whom.

Closed lists, chosen by the campaign's promises alone: a new thing that leaves a site, or a new
adversary, is a change here and in the tests that read it (SOUNDNESS, rule 17). An item either
depends on no row, or is noised and charged, or says that it is outside the claim.
"""

from fl_core.campaign.campaign import Campaign
from fl_core.privacy.round_events import round_costs
from fl_core.privacy.statement_documents import Claim, Leaving

READER = "a reader of the models or of MLflow"
STORE = "a reader of the store"
OTHER_SITE = "another site"
COORDINATOR = "the coordinator"
CHEAT = "a site that cheats"


def is_central(campaign: Campaign) -> bool:
    """Whether the coordinator sees un-noised updates and adds the noise itself."""
    return any(cost.charged_by == "coordinator" for cost in round_costs(campaign))


def leaves_site(campaign: Campaign) -> tuple[Leaving, ...]:
    """Return everything that leaves a site, each with how it depends on rows."""
    privacy = campaign.privacy
    if privacy.none is not None:
        return (_UPDATE_PLAIN, *_LEAVES_ALWAYS, _ERROR_PLAIN, _when(campaign))
    update = _update(campaign)
    leaving = [update, *_LEAVES_ALWAYS, _when(campaign)]
    if privacy.record is not None or not is_central(campaign):
        leaving += [_CHARGE, _BUDGET, _HEADS]
    return tuple(leaving)


def _update(campaign: Campaign) -> Leaving:
    what = "the update: change of the adapter's tensors"
    central = is_central(campaign)
    if campaign.privacy.record is not None:
        unit = campaign.privacy.record.unit
        protection = f"every step clipped per {unit}, noised and charged before it left"
        if central:
            protection += "; noised and charged again for the whole site, at the release"
        return Leaving(what=what, protection=protection)
    if central:
        return Leaving(
            what=what,
            protection="clipped; noised and charged at the release only, so that the coordinator "
            "holds it as it is until the round ends",
        )
    return Leaving(what=what, protection="clipped as a whole, noised and charged before it left")


def _when(campaign: Campaign) -> Leaving:
    after = campaign.cohort.upload_after_s
    if after is None:
        return Leaving(
            what="when things happen: start, upload, states of the site's tasks",
            protection="depends on rows drawn and read; outside the claim",
        )
    return Leaving(
        what="when things happen: start, upload, states of the site's tasks",
        protection=f"every site uploads {after:g} s after the plan; that a site was not ready by "
        "then depends on its rows and is outside the claim",
    )


def outside_claim(campaign: Campaign) -> tuple[str, ...]:
    """Return what the numbers do not cover."""
    if campaign.privacy.none is not None:
        return ("everything: no guarantee is made for any row",)
    return (
        _timing(campaign),
        *_OUTSIDE,
        _several(campaign),
        *((_RAW,) if is_central(campaign) else ()),
        _holdout(campaign),
    )


def claims(campaign: Campaign) -> tuple[Claim, ...]:
    """Return what holds against whom, for every promise."""
    privacy = campaign.privacy
    if privacy.none is not None:
        return (Claim(against="anybody", level="none", holds="nothing is claimed"),)
    stated: list[Claim] = []
    if privacy.record is not None:
        stated += _record_claims(privacy.record.unit)
    if privacy.client is not None:
        local = not is_central(campaign)
        stated += _LOCAL_CLAIMS if local else _CENTRAL_CLAIMS
    return tuple(stated)


def _timing(campaign: Campaign) -> str:
    if campaign.cohort.upload_after_s is None:
        return "timing: durations may reveal how many rows were drawn or read"
    return (
        "timing of a site that is late: uploads leave at a fixed public time, and one that is not "
        "ready by then shows that it was not"
    )


def _several(campaign: Campaign) -> str:
    record = campaign.privacy.record
    if record is not None and record.unit != "row":
        return (
            f"a person under several values of {record.unit!r}, or at several sites: what each "
            "of them costs adds up"
        )
    return "a person with several rows, or at several sites: what each of them costs adds up"


def _holdout(campaign: Campaign) -> str:
    holdout = campaign.evaluation.holdout
    return (
        f"the holdout {holdout.name!r} (SHA-256 {holdout.sha256}): declared public rows of the "
        "coordinator; a person in it is not protected there"
    )


_UPDATE_PLAIN = Leaving(
    what="the update: change of the adapter's tensors", protection="none: trained on rows as is"
)
_ERROR_PLAIN = Leaving(
    what="the class of an error that ended a training, such as MemoryError; never its text",
    protection="none: depends on the rows",
)
_LEAVES_ALWAYS = (
    Leaving(
        what="its signed manifest: names, shapes, length and hashes, number of steps, version",
        protection="public numbers, and a hash of the update",
    ),
    Leaving(
        what="the gate's bit and the names of broken rules",
        protection="depends on the rows; judged once per dataset version; outside the claim",
    ),
    Leaving(
        what="a refusal: one of gate, budget, policy, left, no_update",
        protection="gate and no_update are outside the claim; the others do not depend on rows",
    ),
)
_CHARGE = Leaving(
    what="the charge: the round's event and its number in the ledger",
    protection="public numbers; the number shows how often this dataset was used",
)
_BUDGET = Leaving(
    what="the budget statement: epsilon, limit, delta, events, rounds left, ledger head, unless "
    "the site's policy withholds it",
    protection="follows from public events of all campaigns, not from rows",
)
_HEADS = Leaving(
    what="the ledger's signed entries, to the witnesses that the site's policy names",
    protection="public numbers of rounds; the times in them are outside the claim",
)
_RAW = (
    "the coordinator, and whoever can read its store while a round is open: they hold un-noised "
    "updates until the round ends"
)
_OUTSIDE = (
    "the gate's bit and names of broken rules, which depend on the rows",
    (
        "choices made by looking at results: learning rate, clip and rounds tuned on private data "
        "would have to be charged, and are not"
    ),
    "side channels of the site's machine, and rounding of floating-point noise",
    (
        "a ledger that is set back to an older copy together with all its witnesses: nobody would "
        "notice, and rounds after the copy could be trained again on one charge"
    ),
    (
        "updates that are missing for causes like disk or network (no_update), or because a site's "
        "operator held them back: they are charged, and whoever decides by figures from the rows "
        "tells by it what nobody charged"
    ),
)


def _record_claims(unit: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(against=who, level="record", holds=holds)
        for who, holds in (
            (READER, f"epsilon and delta as stated, for every {unit} of every site"),
            (STORE, "the same: every update in the store was noised before it left its site"),
            (OTHER_SITE, "the same: noise is added at the site, no other site knows it"),
            (
                COORDINATOR,
                (
                    "the same: a site takes noise from the campaign it approved and charges its "
                    "own ledger, whatever the coordinator plans"
                ),
            ),
            (
                CHEAT,
                (
                    "units of other sites stay protected as stated; its own and the model's "
                    "quality are in its hands"
                ),
            ),
        )
    )


_LOCAL_CLAIMS = tuple(
    Claim(against=who, level="client", holds=holds)
    for who, holds in (
        (READER, "epsilon and delta as stated, for every site's whole data"),
        (STORE, "the same: every update in the store was clipped and noised at its site"),
        (OTHER_SITE, "the same: noise is added at the site, no other site knows it"),
        (COORDINATOR, "the same: it never holds an un-noised update"),
        (CHEAT, "other sites stay protected as stated; the model's quality does not"),
    )
)
_CENTRAL_CLAIMS = tuple(
    Claim(against=who, level="client", holds=holds)
    for who, holds in (
        (READER, "epsilon and delta as stated, for every site's whole data"),
        (
            STORE,
            (
                "the same once a round is closed, since its updates are deleted then; nothing "
                "while it is open, if the store lets them read what sites upload"
            ),
        ),
        (
            OTHER_SITE,
            (
                "the same, if the store keeps one site from reading what another uploads; a site "
                "knows its own update, which takes nothing from the others' protection"
            ),
        ),
        (
            COORDINATOR,
            (
                "nothing: it clips, adds the noise and keeps the ledger itself, and could read "
                "every update until the round ended"
            ),
        ),
        (
            CHEAT,
            (
                "other sites stay protected as stated, since every update is clipped again before "
                "the noise; the model's quality does not"
            ),
        ),
    )
)
