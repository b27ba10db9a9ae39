"""Documents point at what exists: files, links, commands, decisions (STYLE, 11 and 13)."""

import re

import pytest
import typer.main
from sources import ROOT

from flows.cli.main import app

LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
FILE = re.compile(r"`((?:fl_core|tasks|flows|tests|docs|examples|deployments)/[\w./-]+\.\w+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
COMMAND = re.compile(r"`?(?:^|(?<=`))fedloom ((?:[a-z]+ ?)+)", re.MULTILINE)
TARGET = re.compile(r"(?:^|(?<=`))make ([a-z-]+)", re.MULTILINE)

# A name that stands for the reader's own file.
PLACEHOLDERS = {"x.py", "x.json", "NAME.json"}


def documents():
    folders = ("docs", "examples", "deployments", "docker", "benchmarks", "tests")
    found = [*ROOT.glob("*.md"), *(p for name in folders for p in (ROOT / name).rglob("*.md"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


DOCUMENTS = pytest.mark.parametrize("name", documents())


def missing_links(text, folder):
    return [link for link in LINK.findall(text) if not (folder / link).exists()]


def missing_files(text):
    found = (name for name in FILE.findall(text) if name.rpartition("/")[2] not in PLACEHOLDERS)
    return [name for name in found if not (ROOT / name).exists()]


def missing_tests(text):
    return [
        name
        for file, name in TEST.findall(text)
        if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]


def unknown_commands(text):
    known = typer.main.get_command(app).commands
    return [words for words in COMMAND.findall(text) if words.split()[0] not in known]


def unknown_targets(text):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    return [target for target in TARGET.findall(text) if target not in known]


@DOCUMENTS
def test_document_points_at_what_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    # What a changelog says of an old version stays as it was.
    history = name == "CHANGELOG.md"

    assert missing_links(text, (ROOT / name).parent) == []
    assert history or missing_files(text) == []
    assert history or missing_tests(text) == []
    assert history or unknown_commands(text) == []
    assert history or unknown_targets(text) == []


def test_what_does_not_exist_is_found():
    text = "[a](b.md) `fl_core/nothing.py` `fedloom dance` and\nmake tea\n`fl_core/x.py`"
    promise = "`tests/unit/test_roster.py::test_nothing`"

    assert missing_links(text, ROOT) == ["b.md"]
    assert missing_files(text) == ["fl_core/nothing.py"]
    assert missing_tests(promise) == ["test_nothing"]
    assert unknown_commands(text) == ["dance"]
    assert unknown_targets(text) == ["tea"]


def test_decisions_are_numbered_dated_and_listed():
    folder = ROOT / "docs" / "adr"
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    index = (folder / "README.md").read_text(encoding="utf-8")

    assert [page[:4] for page in pages] == [f"{n:04d}" for n in range(1, len(pages) + 1)]
    for page in pages:
        lines = (folder / page).read_text(encoding="utf-8").splitlines()
        title = lines[0].removeprefix(f"# {page[:4]} ")
        assert f"[{page[:4]}]({page}) | {title} |" in index
        assert re.match(r"20\d\d-\d\d-\d\d, (accepted|replaced by \d{4})", lines[2])


def test_licence_is_the_one_that_the_package_states():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")

    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_changelog_says_first_what_happened_to_privacy():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.split(r"^## ", text, flags=re.MULTILINE)[1:]

    assert versions
    for version in versions:
        assert re.findall(r"^### (.+)$", version, re.MULTILINE)[0] == "Privacy"


def test_nobody_is_told_to_install_fedloom_by_its_name_from_an_index():
    told = re.compile(r"pip install [^`\n]*['\" ]fedloom\b(?!-)")
    sources = [
        path for name in ("fl_core", "tasks", "flows") for path in (ROOT / name).rglob("*.py")
    ]

    found = [
        path
        for path in (*sources, *map(ROOT.joinpath, documents()))
        if told.search(path.read_text())
    ]

    assert told.search("run `pip install 'fedloom[site]'`")
    assert found == []
