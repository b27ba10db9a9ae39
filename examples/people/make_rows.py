"""Write the rows of this example: public work orders with invented mechanics.

Run it as `python examples/people/make_rows.py FOLDER`. The orders come with the package
nist-nestor; who wrote them is not known, so the column ``mechanic`` is made up: one busy mechanic
per site with fifty orders, the others with a few each.
"""

import sys
from pathlib import Path

import pandas as pd

from fl_core.data.rows import words_hash
from flows.demo_data import demo_rows, write_demo

ASSETS = {"north": "site-b", "south": "site-d"}
BUSY_ORDERS = 50
OTHERS = {"north": 80, "south": 160}


def people_rows(name: str) -> pd.DataFrame:
    """Return one site's orders as text, label, date and mechanic."""
    rows = demo_rows()
    # A fifth of the words is the public holdout and lies at no site.
    at_site = rows[(rows["site"] == ASSETS[name]) & (rows["share"] != 0)].reset_index(drop=True)
    numbers = [
        0 if order < BUSY_ORDERS else 1 + words_hash(str(order)) % OTHERS[name]
        for order in range(len(at_site))
    ]
    mechanics = [f"{name}-mechanic-{number}" for number in numbers]
    return at_site[["text", "label", "date"]].assign(mechanic=mechanics)


def write_rows(folder: Path) -> None:
    """Write ``north.csv``, ``south.csv`` and ``holdouts/excavators.csv``; the same each time."""
    write_demo(folder / "demo")
    (folder / "holdouts").mkdir(parents=True, exist_ok=True)
    (folder / "demo" / "holdouts" / "excavators.csv").replace(
        folder / "holdouts" / "excavators.csv"
    )
    for name in ASSETS:
        people_rows(name).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]))
