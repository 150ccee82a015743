"""`backfill` as a process of its own, between the simulated parts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from featurestore.contracts.arrow import arrow_schema
from featurestore.definitions.compiled import CompiledSource
from featurestore.engine.columns import LOADED
from featurestore.errors import FeatureStoreError, NotFound, Unavailable
from featurestore.offline.events import VISIBLE_TIME, events_table, system_columns
from featurestore.offline.files import OFFSET, PARTITION
from featurestore.offline.loads import COUNT, NEWEST
from streams import backfilling, regenerating
from streams.backfilling import Backfiller
from streams.regenerating import Kept
from tests.e2e.streaming import TOPIC, VIEWS
from tests.simulation.events import records_of
from tests.simulation.lake import SimulatedLake
from tests.simulation.loop import PROCESS
from tests.simulation.worker import Site
from tests.simulation.world import START, Gone, Violation

_AGAIN_SECONDS = 1.0
_LEASE = 8_000_000
"""µs: a process that ended does not hold up the schedule for longer."""


class _Backfiller(Backfiller):
    """Sees the simulated broker's topics."""

    def __init__(self, site: Site, name: str, buckets: int) -> None:
        super().__init__(
            bootstrap=site.settings.kafka,
            project=site.settings.project,
            store=site.redis.client(),
            lake=cast(Any, site.lake),
            catalog=site.catalog,
            clock=site.world,
            by=name,
            tell=lambda progress: site.world.note(f"{name}: {dict(progress)}"),
            bucket_rows=max(1, 60 // buckets),
            lease=_LEASE,
            notice_seconds=1.0,
        )
        self._site = site

    async def _topic(self, topic: str) -> Kept:
        if topic not in self._kept:
            try:
                await self._site.log.part.done(lambda: None)
            except Gone as error:
                raise Unavailable("kafka", "no answer") from error
            if topic not in self._site.log.topics:
                raise NotFound("topic", topic)
            self._kept[topic] = Kept(topic, dict.fromkeys(range(len(self._site.log.topics[topic])), 0))
        return self._kept[topic]


class SimulatedBackfill:
    """Somebody who runs `featurestore backfill` until it says that it is done. Starts at once."""

    def __init__(self, site: Site, name: str, views: Sequence[str], buckets: int) -> None:
        self.site, self.name, self.views, self.buckets = site, name, tuple(views), buckets
        context = copy_context()
        context.run(PROCESS.set, name)
        self.task: asyncio.Task[None] = site.world.loop.create_task(self._run(), context=context)

    def kill(self) -> None:
        self.site.world.loop.freeze(self.name)

    async def _run(self) -> None:
        views = self.views
        while True:
            try:
                done = await _Backfiller(self.site, self.name, self.buckets).run(views, rate=0)
            except FeatureStoreError as error:
                self.site.world.counts[f"backfill: {type(error).__name__}"] += 1
                self.site.world.note(f"{self.name}: {error.message}")
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            self.site.world.counts["views backfilled"] += len(done)
            if not done:
                return
            views = ()


class Backfills:
    """History that is loaded before the stream begins, in some schedules, and backfills that are killed at any step."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        self.rng, self.keys_at_once = rng, rng.choice([1, 3, 100])
        self._site, self._started = site, 0
        count = rng.choice([0, 0, 12])
        self.loaded = [record for record in records_of(rng, count) if record.event is not None]
        # Without names: of those that lack what was loaded, which are all.
        self._views = [] if self.loaded else rng.choice([VIEWS[:1], VIEWS[1:], VIEWS])
        self._latest: SimulatedBackfill | None = None
        if self.loaded:
            self._load()

    async def troubled(self) -> None:
        """Backfills while the stream runs and parts fail."""
        await asyncio.sleep(self.rng.uniform(0.0, 12.0))
        for _ in range(self.rng.choice([0, 1, 1, 2, 4])):
            backfill = self._start()
            reached = asyncio.Event()
            self._site.world.loop.after_steps(int(10 ** self.rng.uniform(0.5, 3.5)), reached.set)
            await reached.wait()
            if not backfill.task.done():
                self._site.world.counts["backfills killed"] += 1
                self._site.world.note(f"kill {backfill.name}")
                backfill.kill()
            await asyncio.sleep(self.rng.uniform(0.1, 10.0))
        self._start()

    async def complete(self, seconds: float) -> None:
        """When nothing fails any more: whoever runs it until it is done finds that it gets done."""
        latest = self._latest
        if latest is None or latest.task.done():
            latest = self._start()
        await asyncio.wait([latest.task], timeout=seconds)
        if not latest.task.done():
            raise Violation(f"{seconds:.0f} s after the last fault {latest.name} is not done")
        if error := latest.task.exception():
            raise Violation(f"{latest.name} ended: {error!r}") from error

    async def check(self) -> None:
        marks = await self._site.redis.client().rebuilds()
        waiting = [name for name in self._site.redis.values if b".next:" in name]
        if marks or waiting:
            raise Violation(f"the backfills are done and left the marks {marks} and the values {waiting}")

    def _start(self) -> SimulatedBackfill:
        self._started += 1
        views = self._views if self._started == 1 or self.rng.random() < 0.5 else []
        backfill = SimulatedBackfill(self._site, f"b{self._started}", views, self.rng.choice([1, 3]))
        self._site.world.note(f"start {backfill.name}")
        self._latest = backfill
        return backfill

    def _load(self) -> None:
        source = self._site.catalog.sources[TOPIC]
        for offset, record in enumerate(self.loaded):
            record.partition, record.offset = LOADED, offset
            record.event = (record.event or {}) | {"partition": LOADED, "offset": offset}
        rows = pa.Table.from_pylist([record.event for record in self.loaded], arrow_schema(source.contract))
        offsets = np.arange(len(self.loaded))
        table = system_columns(rows, LOADED, offsets, source.event_time, START)
        self._site.lake.load(events_table(source.name), table, {COUNT: 1, NEWEST: START})


def scan(
    lake: SimulatedLake, source: CompiledSource, columns: Sequence[str], *, version: int | None = None
) -> Iterator[pa.RecordBatch]:
    """`offline.events.scan_events` of a simulated lake."""
    wanted = list(dict.fromkeys([*columns, source.event_time, PARTITION, OFFSET, VISIBLE_TIME]))
    for table in lake.rows(events_table(source.name), version):
        yield from table.select(wanted).to_batches()


def count(lake: SimulatedLake, source: CompiledSource, version: int | None = None) -> int:
    """`offline.events.count_events`, likewise."""
    return sum(table.num_rows for table in lake.rows(events_table(source.name), version))


def newest_before(lake: SimulatedLake, source: CompiledSource, begins: Mapping[int, int]) -> int | None:
    """`offline.events.newest_before`, likewise."""
    times = []
    for batch in scan(lake, source, ()):
        at = batch[source.event_time].cast(pa.int64()).to_pylist()
        for time, partition, offset in zip(at, batch[PARTITION].to_pylist(), batch[OFFSET].to_pylist(), strict=True):
            if offset < begins.get(partition, 0):
                times.append(time)
    return max(times, default=None)


@contextmanager
def parts_of_backfills(keys_at_once: int) -> Iterator[None]:
    """In the place of what reads files. So few values are promoted in few steps otherwise."""
    files = patch.multiple(regenerating, scan_events=scan, count_events=count)
    with files, patch.multiple(backfilling, PROMOTED_AT_ONCE=keys_at_once, newest_before=newest_before):
        yield
