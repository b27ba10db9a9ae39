"""The next round is accounted for before its plan is there, and nothing is charged by that."""

import pytest
from worlds import NOW, campaign_of, world_of

from fl_core.artifacts.documents import document_sha256
from fl_core.privacy import accountants
from fl_core.rounds.plan import open_round
from fl_core.rounds.site_charge import reserve_round, work_out_next


@pytest.fixture
def compositions(monkeypatch):
    """The compositions of privacy losses that are made from now on."""
    made = []
    compose = accountants.pld_of

    def counted(steps, *, grid):
        made.append((steps, grid))
        return compose(steps, grid=grid)

    monkeypatch.setattr("fl_core.privacy.accounting.pld_of", counted)
    return made


def private(noise_multiplier):
    record = campaign_of().privacy.record.model_copy(update={"noise_multiplier": noise_multiplier})
    return {"record": record.model_dump()}


@pytest.mark.parametrize("is_ahead", [True, False], ids=["ahead", "with the plan"])
def test_reserve_composes_nothing_that_was_worked_out_ahead(compositions, is_ahead):
    # A multiplier of its own, since answers are kept for the whole process.
    world = world_of(campaign_of(privacy=private(1.2371 if is_ahead else 1.2373)))
    site, plan = world.sites["a"], open_round(world.assembly, world.store, round_number=1, now=NOW)
    if is_ahead:
        work_out_next(site, world.assembly)
        assert site.ledger.events() == []
        compositions.clear()

    reserve_round(site, world.assembly, plan, plan_sha256=document_sha256(plan))

    assert bool(compositions) is not is_ahead
    assert len(site.ledger.events()) == 1
