"""The demo's comparison: each site alone, and all rows pooled, with the campaign's own settings.

Runs on the same public rows in throw-away simulations, outside any ledger. Started as
`python -m flows.baselines FOLDER NAME...`, it writes one JSON line per round, so that the demo can
run two of these beside each other and show how far they are.
"""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.loading import read_campaign
from flows.demo_data import DECLARED

POOLED = "pooled"
# Chosen like the campaign's own, on the public validation rows.
LEARNING_RATE = 5.0
CAMPAIGN_FILE = Path(__file__).with_name("demo_campaign.toml")


def baseline_campaign(campaign: Campaign, name: str) -> Campaign:
    """Return the campaign with one site only: a site of it, or ``pooled`` for all rows in one.

    The guarantee, steps and rates stay. The public divisor becomes what suits the rows at hand,
    the sampling rate of the declared size, and the learning rate that of a run without others.
    """
    size = sum(DECLARED.values()) if name == POOLED else DECLARED[name]
    rate = 1.0 if campaign.privacy.record is None else campaign.privacy.record.sampling_rate
    changed = {"batch_size": rate * size, "learning_rate": LEARNING_RATE}
    training = campaign.training.model_copy(update=changed)
    changes = {"id": f"{campaign.id}-{name}", "sites": (name,), "training": training}
    return Campaign.model_validate(campaign.model_copy(update=changes).model_dump())


def pool_rows(files: Mapping[str, Path], target: Path) -> Path:
    """Write the rows of all sites into one file and return it."""
    with target.open("w", encoding="utf-8", newline="") as out:
        writer = None
        for path in files.values():
            with path.open(encoding="utf-8", newline="") as source:
                reader = csv.DictReader(source)
                if writer is None:
                    writer = csv.DictWriter(out, fieldnames=list(reader.fieldnames or []))
                    writer.writeheader()
                writer.writerows(reader)
    return target


def run_baseline(folder: Path, name: str) -> Iterator[dict[str, object]]:
    """Run one baseline over the demo's rows in ``folder`` and yield a line per round."""
    from fl_core.simulation import simulate
    from tasks.locking import Shelves
    from tasks.simulation_setting import setting_of

    campaign = baseline_campaign(read_campaign(CAMPAIGN_FILE), name)
    files = {site: folder / "sites" / site / "rows.csv" for site in read_sites()}
    rows = pool_rows(files, folder / "pooled.csv") if name == POOLED else files[name]
    setting = setting_of(
        campaign, data={name: rows}, shelves=Shelves(holdouts=folder / "holdouts"), seed=None
    )
    for status in simulate(setting):
        scores = status.evaluation
        yield {
            "name": name,
            "round": status.round,
            "accuracy": None if scores is None else scores.accuracy,
            "macro_f1": None if scores is None else scores.macro_f1,
        }


def read_sites() -> tuple[str, ...]:
    """Return the sites of the demo's campaign."""
    return read_campaign(CAMPAIGN_FILE).sites


def main() -> None:
    """Run the named baselines, one after the other, on one core."""
    import torch

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        for line in run_baseline(folder, name):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
