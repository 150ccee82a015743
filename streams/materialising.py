"""Feature rows for the lake: at each of its intervals, one row per entity that changed, as it can then be read online.

A batch only notes which entities it changed. What their rows hold is read from the online store when they are due, so
an entity that changes in every batch costs one row per interval, and no row says what nobody could have read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import EventBatch
from featurestore.engine.packing import headers
from featurestore.engine.read import ViewReader
from featurestore.engine.sections import LATEST, OFFSET
from featurestore.offline.events import in_time_order
from featurestore.offline.materialised import feature_rows, features_table
from streams.appending import Appender
from streams.visibility import VisibleRows
from streams.wiring import Parts

COMPACT_ROWS = 200_000
"""Noted events after which a partition keeps only the entities: the lake may be away for long."""
READ_KEYS = 1_000
"""Entities that are read and evaluated at a time."""


class Changes:
    """The entities of one view's partition that changed since their rows were last taken."""

    def __init__(self, view: CompiledView) -> None:
        self._view = view
        self._names = ("", *view.keys)
        self._events: list[pa.Table] = []
        self._touched: list[Sequence[str]] = []
        self._held = 0
        self._offset = -1

    def note(self, events: EventBatch, touched: Sequence[str], offset: int) -> None:
        """`touched` are canonical keys that occur among the events; all is acknowledged up to log offset `offset`."""
        self._offset = offset
        if not touched:
            return
        columns = [events.keys, *(events.columns[name] for name in self._view.keys)]
        self._events.append(pa.table(columns, names=self._names))
        self._touched.append(touched)
        self._held += len(events)
        if self._held > COMPACT_ROWS:
            entities = self._entities()
            self._events, self._touched = [entities], [entities.column(0).to_pylist()]
            self._held = 0

    def take(self) -> tuple[pa.Table, int] | None:
        """Each changed entity once (its canonical key, then its key columns) and the offset; None where none has."""
        if not self._touched:
            return None
        entities = self._entities()
        self._events, self._touched, self._held = [], [], 0
        return entities, self._offset

    def put_back(self, entities: pa.Table) -> None:
        """Entities that were taken, and whose rows could not be handed over."""
        self._events.append(entities)
        self._touched.append(entities.column(0).to_pylist())

    def _entities(self) -> pa.Table:
        events = pa.concat_tables(self._events).combine_chunks()
        touched = pa.array(chain.from_iterable(self._touched), pa.string()).unique()
        return events.take(pc.index_in(touched, value_set=events.column(0).combine_chunks()))


class FeatureRows:
    """The materialised rows of all views that this worker folds, each view in its own table; and beside them the record
    of when events became readable."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.visible = VisibleRows(parts)
        self._readers: dict[str, ViewReader] = {}
        self._changes: dict[str, dict[int, Changes]] = {}
        self._appenders: dict[str, Appender[int, pa.Table]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, view: CompiledView, partition: int) -> Changes:
        """Where a partition that is opened notes what it changes. What an earlier owner here noted is kept."""
        if view.id not in self._appenders:
            self._start(view)
        return self._changes[view.id].setdefault(partition, Changes(view))

    def check(self, view: CompiledView) -> None:
        """Raises what the lake refused the view's rows for."""
        self._appenders[view.id].check()
        self.visible.check(view)

    async def flush(self) -> None:
        await asyncio.gather(self.visible.flush(), *(appender.flush() for appender in self._appenders.values()))

    def stop(self) -> None:
        self.visible.stop()
        for task in self._tasks:
            task.cancel()

    def _start(self, view: CompiledView) -> None:
        async def collect() -> None:
            await self._collect(view)

        appender = Appender[int, pa.Table](
            self._parts.lake,
            features_table(view),
            view.id,
            self._parts.patience,
            _in_time_order,
            _nothing_more,
            interval=self._parts.settings.lake_interval_seconds,
            collect=collect,
        )
        self._readers[view.id], self._changes[view.id] = ViewReader(view), {}
        self._appenders[view.id] = appender
        self._tasks.append(asyncio.create_task(appender.run()))

    async def _collect(self, view: CompiledView) -> None:
        for partition, changes in list(self._changes[view.id].items()):
            taken = changes.take()
            if taken is None:
                continue
            entities, offset = taken
            try:
                slices = range(0, entities.num_rows, READ_KEYS)
                rows = [await self._rows(view, partition, entities.slice(start, READ_KEYS), offset) for start in slices]
            except BaseException:
                changes.put_back(entities)
                raise
            self._appenders[view.id].put(partition, pa.concat_tables(rows), offset, offset)

    async def _rows(self, view: CompiledView, partition: int, entities: pa.Table, offset: int) -> pa.Table:
        keys: list[str] = entities.column(0).to_pylist()
        stored = await self._parts.patience.until_done(lambda: self._parts.store.read(view.id, keys))
        now = self._parts.clock.now()
        return _evaluated(self._readers[view.id], entities, stored, now, partition, offset)


def _evaluated(
    reader: ViewReader, entities: pa.Table, stored: Sequence[bytes | None], now: int, partition: int, offset: int
) -> pa.Table:
    """The rows of entities whose value is there: one that went idle long ago may be gone from the store again.

    A value may hold a batch that is not noted yet. It then gets another row, and this one the last offset noted.
    """
    there = pa.array([value is not None for value in stored], pa.bool_())
    entities, values = entities.filter(there), [value for value in stored if value is not None]
    header = headers(values)
    return feature_rows(
        reader.view,
        entities.column(0).combine_chunks(),
        {name: entities[name] for name in reader.view.keys},
        reader.read(values, header[:, LATEST], now).columns,
        latest=header[:, LATEST],
        visible_time=now,
        partition=partition,
        offset=np.minimum(header[:, OFFSET], offset),
    )


def _in_time_order(rows: Sequence[pa.Table]) -> pa.Table:
    return in_time_order(pa.concat_tables(rows))


async def _nothing_more(_partition: int, _offset: int) -> None:
    """Feature rows are a copy: no mark waits for them."""
