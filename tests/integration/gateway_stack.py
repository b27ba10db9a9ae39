"""A real gateway over TLS in front of a real S3 server and a real Prefect server, and its sites.

Tests speak to it as a site that keeps to no rule: plain HTTP requests with a site's own keys.
"""

import hashlib
import itertools
import json
import secrets
import ssl
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.assembly import Assembly
from fl_core.campaign.roster import RosterEntry, enrol
from fl_core.privacy.ledger import Ledger
from fl_core.rounds.collection import examine_site
from fl_core.rounds.documents import RoundPlan, SiteAnswer
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.rounds.site import Site
from fl_core.updates.signing import SigningKey, generate_key, public_hex, write_key
from flows.processes import Command, ServerProcess, spawn, wait_until
from flows.registration import register
from flows.servers import PREFECT_ENV, S3Access
from tasks.certificates import make_certificate
from tasks.gateway_access import GatewayAccess, SiteDoor
from tasks.hello import own_hello
from tasks.object_store import S3Location, S3Store, connect, ensure_bucket
from tasks.request_token import BODY_SHA256, SignedRequest, authorization
from tests.worlds import campaign_of, open_site, policy_of

BUCKET = "behind-the-gateway"
SITES = ("north", "south")
_SESSION = "site-session"


def hashed(body: bytes) -> dict[str, str]:
    """Return the header that goes with a body."""
    return {BODY_SHA256: hashlib.sha256(body).hexdigest()}


@dataclass
class Member:
    """A site with its keys: what an operator holds, and so what a hostile one has."""

    name: str
    home: Path
    key: SigningKey

    def context(self, gateway_certificate: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=gateway_certificate)
        context.load_cert_chain(self.home / "tls.crt", self.home / "tls.key")
        return context


class GatewayStack:
    """One gateway process, its store, its Prefect server and its enrolled sites."""

    def __init__(self, folder: Path, s3: S3Access, prefect: ServerProcess) -> None:
        self.folder = folder
        self.s3 = s3
        self.prefect_url = f"{prefect.url}/api"
        self.prefect = SyncPrefectClient(self.prefect_url)
        self._numbers = itertools.count(1)
        location = S3Location(
            BUCKET, endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key
        )
        self.store: S3Store = connect(location)
        ensure_bucket(self.store)
        self.sites = {name: self.enrolled(name) for name in SITES}
        with temporary_settings({PREFECT_API_URL: self.prefect_url}):
            register(sites=SITES)

    def enrolled(self, name: str, *, identify: str = "token") -> Member:
        """Make a site and admit it; one that may sign its requests has a certificate too."""
        home = self.folder / "sites" / name
        pem = make_certificate(home / "tls.crt", home / "tls.key", common_name=name)
        key = generate_key()
        write_key(key, home / "key.pem")
        entry = RosterEntry(
            site=name,
            signing_key=public_hex(key),
            certificate=pem,
            identify=identify,
            since=datetime.now(UTC),
        )
        enrol(self.store, entry)
        return Member(name, home, key)

    def start(self, port: int, *arguments: str) -> ServerProcess:
        """Start the gateway as an operator would and wait until it answers."""
        home = self.folder / "home"
        self.url = f"https://127.0.0.1:{port}"
        self.certificate = home / "gateway" / "tls.crt"
        command = Command(
            name="gateway",
            argv=[
                *(sys.executable, "-m", "flows.cli.main", "gateway", "start"),
                *("--home", str(home), "--port", str(port), "--url", self.url, *arguments),
            ],
            env={
                **PREFECT_ENV,
                "PREFECT_API_URL": self.prefect_url,
                "FEDLOOM_STORE": f"s3://{BUCKET}",
                "FEDLOOM_S3_ENDPOINT": self.s3.endpoint,
                "FEDLOOM_S3_ACCESS_KEY": self.s3.access_key,
                "FEDLOOM_S3_SECRET_KEY": self.s3.secret_key,
            },
            folder=self.folder / "work",
            log_path=self.folder / "gateway.log",
        )
        return wait_until(spawn(command), self._answers)

    def _answers(self) -> bool:
        if not self.certificate.exists():
            return False
        try:
            return self.stranger().get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def client(self, site: str) -> httpx.Client:
        """Return a client with a site's certificate."""
        context = self.sites[site].context(self.certificate)
        return httpx.Client(base_url=self.url, verify=context, timeout=60)

    def stranger(self) -> httpx.Client:
        """Return a client without any certificate."""
        context = ssl.create_default_context(cafile=self.certificate)
        return httpx.Client(base_url=self.url, verify=context, timeout=60)

    def door(self, site: str) -> SiteDoor:
        """Return what the product's own client goes through."""
        access = GatewayAccess(url=self.url, certificate=self.certificate)
        return SiteDoor(site=site, home=self.sites[site].home, access=access)

    def signed(self, site: str, method: str, target: str, body: bytes = b"") -> SignedRequest:
        """Return a request as a site would sign it."""
        return SignedRequest(
            url=self.url,
            site=site,
            method=method,
            target=target,
            body_sha256=hashlib.sha256(body).hexdigest(),
            expires=int(time.time()) + 60,
            nonce=secrets.token_hex(16),
        )

    def token(self, signer: str, request: SignedRequest, **changes: Any) -> dict[str, str]:
        """Return the headers of a signed request; ``changes`` are made before it is signed."""
        signed = authorization(replace(request, **changes), self.sites[signer].key)
        return {"Authorization": signed, BODY_SHA256: request.body_sha256}

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the lines of the record that have these values."""
        path = self.folder / "home" / "gateway" / "record.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in found if wanted.items() <= line.items()]

    def recorded(self, **wanted: Any) -> bool:
        """Whether the record has such a line, which is written as the answer goes out."""
        return any(self.lines(**wanted) or time.sleep(0.1) for _ in range(50))

    def say_hello(self, site: str) -> httpx.Response:
        """Have a site say what this installation is."""
        body = to_bytes(own_hello(site))
        with self.client(site) as client:
            return client.post("/hello", content=body, headers=hashed(body))

    def session(self, site: str) -> str:
        """Have Prefect schedule a session of a site; return the id of its run."""
        deployment = self.prefect.read_deployment_by_name(f"{_SESSION}/{site}")
        parameters = {"campaign_id": "any", "run": secrets.token_hex(4), "site": site}
        run = self.prefect.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        return str(run.id)

    def campaign(self, **changes: Any) -> "OpenCampaign":
        """Freeze a campaign of its own id and open its first round now."""
        campaign = campaign_of(**({"sites": SITES, "id": f"made-{next(self._numbers)}"} | changes))
        assembly = open_campaign(self.store, campaign)
        return OpenCampaign(self, assembly)


@dataclass
class OpenCampaign:
    """A campaign in the store behind the gateway."""

    stack: GatewayStack
    assembly: Assembly

    @property
    def id(self) -> str:
        return self.assembly.campaign.id

    def plan(self, number: int = 1) -> RoundPlan:
        """Return the plan of a round, opening it if it is not."""
        now = datetime.now(UTC)
        return open_round(self.assembly, self.stack.store, round_number=number, now=now)

    def judged(self, site: str, number: int = 1) -> SiteAnswer | None:
        """Return what collection makes of a site's answer."""
        return examine_site(self.assembly, self.stack.store, self.plan(number), site=site)

    def site(self, name: str) -> Site:
        """Return a site with a new ledger, a new outbox and the key that is enrolled."""
        key = self.stack.sites[name].key
        policy = policy_of(self.assembly.campaign, name)
        ledger, now = MemoryStore(), datetime.now(UTC)
        Ledger.create(ledger, dataset=policy.dataset, unit=policy.unit, key=key, now=now)
        return open_site(name, key, policy, ledger, MemoryStore())
