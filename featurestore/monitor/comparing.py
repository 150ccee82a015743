"""Whether two versions of a view, or a view and the lake, have the same values: over a sample of entities, with causes.

Stored values change while they are looked at. Two are compared only where both stood still meanwhile, and a value is
compared with exactly the events of the lake that its fence says it holds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import Clock
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.definitions.expressions import names, render
from featurestore.engine.columns import ARROW_TYPES, LOADED, NEVER, FeatureColumn, event_batch
from featurestore.engine.history import evaluate_history
from featurestore.engine.packing import headers
from featurestore.engine.read import ViewReader
from featurestore.engine.sections import GENERATION, LATEST, OFFSET, PARTITION
from featurestore.errors import UsageError
from featurestore.offline.events import read_events
from featurestore.offline.history import columns_of
from featurestore.offline.lake import Lake
from featurestore.offline.loads import loaded
from featurestore.offline.point import MAX_EVENTS, covers
from featurestore.online.store import Fence, OnlineStore
from featurestore.types import Dtype

WORST = 5
"""Differences of a feature that are shown."""
RELATIVE = 1e-9
"""Float sums of the same events, added in another order."""
READ_KEYS = 1_000
STILL_SECONDS = 5.0
"""How long values have to stand still, and the lake to have their events."""
RETRY_SECONDS = 0.2


class Cause(StrEnum):
    DEFINITION = "definition"
    """The two versions mean different things by the feature."""
    HISTORY = "history"
    """One side has loaded files that the other lacks: a backfill is due."""
    PROGRESS = "progress"
    """One side has had more of the topic's events than the other."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Difference:
    entity: str
    left: Any
    right: Any
    distance: float | None
    """Relative, of numbers."""
    cause: Cause


@dataclass(slots=True)
class Compared:
    """One feature."""

    feature: str
    compared: int = 0
    equal: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    worst: list[Difference] = field(default_factory=list)


@dataclass(slots=True)
class Comparison:
    left: str
    right: str
    sampled: int
    compared: int
    """Entities; the others are in only one of the two, or changed all the time."""
    only_left: list[str] = field(default_factory=list)
    only_right: list[str] = field(default_factory=list)
    moving: int = 0
    features: list[Compared] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    """Features that only one of the two has, or of another type."""

    @property
    def unexplained(self) -> int:
        """Differences that are not for a difference of definitions, and entities that only one side has."""
        differing = sum(sum(f.causes.values()) - f.causes[Cause.DEFINITION] for f in self.features)
        return differing + len(self.only_left) + len(self.only_right)


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """A view's stored values of some entities, and how far they are."""

    view: CompiledView
    values: list[bytes | None]
    fences: Mapping[int, Fence]

    @property
    def loads(self) -> int:
        return min((fence.loads for fence in self.fences.values()), default=0)

    def vector(self, value: bytes | None) -> Mapping[int, int] | None:
        """Up to which offsets a value holds its entity's events; None where its fence does not say yet."""
        if value is None:
            return None
        head = headers([value])[0]
        if head[PARTITION] == LOADED:
            return {}
        fence = self.fences.get(int(head[PARTITION]))
        reached = fence is not None and fence.position >= (int(head[GENERATION]), int(head[OFFSET]))
        return fence.vector if fence is not None and reached else None


async def compare_versions(
    store: OnlineStore, left: CompiledView, right: CompiledView, *, sample: int, clock: Clock
) -> Comparison:
    """Values of two views of one entity, as they are stored. Raises UsageError where their keys differ."""
    if dict(left.keys) != dict(right.keys):
        raise UsageError(
            f"{left.id} is by {', '.join(left.keys)}, and {right.id} by {', '.join(right.keys)}",
            hint="values can be compared of views with the same entity keys",
            field="views",
        )
    keys = sorted({*await _sample(store, left, sample), *await _sample(store, right, sample)})[:sample]
    result = Comparison(left.id, right.id, len(keys), 0)
    one, other = await _still(store, [left, right], keys, result)
    both = [i for i, pair in enumerate(zip(one.values, other.values, strict=True)) if None not in pair]
    result.only_left = [keys[i] for i, v in enumerate(one.values) if v is not None and other.values[i] is None]
    result.only_right = [keys[i] for i, v in enumerate(other.values) if v is not None and one.values[i] is None]
    result.compared = len(both)
    at = _instants([[side.values[i] for i in both] for side in (one, other)], clock.now())
    columns = [_evaluated(side.view, [side.values[i] for i in both], at) for side in (one, other)]
    progress = [one.vector(one.values[i]) != other.vector(other.values[i]) for i in both]
    for name in _matched(left, right, result):
        same = _meaning(left, name) == _meaning(right, name)

        def cause(row: int, same: bool = same) -> Cause:
            if not same:
                return Cause.DEFINITION
            return Cause.HISTORY if one.loads != other.loads else Cause.PROGRESS if progress[row] else Cause.UNKNOWN

        causes = [cause(row) for row in range(len(both))]
        result.features.append(_compared(name, [keys[i] for i in both], columns[0][name], columns[1][name], causes))
    return result


async def compare_with_lake(
    store: OnlineStore, lake: Lake, source: CompiledSource, view: CompiledView, *, sample: int, clock: Clock
) -> Comparison:
    """Stored values of a view, and those of the events in the lake that they are to hold. Raises AtOutOfRange where the
    entities have more events than can be read."""
    keys = sorted(await _sample(store, view, sample))[:sample]
    result = Comparison(view.id, "lake", len(keys), 0)
    [side] = await _still(store, [view], keys, result)
    rows = [i for i, value in enumerate(side.values) if side.vector(value) is not None]
    result.moving += sum(value is not None for value in side.values) - len(rows)
    result.compared = len(rows)
    vectors = [side.vector(side.values[i]) or {} for i in rows]
    missing = not await _covered(lake, source, vectors)
    there = await asyncio.to_thread(loaded, lake, source.name)
    at = _instants([[side.values[i] for i in rows]], clock.now())
    online = _evaluated(view, [side.values[i] for i in rows], at)
    chosen = [keys[i] for i in rows]
    offline = await asyncio.to_thread(_from_lake, lake, source, view, chosen, vectors, at)
    cause = Cause.HISTORY if there.count > side.loads else Cause.PROGRESS if missing else Cause.UNKNOWN
    for name in view.order:
        result.features.append(_compared(name, chosen, online[name], offline[name], [cause] * len(rows)))
    return result


async def _sample(store: OnlineStore, view: CompiledView, count: int) -> set[str]:
    """Redis hands keys out by their hashes: the first are as good as any."""
    found: set[str] = set()
    async for key in store.scan_view(view.id):
        found.add(key)
        if len(found) >= count:
            break
    return found


async def _still(
    store: OnlineStore, views: Sequence[CompiledView], keys: Sequence[str], result: Comparison
) -> list[_Side]:
    """Values that were the same before and after their fences were read; the others are left out and counted."""
    loop = asyncio.get_running_loop()
    until = loop.time() + STILL_SECONDS
    while True:
        before = [await _read(store, view, keys) for view in views]
        sides = [
            _Side(view, list(values), await store.fences(view.id)) for view, values in zip(views, before, strict=True)
        ]
        after = [await _read(store, view, keys) for view in views]
        moved = {
            i
            for side, earlier, later in zip(sides, before, after, strict=True)
            for i in range(len(keys))
            if earlier[i] != later[i] or (earlier[i] is not None and side.vector(earlier[i]) is None)
        }
        if not moved or loop.time() > until:
            break
        await asyncio.sleep(RETRY_SECONDS)
    for side in sides:
        for i in moved:
            side.values[i] = None
    result.moving = len(moved)
    return sides


async def _read(store: OnlineStore, view: CompiledView, keys: Sequence[str]) -> list[bytes | None]:
    values: list[bytes | None] = []
    for start in range(0, len(keys), READ_KEYS):
        values += await store.read(view.id, keys[start : start + READ_KEYS])
    return values


async def _covered(lake: Lake, source: CompiledSource, vectors: Sequence[Mapping[int, int]]) -> bool:
    highest: dict[int, int] = {}
    for vector in vectors:
        for p, offset in vector.items():
            highest[p] = max(offset, highest.get(p, -1))
    loop = asyncio.get_running_loop()
    until = loop.time() + STILL_SECONDS
    while not await asyncio.to_thread(covers, lake, source, highest):
        if loop.time() > until:
            return False
        await asyncio.sleep(RETRY_SECONDS)
    return True


def _instants(sides: Sequence[Sequence[bytes | None]], now: int) -> np.ndarray:
    """`int64[n]` µs: now, or the latest event of an entity where that is later."""
    latest = [headers(values)[:, LATEST] for values in sides]
    at: np.ndarray = np.max([*latest, np.full(latest[0].shape, now)], axis=0)
    return at


def _evaluated(view: CompiledView, values: Sequence[bytes | None], at: np.ndarray) -> dict[str, FeatureColumn]:
    return {column.name: column for column in ViewReader(view).read(values, at, 0).columns}


def _from_lake(
    lake: Lake,
    source: CompiledSource,
    view: CompiledView,
    keys: Sequence[str],
    vectors: Sequence[Mapping[int, int]],
    at: np.ndarray,
) -> dict[str, FeatureColumn]:
    parts = _key_columns(view, keys)
    asked = {name: pc.unique(column) for name, column in parts.items()}
    table = read_events(lake, source, columns_of([view]), keys=asked, limit=MAX_EVENTS)
    batch = event_batch(source, tuple(view.keys), table)
    place = pc.index_in(batch.keys, value_set=pa.array(keys, pa.string())).fill_null(-1).to_numpy(zero_copy_only=False)
    partition, offset = table["_partition"].to_numpy(), table["_offset"].to_numpy()
    count = int(max([partition.max(initial=0), *(p for vector in vectors for p in vector)])) + 1
    limits = np.full((len(keys) + 1, count), NEVER, np.int64)
    for row, vector in enumerate(vectors):
        limits[row, list(vector)] = list(vector.values())
    held = (place >= 0) & ((partition == LOADED) | (offset <= limits[place, np.maximum(partition, 0)]))
    columns = evaluate_history(view, batch.take(np.flatnonzero(held)), pa.array(keys, pa.string()), at)
    return {column.name: column for column in columns}


def _key_columns(view: CompiledView, keys: Sequence[str]) -> dict[str, pa.Array]:
    """Canonical keys → the columns that they were made of."""
    rows = [_split(key) for key in keys]
    return {
        name: pa.array([_PARSED.get(dtype, str)(row[i]) for row in rows], ARROW_TYPES[dtype])
        for i, (name, dtype) in enumerate(view.keys.items())
    }


_PARSED: dict[Dtype, Any] = {Dtype.INT: int, Dtype.BOOL: lambda text: text == "true"}


def _split(key: str) -> list[str]:
    parts, escaped = [""], False
    for letter in key:
        if not escaped and letter == "|":
            parts.append("")
        elif not escaped and letter == "\\":
            escaped = True
            continue
        else:
            parts[-1] += letter
        escaped = False
    return parts


def _matched(left: CompiledView, right: CompiledView, result: Comparison) -> list[str]:
    common = [name for name in left.order if right.types.get(name) == left.types[name]]
    result.unmatched = sorted({*left.order, *right.order} - set(common))
    return common


def _meaning(view: CompiledView, feature: str) -> tuple[Any, ...]:
    """Everything that decides about a feature; equal for versions that mean the same by it."""
    shared = (view.source.name, view.source.event_time, view.source.lateness, _text(view.where))
    for a in view.aggregates:
        if a.name == feature:
            ttl = view.ttl if a.latest else None
            return (*shared, a.op, _text(a.column), a.window, a.hop, _text(a.where), a.default, a.n, ttl)
    [derived] = [d for d in view.derived if d.name == feature]
    return (_text(derived.expr), *(_meaning(view, name) for name in sorted(set(names(derived.expr, "feature")))))


def _text(expr: Any) -> str:
    return "" if expr is None else render(expr)


def _compared(
    name: str, keys: Sequence[str], left: FeatureColumn, right: FeatureColumn, causes: Sequence[Cause]
) -> Compared:
    result = Compared(name, len(keys))
    differences = []
    for row, (one, other) in enumerate(zip(left.to_list(), right.to_list(), strict=True)):
        if one == other and type(one) is type(other):
            result.equal += 1
            continue
        distance = _distance(one, other)
        if distance is not None and isinstance(one, float) and distance <= RELATIVE:
            result.equal += 1
            continue
        result.causes[causes[row]] += 1
        differences.append(Difference(keys[row], one, other, distance, causes[row]))
    differences.sort(key=lambda d: -np.inf if d.distance is None else -d.distance)
    result.worst = differences[:WORST]
    return result


def _distance(one: Any, other: Any) -> float | None:
    """|a - b| relative to the greater; None of what are not two numbers."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
    if not numbers:
        return None
    size = max(abs(one), abs(other))
    distance = abs(one - other) / size if size else 0.0
    return float(distance) if isfinite(distance) else None
