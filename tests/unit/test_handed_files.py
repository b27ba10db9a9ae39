"""A file that a person sent is input to correct, whatever is wrong with it."""

import pytest

from fl_core.errors import CampaignError
from tasks.enrolment import read_enrolment
from tasks.handed_files import read_handed
from tasks.invite import Invite, read_invite
from tasks.key_change import KeyChange, read_change


@pytest.mark.parametrize("data", [None, b"", b"{", b'{"unknown": 1}'], ids=str)
@pytest.mark.parametrize("read", [read_invite, read_enrolment, read_change])
def test_file_that_is_none_names_itself_and_what_it_should_be(read, data, tmp_path):
    path = tmp_path / "sent.json"
    if data is not None:
        path.write_bytes(data)

    with pytest.raises(CampaignError, match=r"sent\.json") as caught:
        read(path)

    assert "it is the" in caught.value.hint


def test_what_is_in_the_file_is_no_part_of_the_error(tmp_path):
    path = tmp_path / "sent.json"
    path.write_text('{"site": "north", "old_key": "of-somebody"}')

    with pytest.raises(CampaignError, match="not a valid KeyChange") as caught:
        read_handed(KeyChange, path, hint="ask for it")

    assert caught.value.hint == "ask for it"
    assert "of-somebody" not in str(caught.value)


def test_file_that_is_one_is_read(tmp_path):
    path = tmp_path / "sent.json"
    path.write_text('{"url": "https://fl.example.org"}')

    assert read_handed(Invite, path, hint="").url == "https://fl.example.org"
