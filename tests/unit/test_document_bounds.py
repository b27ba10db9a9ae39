"""Documents of somebody else's are read up to a length, also where the reader states none."""

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import LONGEST_DOCUMENT, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.roster import Roster, latest_roster
from fl_core.errors import ObjectCorrupt
from fl_core.privacy.federation import FederationIdentity, identity

READERS = {
    keys.FEDERATION_IDENTITY: (identity, FederationIdentity(public_key="a" * 64)),
    keys.roster(1): (latest_roster, Roster(version=1)),
}


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("key", READERS)
def test_document_is_read_up_to_the_longest_and_no_further(key, more):
    read, document = READERS[key]
    store = MemoryStore()
    # Blanks after it change nothing of what the document says.
    store.put_once(key, to_bytes(document).ljust(LONGEST_DOCUMENT + more))

    if more:
        with pytest.raises(ObjectCorrupt, match=str(LONGEST_DOCUMENT)):
            read(store)
    else:
        assert read(store) == document
