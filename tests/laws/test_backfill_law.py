"""Law: values from the lake up to any offset of the log, and the log from there on, are values of all events.

Whatever was loaded, however the log is cut, delivered twice or out of order, and wherever each entity partition stood.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Entity, agg, col, feature_view
from featurestore.clock import HOUR, MINUTE, SECOND
from featurestore.definitions.compile import compile_view
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import LOADED, event_batch
from featurestore.engine.packing import headers
from featurestore.engine.placement import partitions_of
from featurestore.engine.read import ViewReader
from featurestore.engine.sections import GENERATION, NOBODY, OFFSET, PARTITION
from featurestore.engine.state import ViewState
from featurestore.offline.events import VISIBLE_TIME
from featurestore.online.fences import Fence
from streams.folding import NOTHING, Count, Delivery, Piece, ViewFold, totals
from streams.refolding import Base, Buckets, Refold
from tests.oracle.compare import assert_values
from tests.oracle.meaning import OracleEvent, OracleFeature, evaluate, magnitude
from tests.unit.streams import clicks

NOW = 1_772_366_400 * SECOND
SOURCES, SHUFFLES, GENERATION_OF_BACKFILL = 3, 2, 7
SCHEMA: dict[str, Any] = {
    **clicks.SCHEMA,
    "fields": [*clicks.SCHEMA["fields"], {"name": "shop", "type": ["null", "string"], "default": None}],
}
FEATURES = {
    "n_all": agg.count(),
    "n_1h": agg.count(window="1h"),
    "mean_1h": agg.mean(col("amount"), window="1h"),
    "most": agg.max(col("amount")),
    "last_3": agg.last_n(col("amount"), n=3),
    "first_shop": agg.first(col("shop")),
    "last_user": agg.last(col("user")),
}
ORACLE = (
    OracleFeature("n_all", "count"),
    OracleFeature("n_1h", "count", window=HOUR),
    OracleFeature("mean_1h", "mean", "amount", window=HOUR),
    OracleFeature("most", "max", "amount"),
    OracleFeature("last_3", "last_n", "amount", n=3),
    OracleFeature("first_shop", "first", "shop"),
    OracleFeature("last_user", "last", "user"),
)


def _compiled(name: str, entity: Entity) -> CompiledView:
    view = feature_view(entity=entity, source=clicks.Clicks, version=1)(type(name, (), dict(FEATURES)))
    found, faults = compile_view(view, clicks.contract(SCHEMA))
    assert found is not None, faults
    return found


USERS = _compiled("ByUser", clicks.User)
SHOPS = _compiled("ByShop", Entity("shop", keys={"shop": str}))
SOURCE = USERS.source
assert USERS.aligned
assert not SHOPS.aligned


@dataclass
class History:
    """What happened: events that were loaded, and events of each source partition."""

    rng: random.Random
    loaded: list[OracleEvent] = field(default_factory=list)
    streamed: list[list[OracleEvent]] = field(default_factory=lambda: [[] for _ in range(SOURCES)])

    @classmethod
    def random(cls, seed: int, count: int) -> History:
        rng = random.Random(seed)
        history = cls(rng)
        for _ in range(rng.randrange(count)):
            history.loaded.append(history._event(LOADED, len(history.loaded), NOW - 30 * MINUTE))
        next_offsets = [0] * SOURCES
        for i in range(rng.randrange(count)):
            user = rng.choice([None, *(f"u{n}" for n in range(6))])
            s = rng.randrange(SOURCES) if user is None else sum(user.encode()) % SOURCES
            event = history._event(s, next_offsets[s], NOW + i * MINUTE // 4) | {"user": user}
            history.streamed[s].append(event)
            next_offsets[s] += rng.choice([1, 1, 2])  # what is left out became dead letters
        return history

    def _event(self, partition: int, offset: int, about: int) -> OracleEvent:
        rng = self.rng
        return {
            "event_time": (about - rng.choice([0, 0, MINUTE, 40 * MINUTE, 3 * HOUR])) // MINUTE * MINUTE,
            "partition": partition,
            "offset": offset,
            "user": rng.choice([None, *(f"u{n}" for n in range(6))]),
            "shop": rng.choice([None, "s|1", *(f"s{n}" for n in range(6))]),
            "amount": rng.choice([None, 0.1, rng.uniform(-9, 9)]),
        }

    @property
    def events(self) -> list[OracleEvent]:
        return [*self.loaded, *(event for events in self.streamed for event in events)]


def table_of(events: Sequence[OracleEvent]) -> pa.Table:
    instants = pa.array([e["event_time"] for e in events], pa.timestamp("us", "UTC"))
    columns = {
        name: pa.array([e[name] for e in events], kind)
        for name, kind in (("user", pa.string()), ("amount", pa.float64()), ("shop", pa.string()))
    }
    places = {
        "_partition": pa.array([e["partition"] for e in events], pa.int32()),
        "_offset": pa.array([e["offset"] for e in events], pa.int64()),
    }
    return pa.table({"at": instants, **columns, **places, "event_time": instants, VISIBLE_TIME: instants})


@dataclass(frozen=True)
class Record:
    """One record of the log that a view reads."""

    source: int
    events: tuple[OracleEvent, ...]
    first: int
    """Log offsets that it covers: of an aligned view also those of what became dead letters."""
    last: int


def logs_of(view: CompiledView, history: History) -> dict[int, list[Record]]:
    return _aligned(history) if view.aligned else _shuffled(view, history)


def _aligned(history: History) -> dict[int, list[Record]]:
    logs: dict[int, list[Record]] = {}
    for s, events in enumerate(history.streamed):
        start = 0
        for event in events:
            logs.setdefault(s, []).append(Record(s, (event,), start, event["offset"]))
            start = event["offset"] + 1
    return {s: logs.get(s, []) for s in range(SOURCES)}


def _shuffled(view: CompiledView, history: History) -> dict[int, list[Record]]:
    """Intakes that take turns, and some that begin again a while before where they were killed."""
    rng, logs = history.rng, dict[int, list[Record]]({p: [] for p in range(SHUFFLES)})
    reached = [0] * SOURCES
    while any(at < len(events) for at, events in zip(reached, history.streamed, strict=True)):
        s = rng.choice([s for s in range(SOURCES) if reached[s] < len(history.streamed[s])])
        start = reached[s] if rng.random() < 0.7 else rng.randrange(reached[s] + 1)
        end = min(len(history.streamed[s]), start + rng.randrange(1, 5))
        reached[s] = max(reached[s], end)
        batch = history.streamed[s][start:end]
        for event, home in zip(batch, homes_of(view, batch), strict=True):
            at = len(logs[home])
            logs[home].append(Record(s, (event,), at, at))
    return logs


def homes_of(view: CompiledView, events: Sequence[OracleEvent]) -> list[int]:
    keys = event_batch(SOURCE, tuple(view.keys), table_of(events)).keys
    homes = partitions_of(keys, SHUFFLES, NOTHING)
    return [h if h != NOTHING else e["partition"] % SHUFFLES for h, e in zip(homes.tolist(), events, strict=True)]


class Store:
    """Set if newer, as one dictionary."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def write(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            new, old = self._position(value), self._position(self.values.get(key))
            if old is None or new is None or new[:2] > old[:2]:
                assert old is None or new is None or new[0] > old[0] or old[2] in (new[2], NOBODY)
                self.values[key] = value

    @staticmethod
    def _position(value: bytes | None) -> tuple[int, int, int] | None:
        if value is None:
            return None
        head = headers([value])[0]
        return int(head[GENERATION]), int(head[OFFSET]), int(head[PARTITION])


def fold(view: CompiledView, store: Store, worker: ViewFold, records: Sequence[Record]) -> None:
    for record in records:
        rows = table_of(record.events)
        offsets = rows["_offset"].to_numpy()
        log = offsets if view.aligned else np.array([record.first])
        piece = Piece(record.source, offsets, log)
        appended = np.zeros(len(offsets), np.int64)
        events = event_batch(SOURCE, tuple(view.keys), rows)
        accepted = worker.accept(Delivery((piece,), events, appended, record.first, record.last))
        if accepted is None:
            continue
        missing = worker.missing(accepted)
        accepted = worker.load(accepted, missing, [store.values.get(key) for key in missing])
        effects = worker.apply(accepted)
        assert not effects.refused
        store.write(effects.keys, effects.values)
        worker.confirm(effects)


def backfill(
    view: CompiledView,
    store: Store,
    fences: dict[int, Fence],
    history: History,
    logs: dict[int, list[Record]],
    buckets: int,
) -> dict[int, Fence]:
    """As `streams.backfilling` does it, of events that the lake has; returns the fences of the new generation."""
    highest: dict[int, int] = {}
    for fence in fences.values():
        for s, offset in fence.vector.items():
            highest[s] = max(highest.get(s, NOTHING), offset)
    offsets = {p: fence.offset for p, fence in fences.items()}
    vectors = {} if view.aligned else {p: dict(fence.vector) for p, fence in fences.items()}
    base = Base(GENERATION_OF_BACKFILL, highest, offsets, None if view.aligned else SHUFFLES, vectors)
    refold = Refold(view, SOURCE, base)
    rows = table_of(history.events)  # the lake may have more than any fence
    counted = dict.fromkeys(fences, 0)
    with Buckets(view.keys, highest, buckets, range(buckets)) as divided:
        for batch in rows.to_batches(max_chunksize=7):
            divided.add(batch)
        for bucket in range(buckets):
            held = divided.read(bucket)
            for part in refold.fold(held) if held is not None else ():
                store.write(part.keys, part.values)
                for p, tally in part.tallies.items():
                    counted[p] += int(totals(tally.ledger)[Count.CONSUMED])
    for p, fence in fences.items():
        had = {(r.source, e["offset"]) for r in logs[p] for e in r.events if r.last <= fence.offset}
        assert len(had) == counted[p]  # each event of the log once, and none that was loaded
    return {
        p: Fence(GENERATION_OF_BACKFILL, fence.offset, fence.vector, {}, 0, 0, 0, loads=1)
        for p, fence in fences.items()
    }


@pytest.mark.parametrize("view", [USERS, SHOPS], ids=["aligned", "shuffled"])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 60), buckets=st.integers(1, 3))
def test_lake_up_to_any_offset_and_the_log_from_there_are_all_events(
    view: CompiledView, seed: int, count: int, buckets: int
) -> None:
    history = History.random(seed, count)
    rng, logs = history.rng, logs_of(view, history)
    store = Store()
    workers = {p: ViewFold(view, p, ViewState(view), None) for p in logs}
    cuts = {p: rng.randrange(len(log) + 1) for p, log in logs.items()}
    for p, log in logs.items():
        fold(view, store, workers[p], log[: cuts[p]])

    staged = Store()
    fences = backfill(view, staged, {p: worker.fence for p, worker in workers.items()}, history, logs, buckets)
    for p, log in logs.items():  # the old generation goes on meanwhile, for as long as it likes
        fold(view, store, workers[p], log[cuts[p] : rng.randrange(cuts[p], len(log) + 1)])
    store.write(list(staged.values), list(staged.values.values()))
    for p, log in logs.items():
        worker = ViewFold(view, p, ViewState(view), fences[p])
        fold(view, store, worker, log[rng.randrange(cuts[p] + 1) :])

    _assert_oracle(view, store, history)


def _assert_oracle(view: CompiledView, store: Store, history: History) -> None:
    [key] = view.keys
    for entity in sorted({event[key] for event in history.events} - {None}):
        mine = [event for event in history.events if event[key] == entity]
        latest = max(event["event_time"] for event in mine)
        value = store.values[entity.replace("\\", "\\\\").replace("|", "\\|")]
        for at in (latest, latest + 17 * MINUTE, latest + 3 * HOUR):
            reading = ViewReader(view).read([value], np.array([at]), 0)
            got = {column.name: column.to_list()[0] for column in reading.columns}
            sizes = {f.name: magnitude(f, mine, at) for f in ORACLE if f.op == "mean"}
            assert_values(ORACLE, evaluate(ORACLE, mine, at), got, magnitudes=sizes, label=f"{entity} at {at}")
