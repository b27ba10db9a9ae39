"""Everything outside the sites that could hold a trace: objects, databases, files."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import psycopg2
from botocore.config import Config
from psycopg2 import sql

from flows.local_stack import Stack


def objects_of(stack: Stack) -> Iterator[tuple[str, bytes]]:
    """All objects of all buckets, by ``bucket/key``."""
    keys = stack.file.coordinator
    client = boto3.client(
        "s3",
        endpoint_url=stack.s3_endpoint,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    for bucket in client.list_buckets()["Buckets"]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"])
        for page in pages:
            for item in page.get("Contents", []):
                body = client.get_object(Bucket=bucket["Name"], Key=item["Key"])["Body"]
                yield f"{bucket['Name']}/{item['Key']}", body.read()


def database_texts(stack: Stack) -> Iterator[tuple[str, bytes]]:
    """Every row of every table of Prefect's and MLflow's databases, as text."""
    # The home is short enough for the socket to lie in the data folder.
    socket_folder = stack.home / "postgres" / "data"
    for name in ("prefect", "mlflow"):
        address = f"postgresql://postgres@/{name}?host={socket_folder}"
        with psycopg2.connect(address) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select table_name from information_schema.tables "
                "where table_schema = 'public' and table_type = 'BASE TABLE'"
            )
            for (table,) in cursor.fetchall():
                cursor.execute(sql.SQL("select t::text from {} t").format(sql.Identifier(table)))
                for (row,) in cursor.fetchall():
                    yield f"{name}.{table}", row.encode()


def outside_files(home: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a home except the sites' own folders and the sites' own logs."""
    for path in sorted(home.rglob("*")):
        own = path.relative_to(home).parts
        is_sites = own[0] == "sites" or own[-1].startswith("site-site-")
        if path.is_file() and not is_sites:
            yield str(path.relative_to(home)), path.read_bytes()
