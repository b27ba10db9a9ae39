"""Documents that come from a person's hands: an invite, an enrolment, a change of keys.

Such a file is input to correct and no damaged object, so its errors say what to do about it.
"""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from fl_core.artifacts.documents import from_bytes
from fl_core.errors import CampaignError, ObjectCorrupt

D = TypeVar("D", bound=BaseModel)


def read_handed(model: type[D], path: Path, *, hint: str) -> D:
    """Read a document of a file that somebody sent.

    Args:
        model: The document's type.
        path: The file.
        hint: Where such a file comes from, or what to do without it.

    Raises:
        CampaignError: Absent, or not such a document.
    """
    try:
        return from_bytes(model, path.read_bytes(), what=str(path))
    except OSError as error:
        raise CampaignError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    except ObjectCorrupt as error:
        raise CampaignError(str(error), hint=hint) from error
