"""A skip that is not on the committed list fails the run (DESIGN, section 11)."""

import shutil
import subprocess
import sys

import pytest
from sources import ROOT

TESTS = """
import pytest

@pytest.mark.skip(reason="no time")
def test_skipped(): ...

def test_run(): ...
"""


def run_pytest(folder, allowed):
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "allowed_skips.txt").write_text(allowed)
    (folder / "test_planted.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--rootdir", str(folder), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.parametrize("allowed", ["", "# test_planted.py::test_skipped\n"])
def test_skip_that_is_not_listed_fails_the_run_by_name(tmp_path, allowed):
    found = run_pytest(tmp_path, allowed)

    assert found.returncode == 1
    assert "test_planted.py::test_skipped: Skipped: no time" in found.stdout


def test_listed_skip_passes(tmp_path):
    found = run_pytest(tmp_path, "test_planted.py::test_skipped\n")

    assert found.returncode == 0, found.stdout
