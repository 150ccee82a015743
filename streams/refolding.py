"""State from the lake: a view's values as folding its log would have left them, computed from stored events.

The events are divided into buckets by a hash of their entity keys, on disk, so that each bucket has whole entities and
fits into memory. What a bucket's fold gives depends on nothing but the events up to the base's vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import MIN_INSTANT
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.engine.columns import LOADED, SEQ_BITS, EventBatch, canonical_keys, event_batch
from featurestore.engine.placement import partitions_of
from featurestore.engine.sections import NOBODY
from featurestore.engine.state import Outcome, ViewState
from featurestore.offline.events import VISIBLE_TIME
from featurestore.offline.files import OFFSET, PARTITION
from featurestore.online.fences import Tally
from featurestore.online.keys import MAX_KEY_BYTES
from streams.folding import NOTHING, Count, count_rows, counts_of

FOLD_ROWS = 100_000
"""Rows folded at once."""
STATE_BYTES = 256 << 20
"""Of the entities that are folded at once."""


@dataclass(frozen=True, slots=True)
class Base:
    """Where a generation of a view begins."""

    generation: int
    vector: Mapping[int, int]
    """Source partition → last source offset that is folded."""
    offsets: Mapping[int, int]
    """Entity partition → the log offset that its values stand at."""
    shuffled: int | None
    """Partitions of the shuffle topic; None where the view is aligned, and an entity belongs to the source partition
    that its events come from."""
    vectors: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    """By entity partition of a shuffle, the vector that its values end at; empty where all end at `vector`."""
    alive_since: int = MIN_INSTANT
    """An entity without an event that came since (µs) has no value any more: it had left the store by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Refolded:
    """Some whole entities."""

    keys: list[str]
    values: list[bytes]
    tallies: dict[int, Tally]
    """By entity partition; together they count every event of the bucket once."""
    events: int


class Buckets:
    """Events of a source up to a vector, by entity: every event is in exactly one bucket.

    Use as a context manager. The files have no names, so that nothing is left behind, however the process ends.
    """

    def __init__(self, keys: Iterable[str], vector: Mapping[int, int], count: int, wanted: Iterable[int]) -> None:
        """Only the buckets that are `wanted` are kept."""
        self._keys, self._vector, self._count = tuple(keys), vector, count
        self._wanted = frozenset(wanted)
        self._open = ExitStack()
        self._files: dict[int, IO[bytes]] = {}
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows as `scan_events` gives them."""
        batch = batch.filter(pa.array(_covered(batch, self._vector)))
        if not batch.num_rows:
            return
        bucket = partitions_of(canonical_keys([batch.column(name) for name in self._keys]), self._count, 0)
        order = np.argsort(bucket, kind="stable")
        held, starts = np.unique(bucket[order], return_index=True)
        grouped = batch.take(pa.array(order))
        for number, start, end in zip(held.tolist(), starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            if number in self._wanted:
                self._writer(number, batch.schema).write_batch(grouped.slice(start, end - start))

    def read(self, bucket: int) -> pa.Table | None:
        """All rows of a bucket, which is then forgotten; None where it has none. Nothing can be added afterwards."""
        writer = self._writers.pop(bucket, None)
        if writer is None:
            return None
        writer.close()
        file = self._files.pop(bucket)
        file.seek(0)
        with pa.ipc.open_stream(file) as reader:
            rows = reader.read_all()
        file.close()
        return rows

    def _writer(self, bucket: int, schema: pa.Schema) -> pa.RecordBatchStreamWriter:
        if bucket not in self._writers:
            self._files[bucket] = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 — by the stack
            self._writers[bucket] = pa.ipc.new_stream(self._files[bucket], schema)
        return self._writers[bucket]


def _covered(batch: pa.RecordBatch, vector: Mapping[int, int]) -> np.ndarray:
    """`bool[n]`: rows at or below their partition's offset in the vector."""
    partition = batch.column(PARTITION).to_numpy().astype(np.int64)
    limits = np.full(int(max([*vector, int(partition.max(initial=0))])) + 1, NOTHING, np.int64)
    limits[list(vector)] = list(vector.values())
    # What was loaded is in no log: all of it is covered.
    covered: np.ndarray = (partition == LOADED) | (batch.column(OFFSET).to_numpy() <= limits[partition])
    return covered


def _within(batch: EventBatch, homes: np.ndarray, vectors: Mapping[int, Mapping[int, int]]) -> np.ndarray:
    """`bool[n]`: rows at or below the offset that the vector of their entity partition has for their own."""
    origin, offset = batch.seq >> SEQ_BITS, batch.seq & ((1 << SEQ_BITS) - 1)
    sources = max([int(origin.max(initial=0)), *(s for vector in vectors.values() for s in vector)]) + 1
    limits = np.full((max(vectors) + 1, sources), NOTHING, np.int64)
    for home, vector in vectors.items():
        limits[home, list(vector)] = list(vector.values())
    within: np.ndarray = (origin == LOADED) | (offset <= limits[homes, np.maximum(origin, 0)])
    return within


@dataclass(eq=False)
class Refold:
    """Folds buckets of one view's events."""

    view: CompiledView
    source: CompiledSource
    """Of the current contract: what the events are read with."""
    base: Base
    xp: Any = np
    state_bytes: int = STATE_BYTES
    _state: ViewState = field(init=False)

    def __post_init__(self) -> None:
        self._state = ViewState(self.view, budget_bytes=self.state_bytes, xp=self.xp)

    @property
    def columns(self) -> list[str]:
        """What `scan_events` must give."""
        return list(dict.fromkeys([*self.view.keys, *self._state.layout.columns]))

    def fold(self, rows: pa.Table) -> Iterator[Refolded]:
        """The entities of a bucket, some at a time, so that the state of all need not fit into memory."""
        batch = event_batch(self.source, tuple(self.view.keys), rows.take(pa.array(_in_order(rows))))
        homes, refused = self._homes(batch)
        if self.base.vectors:
            mine = np.flatnonzero(_within(batch, homes, self.base.vectors))
            batch, homes, refused = batch.take(mine), homes[mine], refused[mine]
        # Rows without a key are counted with the first entities.
        part = np.maximum(batch.entities.codes, 0) // self._state.limit
        order = np.argsort(part, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            yield self._fold_group(batch.take(group), homes[group], refused[group])

    def _fold_group(self, batch: EventBatch, homes: np.ndarray, refused: np.ndarray) -> Refolded:
        counts = np.full(len(batch), Count.DEAD_LETTERED)
        mine = np.flatnonzero(~refused)
        events = batch.take(mine) if refused.any() else batch
        self._state.clear()
        names = events.entities.names
        self._state.load(names, [None] * len(names), NOTHING)
        found, latest = np.full(len(names), None, object), np.zeros(len(names), np.int64)
        came, last = _instants(events), np.full(len(names) + 1, MIN_INSTANT)
        for start in range(0, len(events), FOLD_ROWS):
            some = np.arange(start, min(start + FOLD_ROWS, len(events)))
            # The state takes these for log offsets: any ascending numbers say that no row was here before.
            folded = self._state.fold(events.take(some), some)
            counts[mine[some]] = counts_of(folded.outcome)
            found[folded.slots], latest[folded.slots] = folded.keys, folded.latest
            taken = some[folded.outcome != Outcome.FILTERED]
            np.maximum.at(last, events.entities.codes[taken], came[taken])
        slots = np.flatnonzero((found != None) & (last[:-1] >= self.base.alive_since))  # noqa: E711 — by element
        homes_of = _by_entity(events, homes[mine])
        home = np.fromiter(map(homes_of.__getitem__, found[slots]), np.int64, slots.size)
        keys, values, newest = list[str](), list[bytes](), dict[int, int]()
        for partition in np.unique(home).tolist():
            here = slots[home == partition]
            keys += found[here].tolist()
            values += self._encode(here, partition)
            newest[partition] = int(latest[here].max())
        places = homes if self.base.shuffled is not None else batch.seq >> SEQ_BITS
        return Refolded(keys, values, _tallies(batch, places, counts, newest), len(batch))

    def _encode(self, slots: np.ndarray, partition: int) -> list[bytes]:
        offset = NOTHING if partition == NOBODY else self.base.offsets[partition]
        return self._state.encode(slots, generation=self.base.generation, partition=partition, offset=offset)

    def _homes(self, batch: EventBatch) -> tuple[np.ndarray, np.ndarray]:
        """`int64[n]`: the entity partition that each row belongs to. `bool[n]`: rows that became dead letters of this
        view when they came, and are in none of its values."""
        origin = batch.seq >> SEQ_BITS
        long = pc.greater(pc.binary_length(batch.keys), MAX_KEY_BYTES).fill_null(False).to_numpy(zero_copy_only=False)
        if self.base.shuffled is not None:
            homes = partitions_of(batch.keys, self.base.shuffled, NOTHING)
            return np.where(homes == NOTHING, origin % self.base.shuffled, homes), long
        # An entity belongs to the partition of the first event of the topic that gave it a value. From then on those of
        # others were refused; what came before concerned nobody. Loaded events have no partition to tell.
        codes, count = batch.entities.codes, len(batch.entities.names)
        claims = np.full(count + 1, len(batch))
        rows = self._concerned(batch, origin)
        rows = rows[origin[rows] != LOADED]
        np.minimum.at(claims, codes[rows], rows)
        claims[-1] = len(batch)
        homes = np.append(origin, NOBODY)[claims][codes]
        strays = (homes != origin) & (origin != LOADED) & (np.arange(len(batch)) > claims[codes])
        return homes, long | strays

    def _concerned(self, batch: EventBatch, origin: np.ndarray) -> np.ndarray:
        """Rows that give their entity a value. Asked only of entities with events in several partitions, which are
        somebody's mistake; all rows of the others are given."""
        codes, count = batch.entities.codes, len(batch.entities.names)
        least, most = np.full(count + 1, np.iinfo(np.int64).max), np.full(count + 1, NOTHING)
        came = origin != LOADED
        np.minimum.at(least, codes[came], origin[came])
        np.maximum.at(most, codes[came], origin[came])
        doubtful = (least < most)[codes] & (codes >= 0)
        rows = np.flatnonzero(doubtful)
        if not rows.size:
            return np.flatnonzero(codes >= 0)
        strays = batch.take(rows)
        self._state.clear()
        self._state.load(strays.entities.names, [None] * len(strays.entities.names), NOTHING)
        outcome = self._state.fold(strays, np.arange(rows.size)).outcome
        return np.sort(np.concatenate([np.flatnonzero(~doubtful & (codes >= 0)), rows[outcome != Outcome.FILTERED]]))


def _in_order(rows: pa.Table) -> np.ndarray:
    """As they came, as far as that is known. Values do not depend on it; which events are late, and who writes an
    entity first, does."""
    columns = (rows[OFFSET], rows[PARTITION], rows[VISIBLE_TIME].cast(pa.int64()))
    return np.lexsort([column.to_numpy() for column in columns])


def _instants(events: EventBatch) -> np.ndarray:
    """`int64[n]` µs: when each event came. One that was loaded counts as if it had come when it happened: an entity of
    long ago, whose windows are empty, is not stored for the file's sake."""
    came = events.columns[VISIBLE_TIME].cast(pa.int64()).to_numpy()
    instants: np.ndarray = np.where(events.seq >> SEQ_BITS == LOADED, events.time, came)
    return instants


def _by_entity(events: EventBatch, homes: np.ndarray) -> dict[str, int]:
    """Canonical key → entity partition."""
    names, codes = events.entities.names, events.entities.codes
    home_of = np.full(len(names) + 1, NOTHING, np.int64)
    home_of[codes] = homes
    return dict(zip(names, home_of.tolist(), strict=False))


def _tallies(batch: EventBatch, places: np.ndarray, counts: np.ndarray, newest: Mapping[int, int]) -> dict[int, Tally]:
    """`places` has the entity partition that counts each row: where it was read, also where its entity's value
    belongs to another. Loaded rows were read nowhere, and no log's ledger counts them."""
    origin = batch.seq >> SEQ_BITS
    came = origin != LOADED
    tallies = {}
    for partition in {*np.unique(places[came]).tolist(), *newest} - {NOBODY}:
        here = (places == partition) & came
        ledger: dict[int, list[int]] = {}
        count_rows(ledger, origin[here], counts[here])
        tallies[partition] = Tally(ledger, max(0, newest.get(partition, 0)))
    return tallies
