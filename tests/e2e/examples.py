"""A federation over an example of the project: its own rows, its own sites, real servers."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import local_stack
from flows.local_sites import LocalSite, make_local_site, site_home
from flows.local_workers import start_workers
from flows.processes import ended_with_this_process
from tests.e2e.federation import Federation

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def example_federation(
    example: str, sites: tuple[str, ...], *, policy: str, declared_examples: int | None = None
) -> Iterator[Federation]:
    """Start a stack with the example's sites, enrolled, with their workers; stop it at the end.

    Args:
        example: Folder below ``examples`` with a ``make_rows.py``.
        sites: Those of its sites that take part; each has ``<site>.csv``.
        policy: Text of every site's policy, the dataset still open.
        declared_examples: Public size of every site.
    """
    with tempfile.TemporaryDirectory(prefix=f"fedloom-{example}-") as name:
        home, folder = Path(name) / "home", Path(name) / "work"
        folder.mkdir()
        _write_rows(EXAMPLES / example, folder)
        with ended_with_this_process():
            stack = local_stack.start(home)
            federation = Federation(stack, folder, sites)
            (home / "holdouts").mkdir(exist_ok=True)
            for holdout in (folder / "holdouts").iterdir():
                shutil.copy(holdout, home / "holdouts" / holdout.name)
            for site in sites:
                own = site_home(home, site).root
                own.mkdir(parents=True)
                shutil.copy(folder / f"{site}.csv", own / "rows.csv")
                made = LocalSite(site, Path("rows.csv"), policy, declared_examples)
                make_local_site(stack, made)
            _enrol(federation)
            start_workers(stack)
            yield federation
            local_stack.stop(home)


def _write_rows(example: Path, folder: Path) -> None:
    sys.path.insert(0, str(example))
    try:
        import make_rows

        make_rows.write_rows(folder)
    finally:
        sys.path.pop(0)
        # Every example has a module of this name.
        sys.modules.pop("make_rows", None)


def _enrol(federation: Federation) -> None:
    for site in federation.sites:
        file = federation.site_home(site) / "enrol.json"
        federation.fedloom("enrol", str(file), "--home", str(federation.home), "--yes")
