"""RoLoRA under a clip norm that moves, over real servers: what goes from round to round at a site.

The rounds of one campaign differ in what they train, and each begins at the clip norm that the
site's last one left in its outbox.
"""

import json

import pytest

from fl_core.artifacts import keys
from fl_core.updates.payload import PayloadLimits, decode_tensors
from tests.e2e.federation import SITES
from tests.e2e.traces import database_texts, objects_of, outside_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CAMPAIGN = "moving"


@pytest.fixture(scope="module")
def status(federation):
    file = federation.write_campaign(CAMPAIGN, max_rounds=3)
    text = file.read_text()
    changed = text.replace('targets = ["query", "value"]', 'targets = ["query"], rule = "rolora"')
    assert changed != text
    # The bound's section is the file's last, so its table goes below it.
    file.write_text(changed + "\n[privacy.record.adaptive_clip]\ncount_stddev = 3.0\n")
    federation.approve(file)
    return federation.run(str(file))


def states_of(federation, site: str) -> list[dict]:
    """What every exchange of the campaign left in the outbox of a site, oldest first."""
    outbox = federation.site_home(site) / "outbox"
    found = []
    for end in outbox.rglob("end.json"):
        files = json.loads(end.read_text())["end"]["files"]
        if keys.STATE in files:
            found.append(json.loads((end.parent / "files" / files[keys.STATE]).read_text()))
    return sorted(found, key=lambda state: state["round"])


def test_all_rounds_are_released(status):
    assert [r["outcome"]["status"] for r in status["rounds"]] == ["released"] * 3
    for item in status["rounds"]:
        assert item["outcome"]["contributors"] == list(SITES)


def test_odd_rounds_send_b_and_even_ones_a(federation, status):
    store = federation.store()
    sent = []
    for number in (1, 2, 3):
        data = store.get(keys.payload(CAMPAIGN, number, SITES[0]))
        names = decode_tensors(data, limits=PayloadLimits(max_bytes=1 << 24))
        sent.append({name[-1] for name in names if ".lora_" in name})

    assert sent == [{"B"}, {"A"}, {"B"}]


@pytest.mark.parametrize("site", SITES)
def test_every_round_leaves_its_clip_norm_in_the_sites_outbox_alone(federation, status, site):
    states = states_of(federation, site)

    assert [state["round"] for state in states] == [1, 2, 3]
    norms = [state["clip_norm"] for state in states]
    assert len({0.3, *norms}) == 4, "every round moves it"
    marks = [str(norm).encode() for norm in norms]
    outside = [
        *objects_of(federation.stack),
        *database_texts(federation.stack),
        *outside_files(federation.home),
    ]
    assert not [where for where, data in outside if any(mark in data for mark in marks)]
    assert not [where for where, _ in outside if where.endswith(keys.STATE)]


def test_statement_states_the_bound_that_moves_and_holds(federation, status):
    document = federation.json(
        *("statement", "--campaign", CAMPAIGN, "--round", "3", "--verify"),
        *("--home", str(federation.home)),
    )

    clip = document["statement"]["record"]["noise"]["clip"]
    assert (clip["kind"], clip["norm"], clip["count_stddev"]) == ("adaptive", 0.3, 3.0)
    assert document["verification"]["checks"]
    assert not any(check["complaint"] for check in document["verification"]["checks"])
