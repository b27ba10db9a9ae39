"""What noise did to a site's rounds, as the site keeps it for its own people.

The figures are made from clean gradients: they are as private as the rows, so they lie in the
site's folder, and whoever shows them does so at the site (SOUNDNESS, rule 18).
"""

from dataclasses import dataclass

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, read_document
from fl_core.artifacts.store import exists
from fl_core.privacy.policy_documents import Approval
from fl_core.updates.work import ReadOut
from tasks.site_config import SiteHome

FOLDER = "readouts"
LOST = 0.1
CLEAR = 0.5
MANY, FEW = 0.9, 0.1


@dataclass(frozen=True, slots=True)
class RoundReadOut:
    """One round's figures with the campaign they belong to; stays at the site.

    Attributes:
        campaign: Id of the campaign, or the first digits of a digest that no approval explains.
        digest: Its digest.
        figures: What was measured.
    """

    campaign: str
    digest: str
    figures: ReadOut

    @property
    def is_lost(self) -> bool:
        """Whether the update points almost anywhere."""
        return self.figures.cosine < LOST

    @property
    def signal(self) -> str:
        """The direction of the rows in one word: ``lost``, ``noisy`` or ``clear``."""
        if self.is_lost:
            return "lost"
        return "noisy" if self.figures.cosine < CLEAR else "clear"

    @property
    def meaning(self) -> str:
        """What the figures say and what would help, for whoever runs the site."""
        return " ".join([_of_direction(self.figures), *_of_clipping(self.figures)])


def read_outs(home: SiteHome) -> list[RoundReadOut]:
    """Return all read-outs of a site, by campaign and round.

    Raises:
        ObjectCorrupt: A file is no read-out.
    """
    store = home.store(FOLDER)
    found = []
    for key in store.list(keys.READ_OUTS):
        digest = keys.campaign_of_read_out(key)
        if digest is not None:
            figures = from_bytes(ReadOut, store.get(key), what=key)
            found.append(RoundReadOut(_campaign(home, digest), digest, figures))
    return sorted(found, key=lambda one: (one.campaign, one.digest, one.figures.round))


def _campaign(home: SiteHome, digest: str) -> str:
    approvals, key = home.store("approvals"), keys.approval(digest)
    if not exists(approvals, key):
        # Approved by a line in the policy, which knows no name.
        return digest[:12]
    return read_document(approvals, key, Approval).campaign


def _of_direction(figures: ReadOut) -> str:
    if figures.cosine < LOST:
        return (
            "Almost all of it is noise: what this site sends hardly points where its rows do. "
            "More rows, fewer trained numbers or a higher epsilon would help."
        )
    if figures.cosine < CLEAR:
        return "Noisy, and still of use once sites and rounds are averaged."
    return "The direction of this site's rows is clearly in it."


def _of_clipping(figures: ReadOut) -> list[str]:
    share = figures.clipped_share
    if share is None:
        return ["Nothing was drawn in this round."]
    if share > MANY:
        return ["Nearly all gradients were cut: a higher clip_norm keeps more of them."]
    if share < FEW:
        return ["Hardly any gradient was cut: a lower clip_norm would need less noise."]
    return []
