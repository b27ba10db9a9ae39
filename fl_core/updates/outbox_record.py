"""How far one exchange of the outbox has come, for the site's own people.

What decides an exchange is its plan, its attempts and its ending. The notes beside them decide
nothing: they tell when something was held back, sent or refused, and why, in words that stay at
the site. A note is written once, so a second try keeps the first time.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AwareDatetime, StringConstraints

from fl_core.artifacts.documents import Document

NoteKind = Literal["held", "sending", "uploaded", "withheld", "declined"]
NOTE_KINDS: tuple[NoteKind, ...] = ("held", "sending", "uploaded", "withheld", "declined")
Progress = Literal[
    "reserved", "training", "committed", "held", "sending", "uploaded", "withheld", "declined",
    "failed", "voided",
]  # fmt: skip
LONGEST_TEXT = 1000


class Note(Document):
    """One step of an exchange; stays at the site.

    Attributes:
        kind: ``held`` for the operator, ``sending`` (written before the first byte leaves),
            ``uploaded``, ``withheld`` (nothing of it leaves), ``declined``.
        time: When, UTC.
        text: Why, for the site's own people.
        until: Until when a held update can be approved.
    """

    kind: NoteKind
    time: AwareDatetime
    text: Annotated[str, StringConstraints(max_length=LONGEST_TEXT)] = ""
    until: AwareDatetime | None = None


@dataclass(frozen=True, slots=True)
class ExchangeRecord:
    """All that an outbox says of one exchange.

    Attributes:
        plan_sha256: The plan it is bound to; empty where it was refused before that.
        attempts: Trainings that were begun.
        ending: ``committed``, ``failed``, ``voided``; empty while it has none.
        files: SHA-256 of what was committed, by name.
        notes: By kind.
    """

    plan_sha256: str
    attempts: int = 0
    ending: Literal["committed", "failed", "voided", ""] = ""
    files: dict[str, str] = field(default_factory=dict)
    notes: dict[NoteKind, Note] = field(default_factory=dict)

    @property
    def progress(self) -> Progress:
        """How far it has come, in one word; what may have left comes before what was to stay."""
        said: tuple[NoteKind, ...] = ("uploaded", "sending", "withheld", "held")
        for kind in said:
            if kind in self.notes:
                return kind
        if self.ending == "committed":
            return "committed"
        if "declined" in self.notes:
            return "declined"
        return self.ending or ("training" if self.attempts else "reserved")
