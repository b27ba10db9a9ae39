"""The record of what leaves a site: written first, complete, shared, never a body."""

import gzip
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from fl_core.errors import StoreUnavailable
from tasks import outgoing
from tasks.outgoing import OutgoingLog, read_outgoing, read_record

# SHA-256 of b"abc", FIPS 180-2 appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def log(tmp_path):
    return OutgoingLog(tmp_path, process="session")


def test_request_is_there_before_its_answer_and_complete_after(log, tmp_path):
    name = log.sends("PUT", "/store/objects/witness/north/a%20b.json", b"abc")
    before = read_outgoing(tmp_path)
    log.answered(name, 201)

    (after,) = read_outgoing(tmp_path)

    assert [each.status for each in before] == [None]
    assert (after.method, after.key, after.status) == ("PUT", "witness/north/a b.json", 201)
    assert (after.payload_bytes, after.payload_sha256) == (3, ABC)
    assert after.process == f"session {os.getpid()}"
    assert not after.kept


def test_bodies_are_never_kept(log, tmp_path):
    log.sends("POST", "/hello", b"patient-4711")

    assert b"patient" not in (tmp_path / outgoing.FILE).read_bytes()


def test_only_objects_have_a_key(log, tmp_path):
    for path in ("/store/keys?prefix=a", "/api/flow_runs/1", "/hello"):
        log.sends("GET", path)

    assert [each.key for each in read_outgoing(tmp_path)] == ["", "", ""]


def test_what_was_kept_is_there_with_its_reason(log, tmp_path):
    log.kept("POST", "/api/logs/", reason="log lines stay at the site")

    (kept,) = read_outgoing(tmp_path)

    assert (kept.method, kept.path, kept.kept) == (
        "POST",
        "/api/logs/",
        "log lines stay at the site",
    )
    assert kept.status is None


def test_file_is_its_owners_only(log, tmp_path):
    log.sends("GET", "/hello")

    assert (tmp_path / outgoing.FILE).stat().st_mode & 0o777 == 0o600


def test_threads_and_processes_write_whole_lines(log, tmp_path):
    code = (
        "import sys, pathlib\nfrom tasks.outgoing import OutgoingLog\n"
        "log = OutgoingLog(pathlib.Path(sys.argv[1]), process='worker')\n"
        "[log.answered(log.sends('GET', '/x' * 200), 200) for _ in range(200)]"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda n: log.answered(log.sends("GET", f"/{n}"), 200), range(200)):
            pass
    assert other.wait(30) == 0

    assert [each.status for each in read_outgoing(tmp_path)] == [200] * 400


def test_line_that_was_cut_hides_no_other(log, tmp_path):
    log.answered(log.sends("GET", "/first"), 200)
    with (tmp_path / outgoing.FILE).open("ab") as file:
        file.write(b'{"kind":"sent","at":"2026-0\n')
    log.answered(log.sends("GET", "/second"), 200)

    record = read_record(tmp_path)
    assert [each.path for each in record.requests] == ["/first", "/second"]
    assert record.n_unreadable == 1


def test_record_that_cannot_be_written_lets_nothing_leave(tmp_path):
    (tmp_path / outgoing.FILE).mkdir()

    with pytest.raises(StoreUnavailable, match="nothing leaves unrecorded"):
        OutgoingLog(tmp_path, process="session").sends("GET", "/hello")


def test_long_file_is_set_aside_and_still_read(log, tmp_path, monkeypatch):
    monkeypatch.setattr(outgoing, "LONGEST_BYTES", 100)
    log.answered(log.sends("PUT", "/first", b"abc"), 201)
    open_request = log.sends("PUT", "/over-midnight", b"abc")

    log.set_aside()
    log.answered(open_request, 412)
    log.answered(log.sends("PUT", "/second", b"abc"), 201)

    found = [(each.path, each.status) for each in read_outgoing(tmp_path)]
    assert found == [("/first", 201), ("/over-midnight", 412), ("/second", 201)]
    assert len(list(tmp_path.glob("outgoing-*.jsonl"))) == 1


def test_file_of_more_than_an_hour_ago_is_packed_and_still_read(log, tmp_path, monkeypatch):
    monkeypatch.setattr(outgoing, "LONGEST_BYTES", 1)
    log.answered(log.sends("PUT", "/old", b"abc"), 201)
    log.set_aside()
    (aside,) = tmp_path.glob("outgoing-*.jsonl")
    os.utime(aside, times=(time.time() - 7200,) * 2)

    log.set_aside()

    (packed,) = tmp_path.glob("outgoing-*")
    assert packed.suffix == ".gz"
    assert json.loads(gzip.decompress(packed.read_bytes()).splitlines()[0])["path"] == "/old"
    assert [each.path for each in read_outgoing(tmp_path)] == ["/old"]


def test_short_file_stays(log, tmp_path):
    log.sends("GET", "/hello")

    log.set_aside()

    assert [path.name for path in tmp_path.iterdir()] == [outgoing.FILE]


def test_since_leaves_out_what_is_older(log, tmp_path):
    log.sends("GET", "/old")
    now = datetime.now(UTC)
    log.sends("GET", "/new")

    assert [each.path for each in read_outgoing(tmp_path, since=now)] == ["/new"]
    assert read_outgoing(tmp_path, since=now + timedelta(hours=1)) == []
    assert read_outgoing(tmp_path / "nowhere") == []
