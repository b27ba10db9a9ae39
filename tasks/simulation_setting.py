"""What a simulation runs on: real rows, the real gate, and a model, from files.

Rows come from files that are named on the command line, never from a site's folder: a folder with
a ledger is refused, because a simulation spends nothing and promises nothing (SOUNDNESS, rule 7).
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from fl_core.campaign.campaign import Campaign
from fl_core.data.prompts import encode_rows
from fl_core.data.rows import require_rows, take_rows
from fl_core.data.units import KEY_BYTES, encode_units, unit_of
from fl_core.errors import CampaignError, DataGateFailed
from fl_core.models.loading import load_base, resolve_base
from fl_core.simulation import Setting, SimulatedSite
from tasks.enrolment import rounded_size
from tasks.locking import Shelves, holdout_path, lock_campaign
from tasks.row_gate import run_gate
from tasks.site_rows import read_rows
from tasks.suite_files import load_locked_suite


def setting_of(
    campaign: Campaign,
    *,
    data: Mapping[str, Path],
    shelves: Shelves,
    seed: int | None,
) -> Setting:
    """Lock a campaign and read everything its simulation needs.

    Args:
        campaign: As people wrote it, or locked.
        data: File of rows by site; exactly the campaign's sites.
        shelves: Where holdouts, base models and suites are.
        seed: None for noise as a real site draws it.

    Raises:
        CampaignError: Sites without rows, a site's own folder, unreadable rows.
        DataGateFailed: A set rule of the gate breaks for a site; rule names only.
    """
    if set(data) != set(campaign.sites):
        odd = ", ".join(sorted(set(data) ^ set(campaign.sites)))
        raise CampaignError(
            f"rows are given for {', '.join(sorted(data)) or 'no site'}, the campaign's sites are "
            f"{', '.join(campaign.sites)}; they differ in {odd}",
            hint="give `--data NAME=FILE` once per site of the campaign",
        )
    for path in data.values():
        require_no_ledger(path)
    locked = lock_campaign(campaign, shelves)
    folder = resolve_base(locked.base_model.name, folders=shelves.base_models)
    base = load_base(folder, locked.task, sha256=locked.base_model.sha256)
    suite = load_locked_suite(locked.gate, folder=shelves.suites)
    sites: dict[str, SimulatedSite] = {}
    for name, path in data.items():
        rows = read_rows(path)
        require_rows(rows)
        verdict = run_gate(rows, suite, task=locked.task, unit=unit_of(locked))
        if not verdict.report.passed:
            raise DataGateFailed(
                verdict.report.failed,
                f"rows of site {name!r} ({path}) break {', '.join(verdict.report.failed)} "
                f"of gate {suite.name!r}",
            )
        kept = take_rows(rows, verdict.kept)
        encoded = encode_units(kept, locked, base.tokenizer, key=_unit_key(seed, name))
        sites[name] = SimulatedSite(
            rows=encoded,
            gate=verdict.report,
            # Units, because a step draws units: that is the size that signal grows with.
            declared_examples=rounded_size(encoded.n_units) if len(encoded) else None,
        )
    holdout = read_rows(holdout_path(locked.evaluation.holdout.name, shelves))
    return Setting(
        campaign=locked,
        base=base,
        sites=sites,
        holdout=encode_rows(holdout, locked.task, base.tokenizer),
        seed=seed,
    )


def _unit_key(seed: int | None, site: str) -> bytes:
    # No secret is needed for rows that nobody protects, but a repeated run needs the same draw.
    if seed is None:
        return os.urandom(KEY_BYTES)
    return hashlib.sha256(f"simulated unit key {seed} {site}".encode()).digest()


def require_no_ledger(path: Path) -> None:
    """Refuse rows that lie in a site's own folder, also behind a link.

    Raises:
        CampaignError: They do.
    """
    # A link to a site's rows is as good as the rows.
    named = (path.absolute(), path.resolve())
    for folder in (above for file in named for above in file.parents[:2]):
        if (folder / "policy.toml").exists() or (folder / "ledger").exists():
            raise CampaignError(
                f"{path} lies in a site's folder with a ledger ({folder}), uncharged here",
                hint="use public or synthetic rows, copied elsewhere",
            )
