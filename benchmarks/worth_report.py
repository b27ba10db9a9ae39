"""The table and the figure of docs/worth.md, and the arithmetic of noise at every site.

The table stands between two markers of the document and is replaced as a whole, so that no figure
in it is typed by hand. The arithmetic: site i holds n_i rows, divides by the public B_i and enters
the mean with weight w_i. A step's signal adds up as sum(w_i n_i / B_i), its noise, drawn by every
site for itself, as sqrt(sum((w_i / B_i)^2)); the ratio of the two counts rows, and one site with
that many rows would do as well (docs/worth.md derives it).
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]
EPSILONS = (None, 8.0, 4.0, 2.0, 1.0)
# Rows of the table: what is shown, role, rule.
SHOWN = (
    ("federation, lora", "federation", "lora"),
    ("federation, ffa_lora", "federation", "ffa_lora"),
    ("federation, rolora", "federation", "rolora"),
    ("federation, head", "federation", "head"),
    ("largest site alone, ffa_lora", "alone", "ffa_lora"),
    ("all rows pooled, ffa_lora", "pooled", "ffa_lora"),
)
BEGIN, END = "<!-- figures: python -m benchmarks.worth --table -->", "<!-- end of figures -->"


def effective_rows(
    rows: Mapping[str, int], *, weights: Mapping[str, float], divisors: Mapping[str, float]
) -> float:
    """Return how many rows one site would need for the signal-to-noise ratio of this mean.

    Args:
        rows: n_i by site.
        weights: w_i by site; only their ratios count.
        divisors: B_i by site.
    """
    shares = {site: weights[site] / divisors[site] for site in rows}
    signal = sum(shares[site] * rows[site] for site in rows)
    return signal / math.sqrt(sum(share**2 for share in shares.values()))


def table(lines: Iterable[Line]) -> str:
    """Return one table per set and figure, median (lowest to highest) of the repeats."""
    cells: dict[tuple[str, str, str, float | None], list[Line]] = {}
    for line in lines:
        if line["split"] == "holdout" and line["accuracy"] is not None:
            key = (line["set"], line["role"], line["rule"], line["epsilon"])
            cells.setdefault(key, []).append(line)
    parts = []
    for name in dict.fromkeys(key[0] for key in cells):
        for figure, title in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
            head = " | ".join("no privacy" if e is None else f"epsilon {e:g}" for e in EPSILONS)
            parts.append(f"**{name}, {title}**\n\n| | {head} |\n|---|{'---|' * len(EPSILONS)}")
            for shown, role, rule in SHOWN:
                row = [_cell(cells.get((name, role, rule, e), []), figure) for e in EPSILONS]
                if any(row):
                    parts.append(f"| {shown} | {' | '.join(row)} |")
            parts.append("")
    return "\n".join(parts)


def write_into(document: Path, lines: Sequence[Line]) -> None:
    """Replace the figures between the document's two markers.

    Raises:
        ValueError: The document lacks a marker.
    """
    text = document.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{document} lacks the markers {BEGIN!r} and {END!r}")
    figures = f"{BEGIN}\n\n{table(lines)}\n{END}"
    document.write_text(pattern.sub(lambda _: figures, text), encoding="utf-8")


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draw accuracy against epsilon, one panel per set, medians with the range of the repeats."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(line["set"] for line in lines))
    figure = Figure(figsize=(5.2 * len(names), 4.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        for shown, role, rule in SHOWN:
            points = _points([x for x in lines if _is(x, name, role, rule)])
            if points:
                places, low, middle, high = zip(*points, strict=True)
                style = {"federation": "-o", "alone": "--s", "pooled": ":^"}[role]
                below = [m - lo for m, lo in zip(middle, low, strict=True)]
                above = [hi - m for m, hi in zip(middle, high, strict=True)]
                panel.errorbar(
                    places, middle, yerr=[below, above], fmt=style, capsize=2, label=shown, lw=1.2
                )
        panel.set_xlim(-0.3, len(EPSILONS) - 0.7)
        panel.set_xticks(range(len(EPSILONS)))
        panel.set_xticklabels(["none" if e is None else f"{e:g}" for e in EPSILONS])
        panel.set_xlabel("epsilon at every site, delta 1e-5")
        panel.set_ylabel("accuracy on the public holdout")
        panel.set_title(name)
        panel.grid(visible=True, alpha=0.3)
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _points(lines: Sequence[Line]) -> list[tuple[int, float, float, float]]:
    points = []
    for place, epsilon in enumerate(EPSILONS):
        found = [line["accuracy"] for line in lines if line["epsilon"] == epsilon]
        if found:
            points.append((place, min(found), statistics.median(found), max(found)))
    return points


def _is(line: Line, name: str, role: str, rule: str) -> bool:
    wanted = (name, role, rule, "holdout")
    found = (line["set"], line["role"], line["rule"], line["split"])
    return found == wanted and line["accuracy"] is not None


def _cell(lines: Sequence[Line], figure: str) -> str:
    found = sorted(line[figure] for line in lines)
    if not found:
        return ""
    if len(found) == 1:
        return f"{found[0]:.3f} (one run)"
    return f"{statistics.median(found):.3f} ({found[0]:.3f}-{found[-1]:.3f})"
