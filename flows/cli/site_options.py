"""The options of `fedloom site init`, kept apart because there is one per line of a new site."""

from pathlib import Path
from typing import Annotated

import typer

SiteArgument = Annotated[str, typer.Argument(help="Name of the site, as campaigns use it.")]
DataOption = Annotated[Path, typer.Option(help="File with the rows: parquet, jsonl or csv.")]
EpsilonOption = Annotated[
    float, typer.Option(min=0, help="Limit over all campaigns on these rows, ever.")
]
DeltaOption = Annotated[
    float, typer.Option(min=0, max=1, help="Probability outside it; below one over the rows.")
]
GatewayOption = Annotated[
    Path | None,
    typer.Option(help="The invite.json that the coordinator gave: address and certificate."),
]
TokenOption = Annotated[
    bool,
    typer.Option(
        "--sign-requests",
        help="Show who it is by a signature on every request, not by a TLS certificate: for a "
        "way through a proxy that ends TLS.",
    ),
]
PrefectOption = Annotated[
    str, typer.Option("--prefect-api", help="Without a gateway: API that the worker polls.")
]
StoreOption = Annotated[
    str,
    typer.Option(
        help="Without a gateway, on the coordinator's own machine: s3://bucket or file:///folder."
    ),
]
EndpointOption = Annotated[
    str, typer.Option(help="With --store: base URL of an S3-compatible server; empty is AWS.")
]
DeclaredOption = Annotated[
    int | None, typer.Option(min=1, help="Public size; rounded to a power of two.")
]
WitnessOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Who keeps copies of the ledger, beside the coordinator's store: a folder on "
        "another disk, or s3://bucket/prefix. May be given several times."
    ),
]
UnitOption = Annotated[
    str, typer.Option(help="Column that names whom to protect; row protects single rows.")
]
BoundOption = Annotated[
    int,
    typer.Option(
        "--max-rows-per-unit", min=1, help="Rows of one unit that may take part; 1 for row."
    ),
]
DatasetOption = Annotated[str, typer.Option(help="Opaque id of these rows; empty draws one.")]
NewRowsOption = Annotated[
    bool,
    typer.Option("--new-rows", help="No ledger was ever kept for these rows, by anybody."),
]
