"""What an export computes, as data that other processes can take: views by the events they share, and their answers.

A lot is all views of one source by one entity key. The spine's distinct keys are numbered; events of other entities
are left out as they are read, and from then on an entity is its number. Numbers also divide the work: bucket b of B has
the entities whose number is b modulo B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.engine.columns import ARROW_TYPES, SEQ_BITS, EventBatch, FeatureColumn, canonical_keys
from featurestore.engine.history import evaluate_history
from featurestore.engine.layout import layout_of
from featurestore.engine.placement import partitions_of
from featurestore.offline.events import VISIBLE_TIME, events_table, scan_events
from featurestore.offline.files import OFFSET, PARTITION
from featurestore.offline.history import columns_of, identity_of
from featurestore.offline.lake import Lake
from featurestore.offline.visibility import Known, Visibility, visible_table

ENTITY = "_entity"
ROW, AT = "_row", "_at"
NUMBERED_ROWS = 1 << 19

ROWS = pa.schema({ROW: pa.int64(), ENTITY: pa.int64(), AT: pa.int64()})
"""Rows of the spine, as a lot is asked about them: place in the spine, number of the entity (null: none), µs."""


@dataclass(frozen=True, slots=True, eq=False)
class Lot:
    views: tuple[CompiledView, ...]
    """Narrowed to the features that are wanted."""

    @property
    def source(self) -> CompiledSource:
        return self.views[0].source

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.views[0].keys)

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of an event."""
        return columns_of(self.views)

    @property
    def kept(self) -> tuple[str, ...]:
        """What is kept of an event when its entity has a number: keys only where features look at them."""
        wanted = {name for view in self.views for name in layout_of(view).columns} | {self.source.event_time}
        return tuple(name for name in dict.fromkeys([*self.columns, self.source.event_time]) if name in wanted)

    def named(self, columns: pa.Table | Mapping[str, pa.Array]) -> pa.Array:
        """What tells entities apart, null where a part is null: canonical keys, or the one key column as it is."""
        parts = [_whole(columns[name]) for name in self.keys]
        return canonical_keys(parts) if len(parts) > 1 else parts[0]

    @property
    def features(self) -> list[str]:
        return [f"{view.name}.{feature}" for view in self.views for feature in view.order]

    def event_bytes(self, as_served: bool) -> int:
        """About what an event costs while the lot is evaluated."""
        states = [len(group.stored) for view in self.views for group in layout_of(view).groups]
        return 120 + 24 * len(self.kept) + 40 * max(1, sum(states)) + (90 * len(self.views) if as_served else 0)

    def held_bytes(self, as_served: bool) -> int:
        """About what an event costs while others are evaluated."""
        return 24 + 12 * len(self.kept) + (8 * len(self.views) if as_served else 0)

    def answer_bytes(self) -> int:
        """About what the answers to a row of the spine take."""
        return 8 + 18 * len(self.features)

    def row_bytes(self) -> int:
        """About what a row of the spine costs while the lot is evaluated."""
        return 120 + 110 * len(self.features)


def lots_of(views: Sequence[CompiledView]) -> tuple[Lot, ...]:
    groups: dict[tuple[object, ...], list[CompiledView]] = {}
    for view in views:
        groups.setdefault((*identity_of(view.source), *view.keys), []).append(view)
    return tuple(Lot(tuple(group)) for group in groups.values())


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What every process that works on an export must know."""

    lake: str
    lots: tuple[Lot, ...]
    versions: Mapping[str, int]
    """Table → the Delta version that is read."""
    until: int
    """The spine's latest instant (µs): later events count nowhere."""
    as_served: bool
    as_of: bool
    """Whether answers say which event time each value stands on."""
    buckets: int

    def version(self, lot: Lot) -> int | None:
        return self.versions.get(events_table(lot.source.name))


@dataclass(eq=False)
class Reading:
    """Reads the events of a lot, with their entities' numbers."""

    job: Job
    lot: Lot
    entities: pa.Array
    """The distinct keys of the spine, by number; as `Lot.named` has them."""
    known: dict[str, Known] = field(default_factory=dict)
    """By view id, how the instants of what was read are known; of `as_served`."""

    def __post_init__(self) -> None:
        self._lake = Lake(self.job.lake)
        self._records: list[tuple[CompiledView, Visibility]] = []
        self._homes: dict[int, np.ndarray] = {}
        self._turn = Lock()
        if self.job.as_served:
            self._records = [
                (view, Visibility.read(self._lake, view, self.job.versions.get(visible_table(view))))
                for view in self.lot.views
            ]

    def batches(self, paths: Sequence[str]) -> Iterator[pa.Table]:
        """Events of the spine's entities in these files: `Lot.kept`, `_partition`, `_offset`, `_entity`, and for
        `as_served` the instants by view id."""
        return map(self._numbered, _gathered(self._scanned(paths)))

    def divided(self, paths: Sequence[str]) -> Iterator[Callable[[], list[pa.Table]]]:
        """As `batches`; each is numbered, and divided into the job's buckets, by who calls for it, in any thread."""
        return (partial(self._divided, events) for events in _gathered(self._scanned(paths)))

    def _scanned(self, paths: Sequence[str]) -> Iterator[pa.RecordBatch]:
        lot, job = self.lot, self.job
        return scan_events(self._lake, lot.source, lot.columns, version=job.version(lot), until=job.until, paths=paths,
                           visible_time=job.as_served)  # fmt: skip

    def _divided(self, events: pa.Table) -> list[pa.Table]:
        return by_bucket(self._numbered(events), self.job.buckets)

    def _numbered(self, events: pa.Table) -> pa.Table:
        numbers = pc.index_in(self.lot.named(events), value_set=self.entities)
        kept = events.drop_columns([name for name in self.lot.columns if name not in self.lot.kept])
        if numbers.null_count:
            mine = numbers.is_valid()
            kept, numbers = kept.filter(mine), numbers.filter(mine)
        entity = numbers.to_numpy(zero_copy_only=False).astype(np.int64)
        kept = kept.append_column(ENTITY, pa.array(entity))
        if not self.job.as_served:
            return kept
        for view, record in self._records:
            kept = kept.append_column(view.id, pa.array(self._instants(view, record, kept, entity)))
        return kept.drop_columns([VISIBLE_TIME])

    def _instants(self, view: CompiledView, record: Visibility, events: pa.Table, entity: np.ndarray) -> np.ndarray:
        with self._turn:
            for count in record.placings:
                if count not in self._homes:
                    keys = self.entities if len(self.lot.keys) > 1 else canonical_keys([self.entities])
                    self._homes[count] = partitions_of(keys, count, -1)
        taken = events[VISIBLE_TIME].cast(pa.int64()).to_numpy()
        instants, known = record.of_rows(_seq(events), taken, lambda count: self._homes[count][entity])
        with self._turn:
            self.known[view.id] = self.known.get(view.id, Known()) + known
        return instants


def by_bucket(rows: pa.Table, buckets: int) -> list[pa.Table]:
    """The rows of each bucket, in their order, with memory of their own; those without an entity are in the first."""
    if buckets == 1:
        return [rows]
    bucket = rows[ENTITY].fill_null(0).to_numpy() % buckets
    return [rows.filter(pa.array(bucket == number)) for number in range(buckets)]


def events_schema(job: Job, lot: Lot) -> pa.Schema:
    """Of what `Reading.batches` gives."""
    contract = lot.source.contract
    fields = [pa.field(name, ARROW_TYPES[contract.field(name).dtype]) for name in lot.kept]
    fields += [pa.field(PARTITION, pa.int32()), pa.field(OFFSET, pa.int64()), pa.field(ENTITY, pa.int64())]
    return pa.schema(fields + [pa.field(view.id, pa.int64()) for view in lot.views if job.as_served])


def evaluate(job: Job, lot: Lot, events: pa.Table, rows: pa.Table) -> pa.Table:
    """The answers to `rows` (as `ROWS`, in any order), in their order: their `_row`, then for each feature its value,
    its status, and where the job says so its as-of. `events` are as `Reading.batches` gives them."""
    at = rows[AT].to_numpy()
    asked = pc.divide(_whole(rows[ENTITY]), job.buckets)
    columns = {name: _whole(events[name]) for name in events.column_names}
    # Within a bucket numbers are dense again: the smaller they are, the further instants fit beside them into 64 bits.
    entity = pc.divide(columns[ENTITY], job.buckets)
    time = columns[lot.source.event_time].cast(pa.timestamp("us", "UTC")).view(pa.int64()).to_numpy()
    batch = EventBatch(entity, time, _seq(events), columns)
    answers: dict[str, pa.Array] = {ROW: rows[ROW]}
    for view in lot.views:
        visible = events[view.id].to_numpy() if job.as_served else None
        for column in evaluate_history(view, batch, asked, at, visible):
            answers |= answer_columns(f"{view.name}.{column.name}", column, as_of=job.as_of)
    return pa.table(answers)


def _seq(events: pa.Table) -> np.ndarray:
    seq: np.ndarray = (events[PARTITION].to_numpy().astype(np.int64) << SEQ_BITS) | events[OFFSET].to_numpy()
    return seq


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """More rows at a time: what is done once for each of the entities is done less often."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(part.num_rows for part in held) >= NUMBERED_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def value_name(feature: str) -> str:
    return f"{feature}/value"


def status_name(feature: str) -> str:
    return f"{feature}/status"


def as_of_name(feature: str) -> str:
    return f"{feature}/as_of"


def answer_columns(name: str, column: FeatureColumn, *, as_of: bool) -> dict[str, pa.Array]:
    """What is kept of a feature until rows are put together."""
    told = {value_name(name): column.to_arrow(), status_name(name): pa.array(column.status)}
    return told | ({as_of_name(name): pa.array(column.as_of)} if as_of else {})
