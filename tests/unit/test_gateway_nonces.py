"""Nonces count once, also over a restart, and are forgotten when their token has ended."""

from flows.gateway.identity import Nonces


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nonce_is_taken_once(tmp_path):
    nonces = Nonces(tmp_path / "nonces", Clock())

    assert [nonces.take("a" * 32, until=1100), nonces.take("a" * 32, until=1100)] == [True, False]


def test_restart_of_the_gateway_makes_no_old_request_good_again(tmp_path):
    Nonces(tmp_path / "nonces", Clock()).take("a" * 32, until=1100)

    again = Nonces(tmp_path / "nonces", Clock())

    assert not again.take("a" * 32, until=1100)
    assert again.take("b" * 32, until=1100)


def test_nonce_of_a_token_that_has_ended_is_forgotten(tmp_path):
    clock = Clock()
    Nonces(tmp_path / "nonces", clock).take("a" * 32, until=1100)

    clock.now = 1101
    Nonces(tmp_path / "nonces", clock)

    assert (tmp_path / "nonces").read_text() == ""


def test_nonces_of_a_long_day_do_not_pile_up(tmp_path):
    clock = Clock()
    nonces = Nonces(tmp_path / "nonces", clock)

    for number in range(20_000):
        clock.now += 1
        assert nonces.take(f"{number:032x}", until=int(clock.now) + 100)

    # Some hundred are alive at one time; the rest goes at the next thousand.
    assert len(nonces._until) < 3000
    assert len((tmp_path / "nonces").read_text().splitlines()) < 3000
    assert not Nonces(tmp_path / "nonces", clock).take(f"{19_999:032x}", until=1)


def test_line_that_was_cut_by_a_crash_is_passed_over(tmp_path):
    (tmp_path / "nonces").write_text(f"{'a' * 32} 1100\nbbbb")

    assert not Nonces(tmp_path / "nonces", Clock()).take("a" * 32, until=1100)
