"""The gateway's record: one line for each request, a flood in one a second, files put aside."""

import json
import time

import pytest

from flows.gateway.record import Line, Record


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.25

    def __call__(self) -> float:
        return self.now


def lines(folder, name="record.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_line_says_who_asked_for_what_and_when(tmp_path):
    record = Record(tmp_path, now=Clock())
    record.write(
        Line(method="GET", path="/store/keys", site="north", by="token", status=200, keys=["a/"])
    )

    assert lines(tmp_path) == [
        {
            # 1,800,000,000 s after the epoch.
            "time": "2027-01-15T08:00:00.250+00:00",
            "method": "GET",
            "path": "/store/keys",
            "address": "",
            "site": "north",
            "by": "token",
            "status": 200,
            "keys": ["a/"],
            "received": 0,
            "sent": 0,
            "ms": 0.0,
        }
    ]


def test_only_the_gateways_account_may_read_the_record(tmp_path):
    Record(tmp_path)

    assert (tmp_path / "record.jsonl").stat().st_mode & 0o777 == 0o600


def test_flood_is_one_line_a_second_with_a_count(tmp_path):
    clock = Clock()
    record = Record(tmp_path, now=clock)

    for _ in range(1000):
        record.write(Line(method="GET", path="/x", site="north", status=429))
    record.write(Line(method="GET", path="/y", site="south", status=200))
    clock.now += 1
    record.flush()

    assert [(line["path"], line.get("repeated")) for line in lines(tmp_path)] == [
        ("/y", None),
        ("/x", 999),
    ]


def test_failed_handshakes_of_strangers_are_one_line_a_second_with_a_count(tmp_path):
    record = Record(tmp_path, now=Clock())

    for _ in range(5000):
        record.write(Line(method="TLS", path="", detail="no TLS"))
    for number in range(5000):
        record.write(Line(method="", path="", address=f"192.0.2.{number}", status=400))
    record.close()

    found = lines(tmp_path)
    # The handshakes and nine addresses get a line of their own, the other addresses one together.
    assert len(found) == 11
    assert sum(1 + line.get("repeated", 0) for line in found) == 10_000


def test_what_is_held_back_is_written_at_the_end(tmp_path):
    record = Record(tmp_path, now=Clock())
    record.write(Line(method="GET", path="/x", address="192.0.2.1", status=429))

    record.close()

    assert [line["address"] for line in lines(tmp_path)] == ["192.0.2.1"]


def put_aside(folder, *, days_ago, count):
    """Leave files that were put aside so long ago; return their names, oldest first."""
    began = time.time_ns() - days_ago * 24 * 3600 * 10**9
    names = [f"record-{began + number}.jsonl" for number in range(count)]
    for name in names:
        (folder / name).write_text("{}\n")
    return names


def aside(folder):
    return sorted(path.name for path in folder.glob("record-*.jsonl"))


def test_full_file_is_put_aside_and_the_oldest_goes_once_it_is_old(tmp_path):
    old = put_aside(tmp_path, days_ago=8, count=3)
    record = Record(tmp_path, max_bytes=1, max_files=2)

    record.write(Line(method="GET", path="/a"))

    assert aside(tmp_path)[0] == old[2]
    assert lines(tmp_path, aside(tmp_path)[1])[0]["path"] == "/a"
    assert len(aside(tmp_path)) == 2
    assert lines(tmp_path) == []


def test_files_of_the_last_seven_days_stay_until_there_are_eight_times_as_many(tmp_path, caplog):
    young = put_aside(tmp_path, days_ago=6, count=15)
    record = Record(tmp_path, max_bytes=1, max_files=2)

    record.write(Line(method="GET", path="/a"))
    kept = aside(tmp_path)
    record.write(Line(method="GET", path="/b"))

    assert kept[:15] == young
    assert aside(tmp_path)[0] == young[1]
    # Sixteen of them: eight times two.
    assert len(aside(tmp_path)) == 16
    assert f"it grows too fast file={young[0]}" in caplog.text


@pytest.mark.parametrize(
    "path",
    [
        "/a\nb",
        "/" + "x" * 10_000,
        "/" + "\x01" * 10_000,
        "/" + "\U0001f600" * 500,
        "/\udcff",
        '/"}\n{"site": "south"}',
    ],
)
def test_path_of_a_stranger_stays_one_short_line(tmp_path, path):
    record = Record(tmp_path)

    record.write(Line(method="GET", path=path))

    text = (tmp_path / "record.jsonl").read_text()
    assert text.count("\n") == 1
    assert len(text) < 1000


def test_record_goes_on_where_it_was_after_a_restart(tmp_path):
    Record(tmp_path).write(Line(method="GET", path="/before"))

    Record(tmp_path).write(Line(method="GET", path="/after"))

    assert [line["path"] for line in lines(tmp_path)] == ["/before", "/after"]


@pytest.mark.parametrize("key", ["\x01" * 400, "k" * 900, "\U0001f600" * 300])
def test_line_of_many_long_keys_is_at_most_two_kibibytes(tmp_path, key):
    record = Record(tmp_path)

    record.write(
        Line(method="GET", path="/" + key, site="n" * 63, detail=key, keys=[key] * 100, status=200)
    )

    assert len((tmp_path / "record.jsonl").read_text()) <= 2048


def test_site_that_asks_all_the_time_gets_a_line_a_second_and_its_writes_their_own(tmp_path):
    record = Record(tmp_path, now=Clock())

    for _ in range(5000):
        record.write(Line(method="GET", path="/x", site="north", status=200))
    record.write(Line(method="PUT", path="/w", site="north", status=201))
    record.write(Line(method="GET", path="/y", site="south", status=200))
    record.close()

    found = lines(tmp_path)
    # A burst of 600 lines; while this runs, some more at five a second.
    assert 600 < len(found) < 700
    assert sum(1 + line.get("repeated", 0) for line in found) == 5002
    assert {"/w", "/y"} <= {line["path"] for line in found}


def test_strangers_of_many_addresses_share_a_number_of_lines(tmp_path):
    record = Record(tmp_path, now=Clock())

    for number in range(5000):
        address = f"2001:db8::{number:x}"
        record.write(Line(method="GET", path="/health", address=address, status=200))
    record.close()

    found = lines(tmp_path)
    assert 600 < len(found) < 650
    assert sum(1 + line.get("repeated", 0) for line in found) == 5000
