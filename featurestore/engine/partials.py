"""Mergeable partial states: the algebra under every aggregation.

A `Partial` says what is kept per tile (`fields`), how events become states (`prepare`, one row per event), and how
two states combine (`merge`: associative, commutative, with the identity that `fields` declares). Counts, integer sums,
minima, maxima and ends are exact to the bit in any order; float sums to 106 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from featurestore.engine import exact
from featurestore.engine.array import Array
from featurestore.engine.reduce import Segments, State, along_axis, by_segment

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
SKETCH_BITS = 11
REGISTERS = 1 << SKETCH_BITS
"""HyperLogLog registers; the standard error is 1.04 / sqrt(REGISTERS) = 2.3 %."""


class Role(Enum):
    """What a field's numbers are like, for those who store them."""

    VALUE = "value"
    COUNT = "count"
    """How many events were aggregated: never below 0, and mostly small."""
    LOW = "low"
    """The lower half of a pair: mostly 0."""
    WHOLE = "whole"
    """Nothing to be saved: instants, sequences and what goes with them, sums of squares."""


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a state. `kind`: `i8`, `f8`, `text` (int64 codes) or `u1`; `width` 1 is a scalar per tile."""

    kind: str
    empty: int | float
    width: int = 1
    role: Role = Role.VALUE

    @property
    def dtype(self) -> Any:
        return {"i8": np.int64, "f8": np.float64, "text": np.int64, "u1": np.uint8}[self.kind]

    def shape(self, *leading: int) -> tuple[int, ...]:
        return leading if self.width == 1 else (*leading, self.width)


@dataclass(frozen=True, slots=True)
class Events:
    """What `prepare` gets: n events with the aggregated column. `chosen`: counted, so not null and `where` holds."""

    values: Array
    chosen: Array
    time: Array
    seq: Array


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    fields: tuple[Field, ...]
    prepare: Callable[[Any, Events], State]
    merge: Callable[[Any, State, State], State]
    collect: Callable[[Any, Partial, Events, Segments], State] | None = None
    """A form of `prepare` and reduce that does not build a state per event, for wide states."""
    across: tuple[str, ...] | None = None
    """For each field its name in `ACROSS`, where merging `[k, …]` along k is a reduction of each field by itself."""
    whole: str | None = None
    """The name of the merge of all fields together, where each is a scalar: `walk` has it too."""

    def identity(self, xp: Any, *leading: int) -> State:
        return tuple(xp.full(f.shape(*leading), f.empty, f.dtype) for f in self.fields)

    def reduce(self, xp: Any, events: Events, segments: Segments) -> State:
        """Events sorted by segment → one state per segment."""
        if self.collect is not None:
            return self.collect(xp, self, events, segments)
        return by_segment(xp, self.merge, self.prepare(xp, events), segments)

    def fold(self, xp: Any, state: State) -> State:
        """`[k, n, …]` → `[n, …]`, k >= 1."""
        if self.across is None or state[0].shape[0] <= 2:
            return along_axis(xp, self.merge, state)
        folded: list[Array] = []
        for name in self.across:
            if name == "pair":
                folded += sum_pairs(xp, *state[len(folded) : len(folded) + 2])
            elif name != REST:
                folded.append(ACROSS[name](xp, state[len(folded)]))
        return tuple(folded)


def _count(xp: Any, e: Events) -> State:
    return (e.chosen.astype(xp.int64),)


def _merge_sums(xp: Any, a: State, b: State) -> State:
    return tuple(left + right for left, right in zip(a, b, strict=True))


REST = ""
"""Stands for the second field of a `pair`, which is reduced with the first."""
ACROSS: dict[str, Callable[[Any, Array], Array]] = {
    "sum": lambda xp, field: field.sum(axis=0),
    "min": lambda xp, field: field.min(axis=0),
    "max": lambda xp, field: field.max(axis=0),
}


def sum_pairs(xp: Any, high: Array, low: Array) -> exact.Pair:
    """`[k, …]` → `[…]`: sums of double-doubles."""
    if high.shape[0] == 1:
        return high[0], low[0]
    total = exact.total(xp, high, low)
    if bool(xp.isfinite(total[0]).all()):
        return total
    summed: exact.Pair = along_axis(xp, lambda xp, a, b: exact.add(a, b), (high, low))
    return summed


def _int_sum(xp: Any, e: Events) -> State:
    value = xp.where(e.chosen, e.values, 0)
    return e.chosen.astype(xp.int64), value >> 32, value & 0xFFFFFFFF


def _float_sum(xp: Any, e: Events) -> State:
    value = xp.where(e.chosen, e.values, 0.0).astype(xp.float64)
    return e.chosen.astype(xp.int64), value, xp.zeros_like(value)


def _merge_float_sums(xp: Any, a: State, b: State) -> State:
    return a[0] + b[0], *exact.add((a[1], a[2]), (b[1], b[2]))


def _moments(xp: Any, e: Events) -> State:
    """Integers enter as the exact pair of their upper and lower half."""
    if e.values.dtype == xp.int64:
        value = xp.where(e.chosen, e.values, 0)
        high = (value >> 32).astype(xp.float64) * 2.0**32
        pair = exact.two_sum(high, (value & 0xFFFFFFFF).astype(xp.float64))
    else:
        value = xp.where(e.chosen, e.values, 0.0)
        pair = (value, xp.zeros_like(value))
    return e.chosen.astype(xp.int64), *pair, xp.zeros(value.shape, xp.float64)


def _merge_moments(xp: Any, a: State, b: State) -> State:
    """Pairwise update of the sum of squared deviations; T. F. Chan, G. H. Golub, R. J. LeVeque (1983)."""
    n_a, n_b = a[0].astype(xp.float64), b[0].astype(xp.float64)
    left, right = exact.scale((a[1], a[2]), n_b), exact.scale((b[1], b[2]), n_a)
    apart = exact.add(right, (-left[0], -left[1]))
    product = xp.maximum(n_a * n_b, 1.0)
    delta = (apart[0] + apart[1]) / product
    spread = a[3] + b[3] + delta * (delta * (n_a * n_b / xp.maximum(n_a + n_b, 1.0)))
    total = exact.add((a[1], a[2]), (b[1], b[2]))
    return a[0] + b[0], *total, spread


def _extreme(limit: int | float, pick: str) -> tuple[Callable[..., State], ...]:
    def prepare(xp: Any, e: Events) -> State:
        # Adding zero turns -0.0 into 0.0: which of the two equal values is kept must not depend on order.
        return e.chosen.astype(xp.int64), xp.where(e.chosen, e.values + 0, limit)

    def merge(xp: Any, a: State, b: State) -> State:
        return a[0] + b[0], getattr(xp, pick)(a[1], b[1])

    return prepare, merge


def _end(never: int, nothing: int, later: bool) -> tuple[Callable[..., State], Callable[..., State]]:
    def prepare(xp: Any, e: Events) -> State:
        return (
            xp.where(e.chosen, e.time, never),
            xp.where(e.chosen, e.seq, never),
            xp.where(e.chosen, e.values, nothing),
        )

    def merge(xp: Any, a: State, b: State) -> State:
        if later:
            wins = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] > a[1]))
        else:
            wins = (b[0] < a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
        return tuple(xp.where(wins, right, left) for left, right in zip(a, b, strict=True))

    return prepare, merge


def _newest(n: int, nothing: int) -> tuple[Callable[..., State], Callable[..., State], Callable[..., State]]:
    def prepare(xp: Any, e: Events) -> State:
        rows = e.time.shape[0]
        empty = (INT_MIN, INT_MIN, nothing)
        single = tuple(xp.where(e.chosen, v, none) for v, none in zip((e.time, e.seq, e.values), empty, strict=True))
        if n == 1:
            return single
        return tuple(
            xp.concatenate([one[:, None], xp.full((rows, n - 1), none, one.dtype)], axis=1)
            for one, none in zip(single, empty, strict=True)
        )

    def merge(xp: Any, a: State, b: State) -> State:
        if n == 1:
            wins = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] > a[1]))
            return tuple(xp.where(wins, right, left) for left, right in zip(a, b, strict=True))
        both = tuple(xp.concatenate([left, right], axis=-1) for left, right in zip(a, b, strict=True))
        by_seq = xp.argsort(both[1], axis=-1, kind="stable")
        both = tuple(xp.take_along_axis(field, by_seq, axis=-1) for field in both)
        by_time = xp.argsort(both[0], axis=-1, kind="stable")
        return tuple(xp.take_along_axis(field, by_time, axis=-1)[..., ::-1][..., :n] for field in both)

    def collect(xp: Any, partial: Partial, e: Events, segments: Segments) -> State:
        rows = xp.nonzero(e.chosen)[0]
        order = rows[xp.lexsort(xp.stack([e.seq[rows], e.time[rows], segments.ids[rows]]))]
        owner = segments.ids[order]
        end = xp.searchsorted(owner, owner, side="right")
        place = end - 1 - xp.arange(order.shape[0])
        kept = place < n
        state = partial.identity(xp, segments.count)
        index = owner[kept] if n == 1 else (owner[kept], place[kept])
        for field, source in zip(state, (e.time, e.seq, e.values), strict=True):
            field[index] = source[order[kept]]
        return state

    return prepare, merge, collect


def _register(xp: Any, hashes: Array) -> tuple[Array, Array]:
    """64-bit hash (uint64) → register number, and rank: 1 + leading zeros of the remaining bits."""
    register = (hashes >> xp.uint64(64 - SKETCH_BITS)).astype(xp.int64)
    rest = (hashes << xp.uint64(SKETCH_BITS)) | xp.uint64((1 << SKETCH_BITS) - 1)
    # Two halves, since a uint64 does not survive the conversion to float that the logarithm needs.
    upper, lower = (rest >> xp.uint64(32)).astype(xp.float64), (rest & xp.uint64(0xFFFFFFFF)).astype(xp.float64)
    length = xp.where(
        upper > 0, 33 + xp.floor(xp.log2(xp.maximum(upper, 1.0))), 1 + xp.floor(xp.log2(xp.maximum(lower, 1.0)))
    )
    return register, (65 - length).astype(xp.uint8)


def _sketch(xp: Any, e: Events) -> State:
    register, rank = _register(xp, e.values)
    state = xp.zeros((e.chosen.shape[0], REGISTERS), xp.uint8)
    rows = xp.nonzero(e.chosen)[0]
    state[rows, register[rows]] = rank[rows]
    return (state,)


def _merge_sketches(xp: Any, a: State, b: State) -> State:
    return (xp.maximum(a[0], b[0]),)


def _collect_sketches(xp: Any, partial: Partial, e: Events, segments: Segments) -> State:
    rows = xp.nonzero(e.chosen)[0]
    register, rank = _register(xp, e.values[rows])
    cell = segments.ids[rows] * REGISTERS + register
    order = xp.argsort(cell, kind="stable")
    cells = Segments(xp, cell[order], segments.count * REGISTERS)
    (highest,) = by_segment(xp, _merge_sketches, (rank[order],), cells)
    state = xp.zeros(cells.count, xp.uint8)
    if rows.shape[0]:
        state[cells.ids[cells.heads]] = highest
    return (state.reshape(segments.count, REGISTERS),)


def int_hash(xp: Any, values: Array) -> Array:
    """Integers → well-mixed uint64; the finaliser of SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, 2014)."""
    z = values.astype(xp.uint64) + xp.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> xp.uint64(30))) * xp.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> xp.uint64(27))) * xp.uint64(0x94D049BB133111EB)
    return z ^ (z >> xp.uint64(31))


_COUNT = Field("i8", 0, role=Role.COUNT)
_HIGH, _LOW = Field("f8", 0.0), Field("f8", 0.0, role=Role.LOW)


def count() -> Partial:
    return Partial((_COUNT,), _count, _merge_sums, across=("sum",))


def int_sum() -> Partial:
    """Counts, upper and lower halves of an integer sum: no overflow below 2**31 events."""
    return Partial((_COUNT, Field("i8", 0), Field("i8", 0)), _int_sum, _merge_sums, across=("sum", "sum", "sum"))


def float_sum() -> Partial:
    return Partial((_COUNT, _HIGH, _LOW), _float_sum, _merge_float_sums, across=("sum", "pair", REST))


def moments() -> Partial:
    return Partial((_COUNT, _HIGH, _LOW, Field("f8", 0.0, role=Role.WHOLE)), _moments, _merge_moments, whole="moments")


def minimum(kind: str) -> Partial:
    limit = float("inf") if kind == "f8" else INT_MAX
    prepare, merge = _extreme(limit, "minimum")
    return Partial((_COUNT, Field(kind, limit)), prepare, merge, across=("sum", "min"))


def maximum(kind: str) -> Partial:
    limit = float("-inf") if kind == "f8" else INT_MIN
    prepare, merge = _extreme(limit, "maximum")
    return Partial((_COUNT, Field(kind, limit)), prepare, merge, across=("sum", "max"))


def first(kind: str) -> Partial:
    return Partial(
        (_instant(INT_MAX), _instant(INT_MAX), _value(kind)),
        *_end(INT_MAX, _nothing(kind), later=False),
        whole="first",
    )


def last(kind: str) -> Partial:
    return Partial(
        (_instant(INT_MIN), _instant(INT_MIN), _value(kind)),
        *_end(INT_MIN, _nothing(kind), later=True),
        whole="last",
    )


def newest(kind: str, n: int) -> Partial:
    fields = (_instant(INT_MIN, n), _instant(INT_MIN, n), _value(kind, n))
    return Partial(fields, *_newest(n, _nothing(kind)), whole="last" if n == 1 else None)


def _instant(never: int, n: int = 1) -> Field:
    """Of an event: its time, or its place in the log."""
    return Field("i8", never, n, Role.WHOLE)


def _value(kind: str, n: int = 1) -> Field:
    return Field(kind, _nothing(kind), n, Role.WHOLE)


def _nothing(kind: str) -> int:
    """What stands where there is no value: no text has code -1."""
    return -1 if kind == "text" else 0


def sketch() -> Partial:
    return Partial((Field("u1", 0, REGISTERS),), _sketch, _merge_sketches, _collect_sketches, ("max",))
