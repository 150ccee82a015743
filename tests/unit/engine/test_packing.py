"""Bytes that were not written by this view, or not whole, are refused and never misread."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine.read import ViewReader
from featurestore.engine.state import ViewState
from featurestore.errors import Corrupt
from tests.laws.bridge import batch_of, log_offsets, view_of
from tests.oracle.meaning import HOUR, MINUTE, OracleFeature

COLUMNS = {"key": "str", "x": "float", "label": "str"}
FEATURES = (
    OracleFeature("n", "count", window=HOUR),
    OracleFeature("total", "sum", "x", window=HOUR),
    OracleFeature("last", "last", "label"),
    OracleFeature("labels", "approx_distinct", "label", window=HOUR),
)
VIEW = view_of(FEATURES, COLUMNS, keys={"key": str})
OTHER = view_of(FEATURES[:2], COLUMNS, keys={"key": str})


def stored() -> bytes:
    events = [
        {"key": "a", "x": float(i), "label": f"label {i}", "event_time": i * MINUTE, "partition": 0, "offset": i}
        for i in range(30)
    ]
    state = ViewState(VIEW)
    state.load(["a"], [None], partition=0)
    folded = state.fold(batch_of(VIEW, events, COLUMNS), log_offsets(30))
    (value,) = state.encode(folded.slots, generation=1, partition=0, offset=29)
    return value


VALUE = stored()


def test_a_value_is_read_back() -> None:
    reading = ViewReader(VIEW).read([VALUE, None], None, now=0)
    assert [30, 0] == reading.columns[0].to_list()
    assert ["label 29", None] == reading.columns[2].to_list()
    assert [True, False] == reading.found.tolist()


def test_another_view_refuses_the_value() -> None:
    with pytest.raises(Corrupt, match="another definition"):
        ViewReader(OTHER).read([VALUE], None, now=0)


@pytest.mark.parametrize("length", [0, 7, 8, 63, 64, len(VALUE) - 8, len(VALUE) - 1])
def test_a_value_cut_short_is_refused(length: int) -> None:
    with pytest.raises(Corrupt):
        ViewReader(VIEW).read([VALUE[:length]], None, now=0)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(VALUE) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_but_never_crashes(at: int, byte: int) -> None:
    changed = VALUE[:at] + bytes([byte]) + VALUE[at + 1 :]
    try:
        reading = ViewReader(VIEW).read([VALUE, changed], None, now=0)
    except Corrupt:
        return
    assert 30 == reading.columns[0].to_list()[0]


def test_a_cache_that_is_too_small_still_gives_every_entity() -> None:
    entities = 3000
    events = [
        {"key": f"k{i % entities}", "x": 1.0, "label": f"l{i}", "event_time": i, "partition": 0, "offset": i}
        for i in range(2 * entities)
    ]
    state = ViewState(VIEW, budget_bytes=1)
    kept: dict[str, bytes] = {}
    for start in range(0, len(events), 500):
        batch = batch_of(VIEW, events[start : start + 500], COLUMNS)
        unknown = state.unknown(batch)
        state.load(unknown, [kept.get(key) for key in unknown], partition=0)
        folded = state.fold(batch, np.arange(start, start + 500))
        values = state.encode(folded.slots, generation=0, partition=0, offset=start + 499)
        kept.update(zip(folded.keys, values, strict=True))
    reading = ViewReader(VIEW).read([kept[f"k{i}"] for i in range(entities)], None, now=2 * entities)

    assert len(state) < entities
    assert [2] * entities == reading.columns[0].to_list()
    assert [f"l{entities + i}" for i in range(entities)] == reading.columns[2].to_list()
