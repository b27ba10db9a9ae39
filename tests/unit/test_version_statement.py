"""What a version's statement takes from the store beside the sites' own words."""

import copy

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.errors import RoundError
from fl_core.privacy.audit_documents import AuditReport, CanaryAudit, Membership, WhiteBoxCheck
from fl_core.rounds.statement_check import Logged, verify_version
from fl_core.rounds.version_statement import version_statement
from tests.round_steps import finish, take_part
from tests.worlds import NO_PRIVACY, NOW, campaign_of, world_of

REPORT = AuditReport(
    campaign_id="tiny",
    site="a",
    rows="public",
    source="work orders",
    claimed_epsilon=7.93,
    delta=1e-5,
    rounds=6,
    steps=48,
    confidence=0.95,
    gradient=CanaryAudit(
        kind="gradient", canaries=1000, guesses=100, correct=80, lower_bound=0.9, ceiling=8.5
    ),
    membership=Membership(auc=0.52, low=0.47, high=0.57, members=200, others=200),
    checks=(WhiteBoxCheck(check="noise_scale", measured="1.2", expected="1.0", passed=False),),
    code_version="0.1.0",
    made=NOW,
)


def run_world(campaign, rounds=1):
    world = world_of(campaign)
    for number in range(1, rounds + 1):
        for site in world.sites:
            take_part(world, site, number)
        finish(world, number)
    return world


@pytest.fixture(scope="module")
def finished():
    return run_world(campaign_of(), rounds=2)


@pytest.fixture
def world(finished):
    own = copy.copy(finished)
    own.store = copy.copy(finished.store)
    own.store._objects = dict(finished.store._objects)
    return own


def write_audit(world, number, report):
    world.store.put_once(keys.audit("tiny", number), to_bytes(report))


def test_release_and_its_charges_are_named(world):
    statement = version_statement(world.assembly, world.store, 2)

    assert statement.contributors == ("a", "b", "c")
    assert len(statement.adapter_sha256) == 64
    for site in statement.sites:
        assert site.charge.event == world.assembly.noise.event
        # genesis, reserve and commit of round 1, reserve of round 2.
        assert site.charge.ledger_seq == site.record.ledger_seq == 4
        assert site.client_charge is None


def test_audit_is_shown_with_its_ceiling_and_what_failed(world):
    write_audit(world, 1, REPORT)

    (finding,) = version_statement(world.assembly, world.store, 2).audits

    assert (finding.number, finding.rows, finding.verdict) == (1, "public", "not refuted")
    assert (finding.lower_bound, finding.ceiling, finding.membership_auc) == (0.9, 8.5, 0.52)
    assert finding.failed_checks == ("noise_scale",)


def test_audit_on_private_rows_is_never_shown(world):
    write_audit(world, 1, REPORT.model_copy(update={"rows": "private"}))

    assert version_statement(world.assembly, world.store, 2).audits == ()


def test_report_that_is_none_is_passed_over(world):
    world.store.put_once(keys.audit("tiny", 1), b"{}")
    world.store.put_once(keys.audits("tiny") + "notes.txt", b"{}")

    assert version_statement(world.assembly, world.store, 2).audits == ()


def test_audit_that_comes_later_is_no_fault_of_an_earlier_statement(world):
    earlier = to_bytes(version_statement(world.assembly, world.store, 2))
    write_audit(world, 1, REPORT)

    verified = verify_version(world.assembly, world.store, 2, logged=Logged(statement=earlier))

    assert verified.broken is None


def test_audit_that_was_changed_after_the_statement_is_found(world):
    write_audit(world, 1, REPORT)
    earlier = to_bytes(version_statement(world.assembly, world.store, 2))
    key = keys.audit("tiny", 1)
    better = from_bytes(AuditReport, world.store.get(key), what=key)
    better = better.model_copy(update={"checks": ()})
    world.store._objects[key] = to_bytes(better)

    broken = verify_version(world.assembly, world.store, 2, logged=Logged(statement=earlier)).broken

    assert "audits[0].failed_checks" in broken.complaint


def test_round_that_released_nothing_has_no_statement(world):
    with pytest.raises(RoundError, match="released no version"):
        version_statement(world.assembly, world.store, 3)


def test_version_without_guarantee_is_stated_and_verified_as_such():
    world = run_world(campaign_of(privacy=NO_PRIVACY))
    statement = version_statement(world.assembly, world.store, 1)

    verified = verify_version(
        world.assembly, world.store, 1, logged=Logged(statement=to_bytes(statement))
    )

    assert statement.guarantee == "none"
    assert statement.sites == ()
    assert verified.broken is None
