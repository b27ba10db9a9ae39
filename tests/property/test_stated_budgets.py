"""What a site states of any ledger can be worked out again, and no other figure passes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import PrivacyError
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.privacy.stated_budget import (
    Budget,
    added_up_events,
    budget_statement,
    require_follows,
)
from fl_core.updates.records import (
    BudgetStatement,
    ComposedEvent,
    GaussianEvent,
    PoissonEvent,
    SelfComposedEvent,
    Series,
)
from fl_core.updates.signing import generate_key
from tests.worlds import NOW

KEY = generate_key()
NOISES = st.sampled_from([0.8, 1.0, 2.5])
GAUSSIAN = st.builds(GaussianEvent, noise_multiplier=NOISES)
POISSON = st.builds(PoissonEvent, sampling_rate=st.sampled_from([0.05, 0.1]), event=GAUSSIAN)
REPEATED = st.builds(
    SelfComposedEvent, event=st.one_of(POISSON, GAUSSIAN), count=st.integers(1, 40)
)
COMPOSED = st.builds(ComposedEvent, events=st.lists(REPEATED, max_size=2).map(tuple))
EVENTS = st.lists(st.one_of(POISSON, GAUSSIAN, REPEATED, COMPOSED), min_size=1, max_size=4)
SERIES = st.none() | st.just(Series(noise_multiplier=0.8, sampling_rate=0.1, max_steps=60))
UNITS = st.sampled_from(["row", "patient_id"])


def policy_of(unit, series):
    return SitePolicy(
        dataset="data",
        unit=unit,
        epsilon=200.0,
        delta=1e-5,
        series=series,
        rdp_order=4.0,
        base_models=("*",),
        suites=("*",),
    )


def state(events, unit, series):
    """A site's signed statement over a ledger of these charges, read back from its bytes."""
    store = MemoryStore()
    Ledger.create(store, dataset="data", unit=unit, key=KEY, now=NOW)
    ledger = Ledger(store, dataset="data", unit=unit, key=KEY, clock=lambda: NOW)
    for number, event in enumerate(events, start=1):
        ledger.reserve(
            campaign_digest="a" * 64,
            round_number=number,
            plan_sha256="b" * 64,
            event=event,
            require=lambda _events: None,
        )
    statement = budget_statement(
        KEY,
        site="north",
        campaign_digest="a" * 64,
        round_number=1,
        record=Budget(ledger, policy_of(unit, series), GaussianEvent(noise_multiplier=5.0)),
    )
    return from_bytes(BudgetStatement, to_bytes(statement), what="statement")


@settings(max_examples=25, deadline=None)
@given(events=EVENTS, unit=UNITS, series=SERIES)
def test_what_an_honest_site_states_follows_from_its_events(events, unit, series):
    statement = state(events, unit, series)

    require_follows(statement)

    assert added_up_events(statement.events) == statement.events == added_up_events(events)


@settings(max_examples=15, deadline=None)
@given(events=EVENTS, factor=st.sampled_from([0.5, 0.99, 1.0001, 2.0]))
def test_any_other_figure_does_not_follow(events, factor):
    statement = state(events, "row", None)
    if statement.epsilon == 0:
        return
    lie = statement.model_copy(update={"epsilon": statement.epsilon * factor})

    with pytest.raises(PrivacyError, match="its own events come to"):
        require_follows(lie)
