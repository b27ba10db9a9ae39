"""What `fedloom enrol` says before it asks whether two people read the same fingerprint."""

from datetime import UTC, datetime

import pytest

from fl_core.campaign.roster import Roster, RosterEntry
from flows.cli.roster import what_is_new
from tasks.enrolment import Enrolment

NOW = datetime(2026, 3, 4, tzinfo=UTC)
KEY, OTHER = "a" * 64, "b" * 64


def roster_of(**changes) -> Roster:
    plain = {"site": "north", "signing_key": KEY, "certificate": "one", "since": NOW} | changes
    return Roster(version=1, entries=(RosterEntry.model_validate(plain),))


@pytest.mark.parametrize(
    ("known", "asked", "said"),
    [
        ({"site": "south"}, {}, "a new site"),
        ({}, {}, "enrolled with exactly this already"),
        ({}, {"certificate": "two"}, "new certificate for an enrolled key"),
        (
            {},
            {"certificate": "two", "declared_examples": 512},
            "new certificate and declared size for an enrolled key; the declared size was none",
        ),
        ({}, {"identify": "token"}, "new way to identify for an enrolled key"),
        (
            {"declared_examples": 1024},
            {},
            "new declared size for an enrolled key; the declared size was 1,024",
        ),
        ({}, {"signing_key": OTHER}, "ANOTHER signing key for an enrolled name"),
        ({"revoked": NOW}, {}, "was revoked on 2026-03-04, comes back with its last key"),
        (
            {"revoked": NOW},
            {"signing_key": OTHER},
            "was revoked on 2026-03-04, comes back with another key",
        ),
    ],
    ids=[
        "new",
        "same",
        "certificate",
        "both",
        "identify",
        "size",
        "key",
        "back",
        "back-with-another-key",
    ],
)
def test_prompt_says_what_enrolling_changes(known, asked, said):
    plain = {"site": "north", "signing_key": KEY, "certificate": "one"} | asked
    enrolment = Enrolment.model_validate(plain)

    assert what_is_new(roster_of(**known), enrolment).startswith(said)
