"""The gateway's record: one line for each request, a flood in one a second, files put aside."""

import json

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
    # A thousand addresses get a line of their own, the others one together.
    assert len(found) == 1001
    assert sum(1 + line.get("repeated", 0) for line in found) == 10_001


def test_what_is_held_back_is_written_at_the_end(tmp_path):
    record = Record(tmp_path, now=Clock())
    record.write(Line(method="GET", path="/x", address="192.0.2.1", status=429))

    record.close()

    assert [line["address"] for line in lines(tmp_path)] == ["192.0.2.1"]


def test_full_file_is_put_aside_and_the_oldest_goes(tmp_path):
    record = Record(tmp_path, max_bytes=1, max_files=2)

    for number in range(5):
        record.write(Line(method="GET", path=f"/{number}"))

    aside = sorted(path.name for path in tmp_path.glob("record-*.jsonl"))
    assert [lines(tmp_path, name)[0]["path"] for name in aside] == ["/3", "/4"]
    assert lines(tmp_path) == []


@pytest.mark.parametrize("path", ["/a\nb", "/" + "x" * 10_000, "/\udcff", '/"}\n{"site": "south"}'])
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
