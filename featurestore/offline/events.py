"""Events in the lake: the columns the store adds to them, and reading back only what is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import and_

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from obstore.exceptions import BaseError

from featurestore.clock import DAY, MIN_INSTANT
from featurestore.contracts.contract import Contract
from featurestore.definitions.compiled import CompiledSource
from featurestore.engine.columns import ARROW_TYPES, LOADED
from featurestore.errors import AtOutOfRange, Unavailable
from featurestore.offline.files import EVENT_TIME, MONTH, OFFSET, PARTITION, READ
from featurestore.offline.lake import Lake, Snapshot

VISIBLE_TIME = "visible_time"
INSTANT = pa.timestamp("us", "UTC")

_SYSTEM = {PARTITION: pa.int32(), OFFSET: pa.int64(), EVENT_TIME: INSTANT, VISIBLE_TIME: INSTANT, MONTH: pa.string()}
_FOOTERS_AT_ONCE = 16
_DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError, BaseError)
"""What reading a file raises that is not what was written, or not there."""


def events_table(source: str) -> str:
    return f"events/{source}"


def system_columns(
    batch: pa.Table | pa.RecordBatch,
    partition: int | np.ndarray,
    offsets: np.ndarray,
    event_time: str,
    visible_time: int | np.ndarray,
) -> pa.Table:
    """A decoded batch with the columns that the lake adds, its rows in the order they came.

    `offsets` are the rows' offsets in the source topic; `event_time` names the contract's column (timestamp, no nulls);
    `visible_time` is the writer's instant, in microseconds. `partition` and it are one number, or one for each row.
    """
    rows = batch.num_rows
    table = pa.table(batch)
    instants = _whole(table[event_time]).cast(INSTANT)
    added = {
        PARTITION: pa.array(np.broadcast_to(np.asarray(partition, np.int32), rows)),
        OFFSET: pa.array(np.asarray(offsets, np.int64)),
        EVENT_TIME: instants,
        VISIBLE_TIME: pa.array(np.broadcast_to(np.asarray(visible_time, np.int64), rows)).cast(INSTANT),
        MONTH: months(instants.view(pa.int64()).to_numpy()),
    }
    kept = {name: table[name] for name in table.column_names if name not in added}
    return pa.table(kept | added)


def in_time_order(rows: pa.Table) -> pa.Table:
    """Rows by event time, then by their place in the log: the order in which the lake keeps them."""
    columns = (rows[OFFSET], rows[PARTITION], rows[EVENT_TIME].cast(pa.int64()))
    return rows.take(pa.array(np.lexsort([column.to_numpy() for column in columns])))


def months(instants: np.ndarray) -> pa.Array:
    """`YYYY-MM` of each instant (int64 µs)."""
    # Few days are distinct: turning each into text once is ten times cheaper than turning each row.
    days, row = np.unique(np.floor_divide(instants, DAY), return_inverse=True)
    texts = days.astype("datetime64[D]").astype("datetime64[M]").astype(str)
    return pa.array(texts.tolist(), pa.string()).take(pa.array(row))


def read_events(
    lake: Lake,
    source: CompiledSource,
    columns: Sequence[str],
    *,
    keys: Mapping[str, pa.Array] | None = None,
    until: int | None = None,
    version: int | None = None,
    limit: int | None = None,
    visible_time: bool = False,
) -> pa.Table:
    """Contract columns of the source's events, with its event time, `_partition` and `_offset`, and `visible_time`
    where that is wanted; each event once.

    `keys` keeps the rows whose key columns have one of the values given for each (of a composite key that may be more
    than the entities asked for); `until` (µs) keeps those at or before that instant. Files that cannot hold any such
    row are not opened. Where a file is older than a column, the column has the contract's default. No such table:
    no rows. More than `limit` rows: AtOutOfRange.
    """
    schema = _schema_of(source, columns)
    if visible_time:
        schema = schema.append(pa.field(VISIBLE_TIME, INSTANT))
    snapshot = lake.snapshot(events_table(source.name), version)
    paths = [] if snapshot is None else _paths(snapshot, until)
    if snapshot is None or not paths:
        return schema.empty_table()
    scan = _Scan(snapshot, source.contract, schema, keys or {}, until)
    found: list[pa.RecordBatch] = []
    count = 0
    try:
        for batch in scan.batches(paths):
            found.append(batch)
            count += batch.num_rows
            if limit is not None and count > limit:
                raise AtOutOfRange(
                    f"these entities have more than {limit:,} events of {source.name} to go through",
                    hint="ask for fewer entities at a time, or use: featurestore export",
                    field="at",
                )
    except _DAMAGE as error:
        raise _unreadable(lake, source, scan.first_damaged(paths), error) from error
    return pa.Table.from_batches(found, schema)


def scan_events(
    lake: Lake,
    source: CompiledSource,
    columns: Sequence[str],
    *,
    version: int | None = None,
    until: int | None = None,
    paths: Sequence[str] | None = None,
    visible_time: bool = True,
) -> Iterator[pa.RecordBatch]:
    """As `read_events`, a batch at a time, in no order: for more than memory holds.

    `paths` are some of `event_files`; without them, all.
    """
    schema = _schema_of(source, columns)
    if visible_time:
        schema = schema.append(pa.field(VISIBLE_TIME, INSTANT))
    snapshot = lake.snapshot(events_table(source.name), version)
    if snapshot is None:
        return
    scan = _Scan(snapshot, source.contract, schema, {}, until)
    chosen = _paths(snapshot, until) if paths is None else paths
    try:
        yield from scan.batches(chosen)
    except _DAMAGE as error:
        raise _unreadable(lake, source, scan.first_damaged(chosen), error) from error


def event_files(
    lake: Lake, source: CompiledSource, *, version: int | None = None, until: int | None = None
) -> dict[str, int]:
    """Files that may hold events at or before `until`, and how many rows each has; by their first event's time."""
    snapshot = lake.snapshot(events_table(source.name), version)
    if snapshot is None:
        return {}
    files = snapshot.files
    rows = dict(zip(files["path"].to_pylist(), files["num_records"].to_pylist(), strict=True))
    paths = _paths(snapshot, until)
    if "min.event_time" in files.column_names:
        times = files["min.event_time"].cast(INSTANT).cast(pa.int64())
        first = dict(zip(rows, times.to_pylist(), strict=True))
        paths.sort(key=lambda path: (first[path] or 0, path))
    return {path: rows[path] or 0 for path in paths}


def _schema_of(source: CompiledSource, columns: Sequence[str]) -> pa.Schema:
    names = list(dict.fromkeys([*columns, source.event_time]))
    schema = pa.schema([(n, ARROW_TYPES[source.contract.field(n).dtype]) for n in names])
    return schema.append(pa.field(PARTITION, pa.int32())).append(pa.field(OFFSET, pa.int64()))


def count_events(lake: Lake, source: CompiledSource, version: int | None = None) -> int:
    """How many events of the source the lake holds: from the log, no file is opened."""
    snapshot = lake.snapshot(events_table(source.name), version)
    return 0 if snapshot is None else pc.sum(snapshot.files["num_records"]).as_py() or 0


def newest_before(lake: Lake, source: CompiledSource, begins: Mapping[int, int]) -> int | None:
    """The latest event time (µs) of what the lake has of source partitions before the offsets given for each; None
    where it has nothing. Raises Unavailable."""
    snapshot = lake.snapshot(events_table(source.name)) if begins else None
    if snapshot is None:
        return None
    limits = np.zeros(max(begins) + 1, np.int64)
    limits[list(begins)] = list(begins.values())
    newest: int | None = None
    for batch in scan_events(lake, source, (), paths=_starting_before(snapshot, int(limits.max())), visible_time=False):
        partition = batch.column(PARTITION).to_numpy().astype(np.int64)
        known = (partition >= 0) & (partition < limits.size)
        early = known & (batch.column(OFFSET).to_numpy() < limits[np.where(known, partition, 0)])
        if early.any():
            times = batch.column(source.event_time).cast(INSTANT).view(pa.int64()).to_numpy()
            newest = max(int(times[early].max()), MIN_INSTANT if newest is None else newest)
    return newest


def _starting_before(snapshot: Snapshot, offset: int) -> list[str]:
    """Files that may hold rows at offsets below this one."""
    files = snapshot.files
    if f"min.{OFFSET}" in files.column_names:
        files = files.filter(pc.less(files[f"min.{OFFSET}"], offset).fill_null(True))
    return sorted(files["path"].to_pylist())


def streamed_since(lake: Lake, source: CompiledSource) -> int | None:
    """The earliest event time (µs) of what came from the topic, as far as files' statistics tell: no later than it is.
    None where nothing did."""
    snapshot = lake.snapshot(events_table(source.name))
    if snapshot is None or not snapshot.files.num_rows or f"max.{PARTITION}" not in snapshot.files.column_names:
        return None
    files = snapshot.files
    streamed = files.filter(pc.greater(files[f"max.{PARTITION}"], LOADED).fill_null(True))
    least = pc.min(streamed["min.event_time"].cast(INSTANT)).cast(pa.int64()).as_py()
    return None if least is None else int(least)


def _paths(snapshot: Snapshot, until: int | None) -> list[str]:
    """Files that may hold rows at or before `until`, in an order that depends on their names only."""
    files = snapshot.files
    if until is not None and "min.event_time" in files.column_names:
        early = pc.less_equal(files["min.event_time"], pa.scalar(until, pa.int64()).cast(INSTANT))
        files = files.filter(early.fill_null(True))
    paths: list[str] = files["path"].to_pylist()
    return sorted(paths)


class _Scan:
    """Reads files that may lack columns the contract has gained since."""

    def __init__(
        self,
        snapshot: Snapshot,
        contract: Contract,
        schema: pa.Schema,
        keys: Mapping[str, pa.Array],
        until: int | None,
    ) -> None:
        self._files = snapshot.place
        self._schema = schema
        self._keys, self._until = keys, until
        stored = [field for field in snapshot.schema if field.name not in schema.names]
        self._file_schema = pa.schema([*schema, *stored])
        fields = [contract.field(name) for name in schema.names if name in contract.names]
        self._defaults = {f.name: f.default for f in fields if f.has_default and f.default is not None}

    def batches(self, paths: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for fragments in self._files.fragments(paths):
            for lacking, group in self._by_missing(fragments).items():
                yield from self._read(group, lacking)

    def first_damaged(self, paths: Sequence[str]) -> str:
        """The first of the files that cannot be read by itself; empty where each can. Arrow's errors name none."""
        for path in paths:
            try:
                for _ in self.batches([path]):
                    pass
            except _DAMAGE:
                return path
        return ""

    def _read(self, group: list[pads.ParquetFileFragment], lacking: frozenset[str]) -> Iterator[pa.RecordBatch]:
        dataset = pads.FileSystemDataset(group, self._file_schema, READ)
        projection = {name: self._column(name, lacking) for name in self._schema.names}
        for batch in dataset.to_batches(columns=projection, filter=self._condition(lacking), batch_size=1 << 17):
            if batch.num_rows:
                yield batch.cast(self._schema)

    def _condition(self, lacking: frozenset[str]) -> pads.Expression | None:
        parts = [self._column(name, lacking).isin(values) for name, values in self._keys.items()]
        if self._until is not None:
            parts.append(pads.field(EVENT_TIME) <= pa.scalar(self._until, pa.int64()).cast(INSTANT))
        return reduce(and_, parts) if parts else None

    def _column(self, name: str, lacking: frozenset[str]) -> pads.Expression:
        if name not in lacking:
            return pads.field(name)
        kind = self._schema.field(name).type
        default = pa.scalar(self._defaults[name])
        return pads.scalar(default.cast(kind) if default.type != kind else default)

    def _by_missing(
        self, fragments: Sequence[pads.ParquetFileFragment]
    ) -> dict[frozenset[str], list[pads.ParquetFileFragment]]:
        """Files by which of the columns with a default they were written without."""
        if not self._defaults:
            return {frozenset(): list(fragments)}
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            schemas = pool.map(lambda fragment: fragment.physical_schema, fragments)
        groups: dict[frozenset[str], list[pads.ParquetFileFragment]] = {}
        for fragment, schema in zip(fragments, schemas, strict=True):
            groups.setdefault(frozenset(self._defaults) - set(schema.names), []).append(fragment)
        return groups


def _unreadable(lake: Lake, source: CompiledSource, path: str, error: Exception) -> Unavailable:
    text = " ".join(str(error).split())[:300]
    where = f"{path}: " if path else ""
    hint = "a file of the lake is damaged or gone: restore it, or load its events again from the topic"
    return Unavailable("lake", f"cannot read {events_table(source.name)} in {lake.url}: {where}{text}", hint=hint)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
