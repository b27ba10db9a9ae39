"""A real gateway in a process of its own over a store in a folder, and sites with their files."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.campaign.roster import RosterEntry, enrol
from fl_core.errors import StoreUnavailable
from fl_core.updates.signing import generate_key, public_hex, read_key, write_key
from flows.gateway.files import prepared_invite
from flows.processes import free_port, is_port_free
from tasks.certificates import make_certificate
from tasks.gateway_access import GatewayAccess, SiteDoor
from tasks.gateway_store import GatewayStore
from tasks.invite import accept_invite

_MAIN = "from flows.cli.main import main; main()"
# A Prefect that is not there: the gateway serves the store all the same.
NOBODY = "http://127.0.0.1:9/api"
_OWN = ("PREFECT", "MLFLOW", "FEDLOOM")


def plain_environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(_OWN)} | more


@dataclass
class Gateway:
    """`fedloom gateway start`, which can be stopped and started again on the same port."""

    folder: Path
    prefect_url: str = NOBODY
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.folder / "store")

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self, *, before: str = "") -> None:
        """Start it; ``before`` is code that runs first, to play a gateway of another version."""
        words = ("gateway", "start", "--home", str(self.folder), "--url", self.url)
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", before + _MAIN, *words],
                env=plain_environment(
                    FEDLOOM_STORE=f"file://{self.folder}/store", PREFECT_API_URL=self.prefect_url
                ),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while is_port_free(self.port):
            assert self.process.poll() is None, (self.folder / "gateway.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=30)

    def make_site(self, name: str, *, identify: str = "certificate") -> SiteDoor:
        """Make the files of a site that knows this gateway; nobody has enrolled it."""
        home = self.folder / "sites" / name
        home.mkdir(parents=True)
        write_key(generate_key(), home / "key.pem")
        make_certificate(home / "tls.crt", home / "tls.key", common_name=name)
        invite = prepared_invite(self.folder / "gateway", urls=[self.url])
        access = accept_invite(invite, home).model_copy(update={"identify": identify})
        return SiteDoor(site=name, home=home, access=GatewayAccess.model_validate(dict(access)))

    def enrol(self, door: SiteDoor) -> None:
        entry = RosterEntry(
            site=door.site,
            signing_key=public_hex(read_key(door.home / "key.pem")),
            certificate=(door.home / "tls.crt").read_text(),
            identify=door.access.identify,
            since=datetime.now(UTC),
        )
        enrol(self.store, entry)
        deadline = time.monotonic() + 30
        while not self._lets_in(door):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _lets_in(self, door: SiteDoor) -> bool:
        # The gateway looks for a new roster every two seconds.
        try:
            return bool(GatewayStore.through(door).list(keys.ROSTERS))
        except StoreUnavailable:
            return False
