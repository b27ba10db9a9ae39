"""Code in every field that a coordinator fills: refused on one line, or shown as text."""

import io
import json

import pytest
from rich.console import Console
from site_folders import SITE, site_folder
from worlds import campaign_of

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import FedloomError, ObjectCorrupt
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.plan import read_assembly
from flows.cli.views import schedule_table

NASTY = {
    "an escape of the terminal": "\x1b]0;owned\x07\x1b[2J",
    "a second line of a log": "row\r\nround answered round=1 uploaded",
    "text that runs backwards": "\u202egpj.exe",
    "a format": "{0.__class__.__mro__} %(name)s %n",
    "a path": "../../../../etc/passwd",
    "a reference": '{"$ref":"file:///etc/passwd"}',
    "markup of a page": "<script>alert(1)</script>",
    "markup of a terminal": "[link=file:///etc/passwd]x[/link][bold]",
    "a command": "$(touch owned); `touch owned`",
    "a look-up": "${jndi:ldap://127.0.0.1/x}",
    "a lone surrogate": "\ud800",
    "a page": "x" * 100_000,
}


def strings_of(value, path=()):
    """Yield the path of every string of a plain document, keys of tables included."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, ("name", name))
            yield from strings_of(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from strings_of(inner, (*path, number))


def planted(value, path, text):
    """Return a plain document with another string at a path."""
    if not path:
        return text
    head, *rest = path
    if isinstance(head, tuple):
        return {text if name == head[1] else name: inner for name, inner in value.items()}
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[head] = planted(changed[head], rest, text)
    return changed


def is_harmless(text):
    """Whether a terminal shows a text as it is, line by line."""
    return all(line.isprintable() for line in text.split("\n"))


def plain_campaign(privacy):
    changes = (
        {}
        if privacy == "record"
        else {"privacy": {"none": {"reason": "made-up rows, all of them"}}}
    )
    return json.loads(to_bytes(campaign_of(sites=(SITE,), **changes)))


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("privacy", ["record", "none"])
def test_code_in_every_field_of_a_campaign_is_refused_or_shown_as_text(
    tmp_path, monkeypatch, privacy, text
):
    monkeypatch.chdir(tmp_path)
    plain, said, shown = plain_campaign(privacy), [], 0
    for path in strings_of(plain):
        data = json.dumps(planted(plain, path, text)).encode()
        store = MemoryStore()
        store.put_once(keys.campaign("tiny"), data)
        try:
            asked = read_assembly(store, "tiny").campaign
        except FedloomError as error:
            said.append(str(error))
            continue
        console = Console(file=io.StringIO(), width=200)
        console.print(schedule_table(asked, (1.0,) * asked.max_rounds))
        console.print(f"base model {asked.base_model.name}, gate {asked.gate.name}", markup=False)
        assert is_harmless(console.file.getvalue())
        shown += 1

    assert all(text.isprintable() and len(text) < 2000 for text in said)
    assert len(said) > shown
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_code_in_every_field_of_a_plan_is_refused_on_one_line(tmp_path, text):
    plain = json.loads(to_bytes(site_folder(tmp_path).plan()))
    for path in strings_of(plain):
        with pytest.raises(ObjectCorrupt) as caught:
            from_bytes(RoundPlan, json.dumps(planted(plain, path, text)).encode(), what="plan.json")

        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000
