"""Write the rows of this example: public work orders, split over twelve crews.

Run it as `python examples/client_level/make_rows.py FOLDER`. The orders come with the package
nist-nestor; which crew wrote one is not known, so orders are dealt out by a hash of their place.
"""

import sys
from pathlib import Path

import pandas as pd

from fl_core.data.rows import words_hash
from flows.demo_data import demo_rows, write_demo

CREWS = tuple(f"crew-{number:02d}" for number in range(1, 13))


def crew_rows() -> dict[str, pd.DataFrame]:
    """Return every crew's orders as text, label and date."""
    rows = demo_rows()
    # A fifth of the words is the public holdout and lies at no site.
    at_sites = rows[rows["share"] != 0].reset_index(drop=True)
    dealt = [words_hash(str(order)) % len(CREWS) for order in range(len(at_sites))]
    columns = at_sites[["text", "label", "date"]]
    return {
        crew: columns[[dealt_to == number for dealt_to in dealt]]
        for number, crew in enumerate(CREWS)
    }


def write_rows(folder: Path) -> None:
    """Write a file per crew and ``holdouts/excavators.csv``; the same each time."""
    write_demo(folder / "demo")
    (folder / "holdouts").mkdir(parents=True, exist_ok=True)
    (folder / "demo" / "holdouts" / "excavators.csv").replace(
        folder / "holdouts" / "excavators.csv"
    )
    for crew, rows in crew_rows().items():
        rows.to_csv(folder / f"{crew}.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]))
