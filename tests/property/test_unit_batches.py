"""Whatever units the rows belong to: batches hold each drawn unit once, whole, in one shape."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.data.prompts import EncodedRows
from fl_core.training.batches import alone, columns_of, micro_batches, micro_shape

UNITS = st.lists(st.integers(-3, 6), max_size=24)


def rows_of(units: list[int]) -> EncodedRows:
    """Rows whose first token is their own number, from 1; 0 is the dummy's."""
    n = len(units)
    ids = np.repeat(np.arange(1, n + 1)[:, None], 2, axis=1)
    return EncodedRows(
        ids, np.ones_like(ids), np.zeros(n, dtype=np.int64), units=np.array(units, dtype=np.int64)
    )


@given(units=UNITS, limit=st.integers(1, 6), micro_batch=st.integers(1, 9), data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_drawn_unit_is_there_once_with_its_first_rows_and_weight_one(
    units, limit, micro_batch, data
):
    columns = columns_of(rows_of(units), max_rows_per_unit=limit)
    names = sorted(set(units))
    assert columns.n_units == len(names)
    drawn = np.flatnonzero([data.draw(st.booleans()) for _ in names])
    shape = micro_shape(micro_batch=micro_batch, rows_per_unit=limit)

    found: list[list[int]] = []
    for micro in micro_batches(columns, drawn, micro_batch):
        assert micro.shape == shape
        ids = micro.inputs["input_ids"][:, 0].reshape(shape.n_units, shape.rows_per_unit)
        weights = micro.weights.reshape(shape.n_units, shape.rows_per_unit)
        for is_unit, own, weight in zip(micro.is_unit, ids, weights, strict=True):
            # A dummy weighs nothing; a unit's rows weigh one together, alike.
            assert ((own == 0) == (weight == 0)).all()
            rows = own[own > 0].tolist()
            assert bool(is_unit) == bool(rows)
            if rows:
                assert np.allclose(weight[own > 0], 1 / len(rows))
                found.append(rows)

    expected = [
        [i + 1 for i, unit in enumerate(units) if unit == names[number]][:limit] for number in drawn
    ]
    assert found == expected


@given(units=UNITS.filter(bool), limit=st.integers(1, 6), micro_batch=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_unit_computed_alone_keeps_its_places_and_nobody_elses_rows(units, limit, micro_batch):
    columns = columns_of(rows_of(units), max_rows_per_unit=limit)

    for micro in micro_batches(columns, np.arange(columns.n_units), micro_batch):
        for number in micro.is_unit.nonzero().flatten().tolist():
            one = alone(micro, number, columns.dummy)

            places = slice(
                number * micro.shape.rows_per_unit, (number + 1) * micro.shape.rows_per_unit
            )
            ids, before = one.inputs["input_ids"], micro.inputs["input_ids"]
            assert (ids[places] == before[places]).all()
            assert ids.sum() == ids[places].sum(), "only dummies beside it"
            assert one.is_unit.nonzero().flatten().tolist() == [number]
            assert one.weights.sum().item() == micro.weights[places].sum().item()
