"""Sites as hosts of their own: a network namespace each, with one link, to the coordinator only.

The coordinator is this machine; its address on every link is the same one, so that a certificate
names it once. Nothing is forwarded, so a site reaches what listens on that address and nothing
else. Links have a rate, and can be cut and mended in the middle of anything. Needs root.
"""

import contextlib
import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COORDINATOR = "10.231.0.1"
"""Where the coordinator listens for sites."""


@dataclass(frozen=True, slots=True)
class Host:
    """One site's host.

    Attributes:
        number: From 1.
    """

    number: int

    @property
    def name(self) -> str:
        """Name of its namespace."""
        return f"fl-site{self.number}"

    @property
    def link(self) -> str:
        """The coordinator's end of its link."""
        return f"fl-link{self.number}"

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return a command that runs on this host."""
        return ["ip", "netns", "exec", self.name, *argv]

    def reaches(self, address: str, port: int) -> bool:
        """Say whether a connection from this host is accepted within two seconds."""
        script = f"import socket; socket.create_connection(({address!r}, {port}), timeout=2)"
        found = subprocess.run(
            self.command([sys.executable, "-c", script]), check=False, capture_output=True
        )
        return found.returncode == 0

    def cut(self) -> None:
        """Take the link down; packets vanish, nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Bring the link back."""
        _ip("link", "set", self.link, "up")
        _ip("-n", self.name, "route", "replace", f"{COORDINATOR}/32", "via", self._near)

    @property
    def _near(self) -> str:
        return f"10.231.{self.number}.1"

    def _up(self, rate: str) -> None:
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("addr", "add", f"{self._near}/30", "dev", self.link)
        _ip("-n", self.name, "addr", "add", f"10.231.{self.number}.2/30", "dev", "eth0")
        _ip("link", "set", self.link, "up")
        _ip("-n", self.name, "link", "set", "eth0", "up")
        _ip("-n", self.name, "route", "add", f"{COORDINATOR}/32", "via", self._near)
        shape = ["root", "tbf", "rate", rate, "burst", "64kbit", "latency", "300ms"]
        _run("tc", "qdisc", "add", "dev", self.link, *shape)
        _run(*self.command(["tc", "qdisc", "add", "dev", "eth0", *shape]))

    def _down(self) -> None:
        found = subprocess.run(
            ["ip", "netns", "pids", self.name], check=False, capture_output=True, text=True
        )
        for pid in found.stdout.split():
            subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
        for arguments in (["netns", "del", self.name], ["link", "del", self.link]):
            subprocess.run(["ip", *arguments], check=False, capture_output=True)


@contextlib.contextmanager
def hosts(count: int, *, rate: str = "80mbit") -> Iterator[list[Host]]:
    """Make hosts with a link of ``rate`` each, and remove them with all that runs on them.

    Names and addresses are the machine's, so another process that wants hosts waits for its turn.
    """
    made = [Host(number) for number in range(1, count + 1)]
    _require_no_forwarding()
    with (Path(tempfile.gettempdir()) / "fedloom-hosts.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for host in made:
            host._down()
        try:
            _ip("addr", "replace", f"{COORDINATOR}/32", "dev", "lo")
            for host in made:
                host._up(rate)
            yield made
        finally:
            for host in made:
                host._down()
            _ip("addr", "del", f"{COORDINATOR}/32", "dev", "lo")


def _require_no_forwarding() -> None:
    path = Path("/proc/sys/net/ipv4/ip_forward")
    if path.read_text().strip() != "0":
        raise RuntimeError(f"{path} is on, so hosts would reach each other; expected 0")


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
