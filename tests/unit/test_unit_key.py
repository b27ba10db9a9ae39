"""The site's secret behind the draw of rows: made once, kept to its owner."""

import stat
import threading

import pytest

from fl_core.errors import CampaignError
from tasks.site_config import SiteHome
from tasks.unit_key import FILE, read_unit_key


@pytest.fixture
def home(tmp_path):
    return SiteHome(tmp_path)


def test_key_is_made_once_and_read_back(home):
    first = read_unit_key(home)

    assert len(first) == 32
    assert read_unit_key(home) == first


def test_keys_of_two_sites_differ(tmp_path):
    homes = [SiteHome(tmp_path / name) for name in ("one", "two")]
    for home in homes:
        home.root.mkdir()

    assert read_unit_key(homes[0]) != read_unit_key(homes[1])


def test_only_its_owner_may_read_it_and_nothing_else_is_left(home):
    read_unit_key(home)

    assert stat.S_IMODE((home.root / FILE).stat().st_mode) == 0o600
    assert [path.name for path in home.root.iterdir()] == [FILE]


def test_processes_that_find_none_at_once_agree_on_one(home):
    found = []
    starting = threading.Barrier(8)

    def read():
        starting.wait()
        found.append(read_unit_key(home))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len(set(found)) == 1


def test_file_that_is_no_key_is_refused_and_kept(home):
    (home.root / FILE).write_bytes(b"cut short")

    with pytest.raises(CampaignError, match="has 9 bytes, expected a key of 32"):
        read_unit_key(home)

    assert (home.root / FILE).read_bytes() == b"cut short"


def test_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CampaignError, match=r"unit\.key: cannot be read or written"):
        read_unit_key(SiteHome(tmp_path / "absent"))
