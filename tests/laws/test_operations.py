"""Laws of the aggregation table. Every entry is under every law by construction: add an operation and it is tested."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.definitions.aggregates import RULES
from featurestore.definitions.compiled import CompiledView
from featurestore.engine import packing, sections
from featurestore.engine.columns import FeatureColumn, StringPool
from featurestore.engine.gather import events_of, hashed, leaves_of
from featurestore.engine.layout import Stored, layout_of
from featurestore.engine.opening import unpack
from featurestore.engine.operations import OPERATIONS
from featurestore.engine.partials import Events
from featurestore.engine.reduce import Segments, State, along_axis, by_segment, over_ranges, take
from featurestore.engine.text import intern_references, pool_encoder
from featurestore.engine.windows import Instants, finish
from featurestore.types import Dtype
from tests.laws.bridge import batch_of, view_of
from tests.oracle.meaning import OracleEvent, OracleFeature
from tests.oracle.streams import COLUMNS as STRATEGIES

COLUMNS = {"key": "str", "amount": "float", "quantity": "int", "label": "str", "flag": "bool"}
OF_KIND = {Dtype.FLOAT: "amount", Dtype.INT: "quantity", Dtype.STRING: "label", Dtype.BOOL: "flag"}
CASES = [
    (op, column)
    for op, rule in RULES.items()
    for column in [
        *(name for dtype, name in OF_KIND.items() if dtype in rule.accepts),
        *([] if rule.column else [None]),
    ]
]
FLOATING = {"sum", "mean", "var", "std"}

rows = st.lists(
    st.fixed_dictionaries(
        {name: st.none() | STRATEGIES[name] for name in ("amount", "quantity", "label", "flag")}
        | {"event_time": st.integers(-3, 3), "key": st.just("k")}
    ),
    max_size=24,
)


def view_for(op: str, column: str | None) -> CompiledView:
    return view_of([OracleFeature("f", op, column, n=3 if op == "last_n" else None)], COLUMNS, keys={"key": str})


class Prepared:
    """One state per event of a list, and what finalising one takes."""

    def __init__(self, op: str, column: str | None, events: list[OracleEvent]) -> None:
        self.view = view_for(op, column)
        self.layout = layout_of(self.view)
        self.stored: Stored = self.layout.groups[0].stored[0]
        self.partial = self.stored.partial
        self.pool = StringPool()
        self.events = [{**event, "partition": 0, "offset": i} for i, event in enumerate(events)]
        batch = batch_of(self.view, self.events, COLUMNS)
        leaves = leaves_of(np, self.view, self.layout.columns, batch, self.pool)
        self.inputs = events_of(np, self.stored, leaves, batch.time, batch.seq, self.pool)
        self.states: State = self.partial.prepare(np, self.inputs)

    def merge(self, a: State, b: State) -> State:
        return self.partial.merge(np, a, b)

    def identity(self, n: int = 1) -> State:
        return self.partial.identity(np, n)

    def value(self, state: State) -> FeatureColumn:
        a = self.view.aggregates[0]
        n = state[0].shape[0]
        instants = Instants(np.zeros(n, np.int64), np.zeros(n, np.int64), np.ones(n, np.bool_))
        return finish(a, None, OPERATIONS[a.op].finalize(np, a, state), instants, self.pool.texts)

    def same(self, left: State, right: State) -> None:
        """Exact fields to the bit; float sums as values, within the law."""
        if self.view.aggregates[0].op in FLOATING and self.view.aggregates[0].column is not None:
            a, b = self.value(left).to_list(), self.value(right).to_list()
            for x, y in zip(a, b, strict=True):
                assert (x is None) == (y is None)
                assert x is None or x == pytest.approx(y, rel=1e-9, abs=1e-9)
            return
        for x, y in zip(left, right, strict=True):
            np.testing.assert_array_equal(x, y)


def cut(state: State, start: int, stop: int) -> State:
    return take(state, slice(start, stop))


def test_every_rule_has_an_operation() -> None:
    assert set(RULES) == set(OPERATIONS)


@pytest.mark.parametrize(("op", "column"), CASES)
@settings(max_examples=40, deadline=None)
@given(events=rows)
def test_identity_associativity_commutativity(op: str, column: str | None, events: list[OracleEvent]) -> None:
    p = Prepared(op, column, events)
    n = len(events)
    x, y, z = p.states, take(p.states, np.arange(n)[::-1]), take(p.states, np.roll(np.arange(n), 1))
    p.same(p.merge(x, p.identity(n)), x)
    p.same(p.merge(p.identity(n), x), x)
    # A state holds each event once; rows that would merge an event with itself are not states of any log.
    index = np.arange(n)
    apart = (index != index[::-1]) & (index != np.roll(index, 1)) & (index[::-1] != np.roll(index, 1))
    x, y, z = take(x, apart), take(y, apart), take(z, apart)
    p.same(p.merge(x, y), p.merge(y, x))
    p.same(p.merge(p.merge(x, y), z), p.merge(x, p.merge(y, z)))


@pytest.mark.parametrize(("op", "column"), CASES)
@settings(max_examples=40, deadline=None)
@given(events=rows, data=st.data())
def test_any_split_gives_the_direct_result(op: str, column: str | None, events: list[OracleEvent], data: Any) -> None:
    p = Prepared(op, column, events)
    n = len(events)
    direct = p.identity()
    for row in range(n):
        direct = p.merge(direct, cut(p.states, row, row + 1))
    segment = np.sort(np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), np.int64))
    present, segment = np.unique(segment, return_inverse=True)
    segments, all_one = Segments(np, segment, present.size), Segments(np, np.zeros(present.size, np.int64), 1)
    for parts in (
        by_segment(np, p.partial.merge, p.states, segments),
        p.partial.reduce(np, p.inputs, segments),
    ):
        whole = by_segment(np, p.partial.merge, parts, all_one) if n else p.identity()
        p.same(direct, whole)
    if n:
        p.same(direct, along_axis(np, p.partial.merge, tuple(field[:, None] for field in p.states)))
        p.same(direct, p.partial.fold(np, tuple(field[:, None] for field in p.states)))
    low, high = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    ranged = over_ranges(np, p.partial.merge, p.identity, p.states, np.array([low]), np.array([high]))
    expected = p.identity()
    for row in range(low, high):
        expected = p.merge(expected, cut(p.states, row, row + 1))
    p.same(expected, ranged)


@pytest.mark.parametrize(("op", "column"), CASES)
@settings(max_examples=40, deadline=None)
@given(events=rows)
def test_packing_loses_nothing(op: str, column: str | None, events: list[OracleEvent]) -> None:
    p = Prepared(op, column, events)
    n = len(events)
    header = np.zeros((n, sections.HEADER_WORDS), np.int64)
    header[:, sections.MAGIC] = sections.FORMAT
    header[:, sections.FINGERPRINT] = sections.fingerprint_word(p.view.fingerprint)
    header[:, sections.LATEST] = np.arange(n) - 5
    tiles = packing.TileRows(np.arange(n), np.zeros(n, np.int64), (p.states,))
    values = packing.pack(p.layout, header, [tiles], lambda codes: pool_encoder(p.pool, codes))
    unpacked = unpack(p.layout, values)

    assert n == len(values)
    np.testing.assert_array_equal(header[:, :6], unpacked.header[:, :6])
    (restored_tiles,) = unpacked.groups
    np.testing.assert_array_equal(np.zeros((n, 1)), restored_tiles.ids)
    for field, kept, dense in zip(p.partial.fields, p.states, restored_tiles.states[0], strict=True):
        restored = dense[:, 0]
        before, after = kept, restored
        if field.kind == "text":
            counted = np.broadcast_to(p.inputs.chosen.reshape((-1,) + (1,) * (before.ndim - 1)), before.shape) & (
                before >= 0
            )
            before = np.where(counted, kept, -1)
            after = np.where(counted, intern_references(unpacked.buffer, restored, p.pool), -1)
        assert before.tobytes() == np.ascontiguousarray(after).tobytes()


def test_a_sketch_estimates_large_sets_within_its_error() -> None:
    n = 50_000
    p = Prepared("approx_distinct", "quantity", [])
    values = np.arange(n, dtype=np.int64)
    inputs = Events(hashed(np, values, Dtype.INT, p.pool), np.ones(n, np.bool_), values, values)
    (estimate,) = p.value(p.partial.reduce(np, inputs, Segments(np, np.zeros(n, np.int64), 1))).to_list()
    assert n == pytest.approx(estimate, rel=0.07)
