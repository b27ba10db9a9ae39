"""Whether a site has what the campaigns need that it approved: rows, base model, memory.

A report may be shown to others, so it says nothing of how many rows there are.
"""

from collections.abc import Iterator
from pathlib import Path

from fl_core.campaign.campaign import Campaign
from fl_core.data.rows import require_rows
from fl_core.errors import FedloomError, ModelMismatch
from tasks.checks import INSTALL, Check, called
from tasks.rows_fit import approved_campaigns, require_rows_fit
from tasks.site_config import SiteConfig, SiteHome
from tasks.site_machine import available_memory, memory_check
from tasks.site_rows import read_rows


def campaign_checks(home: SiteHome, config: SiteConfig, *, is_open: bool) -> Iterator[Check]:
    """Check what approved campaigns need, and the base models that the config names.

    Args:
        home: The site's folder.
        config: Its config.
        is_open: The campaigns' store is reached.
    """
    campaigns = approved_campaigns(home, config) if is_open else []
    yield called("rows", lambda: _rows(home, config), remedy="look at `data` in site.toml")
    for campaign in campaigns:
        yield _fitting(home, config, campaign)
    frozen = {each.base_model.name: each.base_model.sha256 for each in campaigns}
    for name in sorted({*frozen, *config.base_models}):
        yield from _base_model(name, config, sha256=frozen.get(name))


def _rows(home: SiteHome, config: SiteConfig) -> str:
    require_rows(read_rows(home.root / config.data))
    return f"{config.data} is read"


def _fitting(home: SiteHome, config: SiteConfig, campaign: Campaign) -> Check:
    def fit() -> str:
        require_rows_fit(home, config, campaign=campaign)
        return "has every column that gate and training read"

    return called(f"rows for {campaign.id}", fit, remedy="look into the file and the suite")


def _base_model(name: str, config: SiteConfig, *, sha256: str | None) -> Iterator[Check]:
    """Check that a base model is there, the frozen one, and small enough for this machine."""
    line = f"base model {name}"
    try:
        path = _resolved(name, config, sha256=sha256)
    except FedloomError as error:
        yield Check(line, "fail", str(error), error.hint or "install it, or name its folder")
        return
    except ImportError as error:
        yield Check(line, "fail", str(error), INSTALL)
        return
    found = "is there" if sha256 is None else f"{sha256[:16]}, as frozen"
    yield Check(line, "ok", f"{found}, at {path}")
    available = available_memory()
    if config.memory_gb is not None:
        available = min(available, int(config.memory_gb * (1 << 30)))
    yield memory_check(name, path, available=available)


def _resolved(name: str, config: SiteConfig, *, sha256: str | None) -> Path:
    # Not at the top: torch and transformers take seconds.
    from fl_core.models.loading import base_sha256, resolve_base

    path = resolve_base(name, folders=config.base_models)
    if sha256 is not None and (found := base_sha256(path)) != sha256:
        raise ModelMismatch(
            f"{path} has hash {found[:16]}, the campaign froze {sha256[:16]}",
            hint="install the version that the campaign was locked with",
        )
    return path
