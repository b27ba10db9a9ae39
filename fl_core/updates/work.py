"""What a round asks of a site's work, and what comes back.

What comes back has parts of different fate: the delta leaves the site, the state goes into the
outbox record of its exchange and never further (SOUNDNESS, rule 12), the read-out is for the
site's own people.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fl_core.artifacts.documents import Document
from fl_core.updates.update import Array


class ReadOut(Document):
    """What noise did to one round's update: computed from clean gradients, so it never leaves.

    Attributes:
        round: From 1.
        cosine: Of the noised to the clean sum of gradients over all steps, in [-1, 1]; 0 if there
            is no clean signal.
        norm_ratio: Norm of the noised over that of the clean sum; inf is written as None.
        clipped_share: Share of drawn units whose gradient was cut; None without a unit.
    """

    round: int
    cosine: float
    norm_ratio: float | None = None
    clipped_share: float | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One training that is asked for.

    Attributes:
        round_number: From 1.
        base: Files of the global adapter to start from.
        state: What the site's last exchange of this campaign left for this one, or None.
    """

    round_number: int
    base: Mapping[str, bytes]
    state: bytes | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gives.

    Attributes:
        delta: After minus before by tensor name; what leaves, under the campaign's guarantee.
        state: For the next exchange, or None; stays in the outbox.
        read_out: For the site's own people, or None; stays at the site.
    """

    delta: dict[str, Array]
    state: bytes | None = None
    read_out: ReadOut | None = None
