"""Remembered rows are those that would be evaluated: whatever was read before, stored meanwhile, or overwritten."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine.read import ViewReader
from featurestore.serving.rows import RememberedRows, Room, Rows, rows_of
from tests.laws.bridge import key_of
from tests.laws.test_golden_law import KERNELS, VIEWS, deliver
from tests.oracle.streams import Stream, instants, schedules, streams

READERS = {(name, kernel): ViewReader(VIEWS[name], KERNELS[kernel]) for name in VIEWS for kernel in KERNELS}


def assert_same(expected: Rows, found: Rows) -> None:
    assert repr(expected.columns()) == repr(found.columns())  # bits of floats, and the types of numbers
    for name in ("found", "at", "partition", "answerable", "status"):
        np.testing.assert_array_equal(getattr(expected, name), getattr(found, name), err_msg=name)
    for one, other in zip(expected.as_of, found.as_of, strict=True):
        np.testing.assert_array_equal(one, other, err_msg="as_of")
    assert found.lines is not None
    assert [list(row) for row in zip(*found.columns(), strict=True)] == [msgspec.json.decode(x) for x in found.lines]


@pytest.mark.parametrize(("entity", "kernel"), READERS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_rows_are_what_a_reader_says(entity: str, kernel: str, data: st.DataObject) -> None:
    view, reader = VIEWS[entity], READERS[entity, kernel]
    stream: Stream = data.draw(streams())
    schedule = data.draw(schedules(stream))
    keys = [key_of(view, key) for key in stream.keys(*view.keys)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(schedule)), min_size=1, max_size=3)))
    stages = [deliver(view, schedule[:cut], budget_bytes=1 << 26)[0] for cut in cuts]
    features = data.draw(st.lists(st.sampled_from(range(len(view.order))), min_size=1, unique=True))
    kept = RememberedRows(
        reader, features, Room(data.draw(st.sampled_from((0, 1 << 20))), data.draw(st.integers(0, 4)))
    )

    asked = [key for key in keys if key is not None] + ["nobody", None]
    for stored in stages:
        for _ in range(3):
            now = data.draw(instants(stream))
            # The clock may be set back, and what was asked once may be asked with others beside it.
            for instant in (now, now + data.draw(st.sampled_from((0, 1, -1))), now):
                chosen = data.draw(st.lists(st.sampled_from(asked), min_size=1, max_size=6))
                values = [None if key is None else stored.get(key) for key in chosen]
                expected = rows_of(reader.read(values, None, instant), features)
                assert_same(expected, kept.read(values, instant))
