"""The command `fedloom`: every command explains itself, shows an example, and speaks JSON."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from sources import ROOT
from typer.testing import CliRunner

from flows.cli.demo import next_commands
from flows.cli.main import app

# Services run until they are stopped; they have no result to print.
SERVICES = {("site", "start"), ("evaluation", "start"), ("gateway", "start")}

DESIGN = {
    *((w,) for w in ("demo", "up", "down", "init", "check", "run", "status", "simulate")),
    *((w,) for w in ("enrol", "ledger", "doctor", "audit", "backup", "restore")),
    *(("site", w) for w in ("init", "start", "approve", "readout", "witness")),
    ("ledger", "recover"),
    *(("gateway", w) for w in ("start", "show")),
}


def commands():
    """Return every command by its words."""
    root = typer.main.get_command(app)
    return dict(_walk(root, ()))


def _walk(command, words):
    for name, inner in getattr(command, "commands", {}).items():
        if getattr(inner, "invoke_without_command", False):
            yield (*words, name), inner
        if hasattr(inner, "commands"):
            yield from _walk(inner, (*words, name))
        else:
            yield (*words, name), inner


def shown_commands() -> set[str]:
    """Return the commands of documents and of the demo's last words, without their remarks."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    text = text.replace("\\\n", " ") + next_commands(DEMO_RAN, Path("else where"))
    found = re.findall(r"^ *(?:>|)(fedloom [^#\n`]*)", text, re.MULTILINE)
    # What a shell would put there are further options of the same command.
    return {re.sub(r"\$\(.*\)|&& .*|\$s", "", line).strip() for line in found}


DEMO_RAN = {
    "campaign_id": "excavators",
    "sites": {"site-a": {}, "site-b": {}},
    "model": {"name": "excavators", "version": "6"},
}
COMMANDS = commands()
NAMED = {"ids": " ".join}


def help_of(words) -> str:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    return result.output


def test_commands_of_the_design_exist():
    assert set(COMMANDS) >= DESIGN


@pytest.mark.parametrize("words", COMMANDS, **NAMED)
def test_help_of_a_command_shows_an_example(words):
    shown = help_of(words)

    assert f"Example: fedloom {' '.join(words)}" in shown.replace("`", "")


@pytest.mark.parametrize("words", sorted(set(COMMANDS) - SERVICES), **NAMED)
def test_command_has_a_json_form(words):
    options = {option for p in COMMANDS[words].params for option in p.opts}

    assert "--json" in options


@pytest.mark.parametrize("words", COMMANDS, **NAMED)
def test_every_option_and_argument_is_explained(words):
    silent = [p.name for p in COMMANDS[words].params if not getattr(p, "help", None)]

    assert [name for name in silent if name != "help"] == []


@pytest.mark.parametrize("shown", sorted(shown_commands()))
def test_command_that_is_shown_has_the_words_and_options_that_it_uses(shown):
    words = shlex.split(shown)[1:]

    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*words, "--help"])

    assert result.exit_code == 0, result.output


def test_every_command_over_a_local_stack_finds_its_home_alike():
    homes = [
        (p.envvar, str(p.default))
        for words, command in COMMANDS.items()
        for p in command.params
        if p.name == "home" and words[0] != "site"
    ]

    assert len(homes) > len(DESIGN) / 2
    assert set(homes) == {("FEDLOOM_HOME", ".fedloom")}


def test_every_command_at_a_site_finds_its_folder_alike():
    homes = {
        words: (p.envvar, str(p.default))
        for words, command in COMMANDS.items()
        for p in command.params
        if words[0] == "site" and p.name in {"home", "folder", "site_home"}
    }
    doctors = {p.name: p.envvar for p in COMMANDS["doctor",].params}

    assert set(homes) == {words for words in COMMANDS if words[0] == "site"}
    assert set(homes.values()) == {("FEDLOOM_SITE_HOME", "site")}
    assert doctors["site_home"] == "FEDLOOM_SITE_HOME"


def test_help_works_in_a_process_of_its_own():
    found = subprocess.run(
        [f"{sys.prefix}/bin/fedloom", "--help"], capture_output=True, text=True, check=True
    )

    assert all(words[0] in found.stdout for words in COMMANDS)


@pytest.fixture
def template(tmp_path):
    file = tmp_path / "first.toml"
    fedloom("init", str(file), "--id", "first")
    return file


def fedloom(*words):
    command = [f"{sys.prefix}/bin/fedloom", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT / "tests")


def test_json_is_the_only_thing_on_stdout(template):
    found = fedloom("check", str(template), "--json")

    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["id"] == "first"


def test_bad_input_is_one_error_with_exit_code_2(template):
    template.write_text(template.read_text().replace("epsilon = 8.0", "epsilon = 0"))

    found = fedloom("check", str(template))

    assert found.returncode == 2
    assert "epsilon" in found.stderr
    assert "Traceback" not in found.stderr
