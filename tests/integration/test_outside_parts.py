"""A part from outside: the example of docs/adding-parts, found by its entry point and used."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "adding_an_aggregator"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder that holds the example as an installer lays it down."""
    folder = tmp_path_factory.mktemp("site-packages")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / f"fedloom_capped_mean-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"]
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in groups[g].items()) for g in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    shutil.copy(EXAMPLE / "capped_mean.py", folder)
    return folder


def run(installed, *command):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


def test_installed_part_passes_the_contract_of_its_kind(installed):
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]

    found = run(installed, *command, "-k", "capped_mean", "tests/contract/test_aggregators.py")

    assert found.returncode == 0, found.stdout
    assert found.stdout.count("capped_mean") >= 11


PROGRAM = """
import sys
import numpy as np
from fl_core import AGGREGATORS
from fl_core.aggregation.aggregator import Member, member_order
from fl_core.campaign.components import ComponentSpec

part = AGGREGATORS.build(ComponentSpec(kind="capped_mean", params={"at_most": 2.0}))
values = {"a": 1.0, "b": 1.0, "c": 9.0}
members = [
    Member(site=s, tensors={"x": np.full(1, v, dtype=np.float32)}, norm_bound=9.0)
    for s, v in values.items()
]
whole = part.aggregate(member_order(members), {"a": 1.0, "b": 1.0, "c": 10.0}, None)
print(float(whole.tensors["x"][0]), whole.l2_sensitivity)
"""


def test_large_site_counts_as_two_median_sites(installed):
    # By hand: weights 1, 1, 10 become 1, 1, 2; (1 + 1 + 2 * 9) / 4 = 5; sensitivity 2 * 9 / 4.
    found = run(installed, sys.executable, "-c", PROGRAM)

    assert found.stdout.split() == ["5.0", "4.5"], found.stderr


@pytest.mark.parametrize(
    ("written", "exit_code", "said"),
    [
        ('"capped_mean"', 0, ""),
        ('{ kind = "capped_mean", at_most = 3.0 }', 0, ""),
        ('{ kind = "capped_mean", atmost = 3.0 }', 2, "atmost"),
    ],
    ids=["by name", "with a parameter", "misspelt"],
)
def test_campaign_names_an_installed_part(installed, tmp_path, written, exit_code, said):
    file = tmp_path / "campaign.toml"
    fedloom = f"{sys.prefix}/bin/fedloom"
    run(installed, fedloom, "init", str(file))
    file.write_text(f"aggregation = {written}\n{file.read_text()}")

    found = run(installed, fedloom, "check", str(file))

    assert found.returncode == exit_code, found.stderr
    assert said in found.stderr


def test_part_that_is_not_installed_is_an_error_with_the_known_names(tmp_path):
    file = tmp_path / "campaign.toml"
    fedloom = f"{sys.prefix}/bin/fedloom"
    run(tmp_path, fedloom, "init", str(file))
    file.write_text(f'aggregation = "capped_mean"\n{file.read_text()}')

    found = run(tmp_path, fedloom, "check", str(file))

    assert found.returncode == 2
    assert "use one of mean" in found.stderr
