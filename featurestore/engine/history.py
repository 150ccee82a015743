"""Exact values from raw events at any instants: the offline path, and the model's answer to "what was it then".

Events are sorted once by (entity, event time, seq); a window is then a range of rows, and each aggregate answers all
ranges at once: ends by position, sketches by collecting registers, everything else by the segment tree over `merge`.
Where only events count that were visible at the instant, the tree is asked for the visible part of each range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from featurestore.definitions.compiled import CompiledAggregate, CompiledView
from featurestore.engine.array import ragged
from featurestore.engine.columns import NEVER, EventBatch, FeatureColumn, StringPool
from featurestore.engine.gather import concerned, events_of, leaves_of, take_leaves
from featurestore.engine.layout import Layout, Stored, layout_of
from featurestore.engine.operations import OPERATIONS
from featurestore.engine.partials import Events, Partial
from featurestore.engine.reduce import Segments, State, over_ranges, take
from featurestore.engine.visible import Cover, VisibleTimes
from featurestore.engine.windows import Instants, finish, with_derived

_Range = tuple[int | None, int | None]
"""Window and hop, by which a range of rows is found."""
_Method = Callable[[Partial, Sequence[CompiledAggregate], Events, "_Questions"], list[State]]
"""Answers of a partial in the ranges of each of these aggregates, which differ in nothing else."""

MAX_COLLECTED = 4_000_000
"""Events gathered at once for operations that look at each event of a window, so that memory stays bounded."""


def evaluate_history(
    view: CompiledView, events: EventBatch, keys: pa.Array, at: np.ndarray, visible: np.ndarray | None = None
) -> list[FeatureColumn]:
    """Every feature of the view, in its order, for entity `keys[i]` (canonical, null allowed) at `at[i]` µs.
    Or both sides' keys are numbers, not negative, that stand for entities.

    Counts every event with `event_time <= at`, however late it arrived; with `visible` (`int64[n]` µs, when each event
    became visible) those of them with `visible <= at`. Rows out are rows in, in order.
    """
    pool = StringPool()
    layout = layout_of(view)
    with np.errstate(all="ignore"):
        leaves = leaves_of(np, view, layout.columns, events, pool)
        entity, asked = _entities(events.keys, keys)
        order = _order(entity, events.time, events.seq, concerned(view, leaves, events, np, pool))
        seen = None if visible is None else VisibleTimes(visible[order])
        time, seq = events.time[order], events.seq[order]
        questions = _Questions(entity[order], time, asked, at, seen)
        chosen = take_leaves(leaves, order)
        answers = _Answers(view, layout, questions, lambda stored: events_of(np, stored, chosen, time, seq, pool))
        columns = [
            finish(
                a, view.ttl, OPERATIONS[a.op].finalize(np, a, answers.state(a, place)), questions.instants, pool.texts
            )
            for a, place in zip(view.aggregates, layout.places, strict=True)
        ]
        return [c.take(questions.unsort) for c in with_derived(view, columns, questions.instants)]


def _entities(events: pa.Array, keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Keys of events and of questions → integers that agree; -1 for null. Those that are numbers stay what they are."""
    if pa.types.is_integer(events.type):
        told = [_whole(part).fill_null(-1).to_numpy(zero_copy_only=False) for part in (events, keys)]
        return told[0].astype(np.int64, copy=False), told[1].astype(np.int64, copy=False)
    both = pa.chunked_array([events.cast(pa.string()), _whole(keys).cast(pa.string())]).combine_chunks()
    codes = both.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes[: len(events)], codes[len(events) :]


def _whole(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _order(entity: np.ndarray, time: np.ndarray, seq: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Rows of those that are `mine`, by entity, then time, then seq. A lake's files are in time order, and one sort is
    cheaper than three."""
    rows = None if mine.all() else np.flatnonzero(mine)
    if rows is not None:
        entity, time, seq = entity[rows], time[rows], seq[rows]
    ascending = (time[1:] > time[:-1]) | ((time[1:] == time[:-1]) & (seq[1:] > seq[:-1]))
    order = _by_entity(entity) if ascending.all() else np.lexsort((seq, time, entity))
    return order if rows is None else rows[order]


def _by_entity(entity: np.ndarray) -> np.ndarray:
    """As a stable `argsort`. NumPy counts numbers of 16 bits, which takes a fraction of the time of comparing them."""
    if entity.max(initial=0) >= 2**32 - 1:
        return np.argsort(entity, kind="stable")
    numbers = (entity + 1).astype(np.uint32)  # from -1 on, for none
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    upper = (numbers >> 16).astype(np.uint16)
    return order[np.argsort(upper[order], kind="stable")] if upper.any() else order


class _Timeline:
    """Sorted events as one ascending number each, (entity, time), so that a window's edge is one binary search."""

    def __init__(self, entity: np.ndarray, time: np.ndarray) -> None:
        self._start = int(time.min()) if time.size else 0
        self._ranked: np.ndarray | None = None
        scale = (int(time.max()) if time.size else 0) - self._start + 3
        if scale * (int(entity.max(initial=0)) + 2) >= 2**62:
            # Too many entities over too long a time for one int64: number the distinct times instead.
            ordered = np.sort(time)
            self._ranked = ordered[np.append(True, ordered[1:] != ordered[:-1])]
            scale = self._ranked.size + 1
        self._scale = scale
        self._codes = self._code(entity, time)

    def _code(self, entity: np.ndarray, instant: np.ndarray) -> np.ndarray:
        """Ascending in (entity, instant); instants outside the events' span fall just outside it."""
        if self._ranked is not None:
            return entity * self._scale + np.searchsorted(self._ranked, instant)
        codes: np.ndarray = entity * self._scale + np.clip(instant - self._start + 1, 0, self._scale - 1)
        return codes

    def before(self, entity: np.ndarray, instant: np.ndarray) -> np.ndarray:
        """How many events sort before (entity, instant)."""
        rows: np.ndarray = np.searchsorted(self._codes, self._code(entity, instant))
        return rows

    def start(self, entity: np.ndarray) -> np.ndarray:
        """How many events sort before the entity's first."""
        rows: np.ndarray = np.searchsorted(self._codes, entity * self._scale)
        return rows


class _Questions:
    """Which rows of the sorted events each (entity, instant, window) covers.

    Held in the order of (entity, instant), where neighbouring searches touch neighbouring memory; `unsort` puts
    answers back.
    """

    def __init__(
        self, entity: np.ndarray, time: np.ndarray, asked: np.ndarray, at: np.ndarray, visible: VisibleTimes | None
    ) -> None:
        order = np.lexsort((at, asked))
        self.unsort = np.empty(order.size, np.int64)
        self.unsort[order] = np.arange(order.size)
        self.asked, self.at = asked[order], at[order]
        self._timeline = _Timeline(entity, time)
        self._low: dict[_Range, np.ndarray] = {}
        self.high = self._timeline.before(self.asked, self.at + 1)
        first = self._timeline.start(self.asked)
        self._low[None, None] = first
        self.visible = visible
        self._covers: dict[_Range, Cover] = {}
        last = self.high - 1 if visible is None else self._cover(visible, (None, None), first).last(at.size, time.size)
        found = (self.asked >= 0) & (last >= first)
        latest = np.full(at.size, NEVER, np.int64)
        latest[found] = time[last[found]]
        self.instants = Instants(self.at, latest, found)

    def covers(self, asked: Sequence[CompiledAggregate]) -> list[Cover] | None:
        """The visible parts of what `low` and `high` are the ends of; None where every event counts."""
        if self.visible is None:
            return None
        return [self._cover(self.visible, (a.window, a.hop), self.low(a)) for a in asked]

    def _cover(self, visible: VisibleTimes, share: _Range, low: np.ndarray) -> Cover:
        if share not in self._covers:
            self._covers[share] = visible.cover(low, self.high, self.at)
        return self._covers[share]

    def low(self, a: CompiledAggregate) -> np.ndarray:
        share = (a.window, a.hop)
        if a.window is not None and a.hop is not None and share not in self._low:
            tail = (self.at - a.window) // a.hop * a.hop
            self._low[share] = self._timeline.before(self.asked, tail)
        return self._low[share]


class _Answers:
    """One merged state per question, for each aggregate. What aggregates share is prepared once, and answered for all
    of their windows at once: most of a tree is building it."""

    def __init__(
        self, view: CompiledView, layout: Layout, questions: _Questions, prepared: Callable[[Stored], Events]
    ) -> None:
        self._layout, self._questions, self._prepared = layout, questions, prepared
        self._sharing: dict[tuple[object, ...], dict[_Range, CompiledAggregate]] = {}
        for a, place in zip(view.aggregates, layout.places, strict=True):
            self._sharing.setdefault(self._stored(place).kind, {}).setdefault((a.window, a.hop), a)
        self._states: dict[tuple[object, ...], dict[_Range, State]] = {}

    def state(self, a: CompiledAggregate, place: tuple[int, int]) -> State:
        stored = self._stored(place)
        if stored.kind not in self._states:
            sharing = self._sharing[stored.kind]
            method = RANGES.get(a.op, _by_tree)
            states = method(stored.partial, [*sharing.values()], self._prepared(stored), self._questions)
            self._states[stored.kind] = dict(zip(sharing, states, strict=True))
        return self._states[stored.kind][a.window, a.hop]

    def _stored(self, place: tuple[int, int]) -> Stored:
        group, number = place
        return self._layout.groups[group].stored[number]


def _by_tree(
    partial: Partial, asked: Sequence[CompiledAggregate], events: Events, questions: _Questions
) -> list[State]:
    leaves, high, size = partial.prepare(np, events), questions.high, questions.high.size

    def identity(rows: int) -> State:
        return partial.identity(np, rows)

    covers = questions.covers(asked)
    if covers is not None:
        return [cover.merged(np, partial.merge, identity, leaves, size) for cover in covers]
    low = np.concatenate([questions.low(a) for a in asked])
    merged = over_ranges(np, partial.merge, identity, leaves, low, np.tile(high, len(asked)))
    return [take(merged, slice(n * size, (n + 1) * size)) for n in range(len(asked))]


def _each(method: Callable[[Partial, CompiledAggregate, Events, _Questions], State]) -> _Method:
    return lambda partial, asked, events, questions: [method(partial, a, events, questions) for a in asked]


def _where_all_count(method: Callable[[Partial, CompiledAggregate, Events, _Questions], State]) -> _Method:
    """For methods that need every event of a range: where some are not visible, the tree takes their place."""
    each = _each(method)

    def by(partial: Partial, asked: Sequence[CompiledAggregate], events: Events, questions: _Questions) -> list[State]:
        return (each if questions.visible is None else _by_tree)(partial, asked, events, questions)

    return by


def _counted_before(a: CompiledAggregate, events: Events, questions: _Questions) -> tuple[np.ndarray, np.ndarray]:
    """How many of the events that count are before the ends of each range."""
    low = questions.low(a)
    high = np.maximum(low, questions.high)
    if events.chosen.all():
        return low, high
    before = np.concatenate([[0], np.cumsum(events.chosen)])
    return before[low], before[high]


def _by_counting(partial: Partial, a: CompiledAggregate, events: Events, questions: _Questions) -> State:
    first, last = _counted_before(a, events, questions)
    return (last - first,)


def _by_position(partial: Partial, a: CompiledAggregate, events: Events, questions: _Questions) -> State:
    """Ends of a range: rows are in time order, so they are its first or last counted rows."""
    first, last = _counted_before(a, events, questions)
    n = max(1, a.n)
    step = np.arange(n)
    wanted = first[:, None] + step if a.op == "first" else last[:, None] - 1 - step
    exists = (wanted >= first[:, None]) & (wanted < last[:, None])
    some = bool(exists.any())
    row = np.where(exists, wanted, 0)
    if some and not events.chosen.all():
        row = np.flatnonzero(events.chosen)[row]
    state = []
    for field, source in zip(partial.fields, (events.time, events.seq, events.values), strict=True):
        values = np.where(exists, source[row], field.empty) if some else np.full(wanted.shape, field.empty)
        state.append(values.astype(field.dtype)[:, 0] if n == 1 else values.astype(field.dtype))
    return tuple(state)


def _by_collecting(partial: Partial, a: CompiledAggregate, events: Events, questions: _Questions) -> State:
    """Looks at each event of each range, some ranges at a time."""
    low, high = questions.low(a), questions.high
    result = partial.identity(np, low.size)
    lengths = np.maximum(high - low, 0)
    cuts = np.searchsorted(
        np.cumsum(lengths), np.arange(MAX_COLLECTED, int(lengths.sum()) + MAX_COLLECTED, MAX_COLLECTED)
    )
    start = 0
    for cut in (*np.unique(cuts).tolist(), low.size):
        stop = max(min(cut + 1, low.size), start)
        question, place = ragged(lengths[start:stop])
        row = low[start:stop][question] + place
        chosen = events.chosen[row]
        if questions.visible is not None:
            chosen &= questions.visible.times[row] <= questions.at[start:stop][question]
        part = Events(events.values[row], chosen, events.time[row], events.seq[row])
        for field, values in zip(result, partial.reduce(np, part, Segments(np, question, stop - start)), strict=True):
            field[start:stop] = values
        start = stop
    return result


RANGES: dict[str, _Method] = {
    "count": _where_all_count(_by_counting),
    "first": _where_all_count(_by_position),
    "last": _where_all_count(_by_position),
    "last_n": _where_all_count(_by_position),
    "approx_distinct": _each(_by_collecting),
}
"""Operations with a cheaper form than the segment tree."""
