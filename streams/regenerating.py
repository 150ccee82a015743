"""A new generation of a view's values, from the lake: what `rebuild` and `backfill` have in common.

A mark in the store says what is done, so that the next process goes on where one was killed: the same events give the
same values under the same generation, and it does not matter what of them was written already. The fences then say
from where the log goes on; workers see the higher generation and do so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from featurestore.clock import MIN_INSTANT, SECOND, Clock, format_instant
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.errors import FeatureStoreError, LogTooShort, NotFound, RebuildConflict, Unavailable
from featurestore.offline.events import count_events, events_table, scan_events
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.loads import loaded
from featurestore.online.fences import REBUILD_LEASE, Fence, Rebuild, Stage, Tally, decode
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from streams.folding import NOTHING, Count, retention_ms
from streams.refolding import Base, Buckets, Refold
from streams.scanning import scan
from streams.topics import Topics

BUCKET_ROWS = 250_000
"""Events of a bucket, about: folded in memory, and done again where a process dies."""
MAX_BUCKETS = 256
BEAT_SECONDS = 5.0
NOTICE_SECONDS = 2.0
"""After this every reader has seen a new mark: they look twice a second."""

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """A topic: the first offset that the broker keeps of each partition."""

    topic: str
    begins: Mapping[int, int]


class Mark:
    """The mark of one view's rebuild, while this process is the one that works on it."""

    def __init__(self, store: OnlineStore, clock: Clock, view_id: str, record: Rebuild, stored: bytes) -> None:
        """`stored` are the bytes that `record` was read from, or empty where it is new."""
        self._store, self._clock, self._view_id = store, clock, view_id
        self.record, self._stored = record, stored
        self._removed = False
        self.begun = bool(stored)
        """Whether values may have been written under it."""
        self._turn = asyncio.Lock()

    async def put(self, **changes: Any) -> None:
        """Stores the changes, and that this process lives. Raises RebuildConflict where the mark is no longer ours."""
        async with self._turn:
            if self._removed:
                return
            record = msgspec.structs.replace(self.record, at=self._clock.now(), **changes)
            await self._swap(record)
            self.record = record

    async def remove(self) -> None:
        async with self._turn:
            await self._swap(None)
            self._removed = True

    async def _swap(self, record: Rebuild | None) -> None:
        stored = await self._store.swap_rebuild(self._view_id, record, over=self._stored)
        if stored is None:
            raise RebuildConflict(
                f"the mark of the rebuild of {self._view_id} was changed or removed by somebody else, or lost",
                hint="`featurestore status` shows who works on it; where nobody does, run it again",
            )
        self._stored = stored


@dataclass(slots=True)
class Done:
    """What became of one view."""

    view: str
    generation: int
    entities: int = 0
    events: int = 0
    resumed: bool = False
    seconds: float = 0.0


class Regenerator:
    """Computes views of one project anew. Raises RebuildConflict where another process does so, LogTooShort where the
    lake and the log together do not have every event, and Unavailable."""

    def __init__(  # noqa: PLR0913 — its parts, by name
        self,
        *,
        bootstrap: str,
        project: str,
        store: OnlineStore,
        lake: Lake,
        catalog: Catalog,
        clock: Clock,
        by: str,
        tell: Tell,
        bucket_rows: int = BUCKET_ROWS,
        lease: int = REBUILD_LEASE,
        notice_seconds: float = NOTICE_SECONDS,
    ) -> None:
        """`by` names this process to people; `tell` hears of progress."""
        self._bootstrap, self._project, self._catalog = bootstrap, project, catalog
        self._store, self._lake, self._clock = store, lake, clock
        self._by, self._tell = by, tell
        self._bucket_rows, self._lease, self._notice_seconds = bucket_rows, lease, notice_seconds
        self._kept: dict[str, Kept] = {}

    @property
    def _views(self) -> Mapping[str, CompiledView]:
        return {view.id: view for view in self._catalog.views.values()}

    def _view(self, name: str) -> CompiledView:
        view = self._views.get(name)
        if view is None:
            raise NotFound("view", name, self._views, hint="write it as name@version; `featurestore status` lists them")
        return view

    def _source(self, view: CompiledView) -> CompiledSource:
        return self._catalog.sources.get(view.source.name, view.source)

    def _require_abandoned(self, view: CompiledView, found: Rebuild | None) -> None:
        if found is not None and not found.abandoned(self._clock.now(), self._lease):
            raise RebuildConflict(
                f"{view.id} is being rebuilt by {found.by}, since {format_instant(found.started_at)}",
                hint=f"wait for it; where that process has ended, run this again {self._lease / SECOND:g} s later",
            )

    async def _begin(self, view: CompiledView, together: list[str], now: int) -> Mark:
        """Takes over the mark that stands, or makes one."""
        stored = await self._store.rebuild_mark(view.id)
        record = decode(Rebuild, stored, f"the mark of {view.id}") if stored else None
        if record is not None:
            self._require_abandoned(view, record)
            if self._continues(view, record):
                mark = Mark(self._store, self._clock, view.id, record, stored)
                await mark.put(by=self._by)
                return mark
        mark = Mark(self._store, self._clock, view.id, await self._new(view, together, now), stored)
        mark.begun = False
        await mark.put()
        return mark

    def _continues(self, view: CompiledView, found: Rebuild) -> bool:
        """Whether what another process began is completed, or begun anew. Raises RebuildConflict where neither is."""
        raise NotImplementedError

    async def _new(self, view: CompiledView, together: list[str], now: int) -> Rebuild:
        raise NotImplementedError

    async def _recorded(self, source: CompiledSource, partitions: Iterable[int]) -> dict[int, int]:
        """Source partition → the last offset that the lake has."""
        ids = {p: app_id(source.name, p) for p in partitions}
        found = await asyncio.to_thread(self._lake.recorded, events_table(source.name), list(ids.values()))
        return {p: found[name] for p, name in ids.items() if name in found}

    async def _pinned(
        self,
        view: CompiledView,
        now: int,
        *,
        vector: Mapping[int, int],
        offsets: Mapping[int, int],
        vectors: Mapping[int, Mapping[int, int]],
        together: Sequence[str],
        stage: Stage,
    ) -> Rebuild:
        """A record of the lake as it is now. What is at or below `vector` was there before."""
        source, table = self._source(view), events_table(view.source.name)
        fences = await self._store.fences(view.id)
        version = await asyncio.to_thread(self._lake.version, table)
        rows = await asyncio.to_thread(count_events, self._lake, source, version)
        loads = await asyncio.to_thread(loaded, self._lake, source.name, version)
        highest = max((fence.generation for fence in fences.values()), default=0)
        return Rebuild(
            # Above anything that a frozen worker may still write, also where the store forgot its generations.
            generation=max(highest + 1, now // SECOND),
            lake_version=NOTHING if version is None else version,
            vector=dict(vector),
            offsets=dict(offsets),
            buckets=min(MAX_BUCKETS, rows // self._bucket_rows + 1),
            done=[],
            tallies={},
            entities=0,
            events=0,
            started_at=now,
            together=list(together),
            at=now,
            by=self._by,
            loads=loads.count,
            stage=stage,
            vectors={p: dict(of_partition) for p, of_partition in vectors.items()},
        )

    async def _aligned_offsets(self, view: CompiledView, log: Kept, vector: Mapping[int, int]) -> dict[int, int]:
        for p, begin in log.begins.items():
            if begin > vector.get(p, NOTHING) + 1:
                raise too_short(view, log.topic, p, begin, f"the lake has it up to {vector.get(p, NOTHING)}")
        return {p: vector.get(p, NOTHING) for p in log.begins}

    async def _topic(self, topic: str) -> Kept:
        if topic not in self._kept:
            count = (await Topics(self._bootstrap).look([topic])).counts.get(topic, 0)
            if not count:
                raise NotFound("topic", topic, hint="start a worker once: it makes the topics that views need")
            async with scan(self._bootstrap, topic, count) as found:
                self._kept[topic] = Kept(topic, found.kept)
        return self._kept[topic]

    @contextlib.asynccontextmanager
    async def _beating(self, marks: Sequence[Mark]) -> AsyncIterator[None]:
        """Says that this process lives, for all views whose turn has not come yet too."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(BEAT_SECONDS)
                for mark in marks:
                    # A store that is away for a moment fails the work itself, or nothing.
                    with contextlib.suppress(Unavailable):
                        await mark.put()

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, FeatureStoreError):
                await task

    async def _compute(self, view: CompiledView, mark: Mark) -> Done:
        """All values of the view; returns when they are acknowledged."""
        record, started, mark.begun = mark.record, self._clock.now(), True
        done = Done(view.id, record.generation, resumed=bool(record.done))
        pending = [bucket for bucket in range(record.buckets) if bucket not in record.done]
        refold = Refold(view, self._source(view), _base(view, record))
        with Buckets(view.keys, record.vector, record.buckets, pending) as buckets:
            if pending:
                await asyncio.to_thread(self._divide, refold, record, buckets)
            for bucket in pending:
                await self._fill(refold, buckets, bucket, mark)
                self._say(view, mark.record, doing="writing")
        done.entities, done.events = mark.record.entities, mark.record.events
        done.seconds = (self._clock.now() - started) / SECOND
        return done

    def _divide(self, refold: Refold, record: Rebuild, buckets: Buckets) -> None:
        """Reads the lake once."""
        read = 0
        version = None if record.lake_version == NOTHING else record.lake_version
        for batch in scan_events(self._lake, refold.source, refold.columns, version=version):
            buckets.add(batch)
            read += batch.num_rows
            self._tell({"view": refold.view.id, "doing": "reading", "events": read})

    async def _fill(self, refold: Refold, buckets: Buckets, bucket: int, mark: Mark) -> None:
        """Folds a bucket and writes its values; then the mark says so."""
        record = mark.record
        tallies, entities, events = dict(record.tallies), record.entities, record.events
        rows = await asyncio.to_thread(buckets.read, bucket)
        parts = iter(()) if rows is None else refold.fold(rows)
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            await self._write(refold.view, part.keys, part.values)
            entities, events = entities + len(part.keys), events + part.events
            for p, tally in part.tallies.items():
                tallies[p] = _sum(tallies.get(p), tally)
        await mark.put(done=[*record.done, bucket], tallies=tallies, entities=entities, events=events)

    async def _write(self, view: CompiledView, keys: Sequence[str], values: Sequence[bytes]) -> None:
        await self._store.write(view.id, keys, values, ttl_ms=retention_ms(view))

    def _say(self, view: CompiledView, record: Rebuild, doing: str) -> None:
        self._tell({"view": view.id, "doing": doing, "buckets": record.buckets, "filled": len(record.done),
                    "entities": record.entities, "events": record.events})  # fmt: skip

    async def _put_fences(self, view: CompiledView, record: Rebuild) -> None:
        """After every value is acknowledged."""
        for p, offset in record.offsets.items():
            tally = record.tallies.get(p, Tally({}, 0))
            vector = {p: offset} if view.aligned else dict(record.vectors.get(p, record.vector))
            fence = Fence(
                generation=record.generation,
                offset=offset,
                vector={} if view.aligned and offset == NOTHING else vector,
                ledger=tally.ledger,
                event_time=tally.event_time,
                broker_time=0,  # the lake does not know it
                written_at=self._clock.now(),
                loads=record.loads,
            )
            # AHEAD means that the fence was put before this process took over, and a worker went on from it.
            await self._store.put_fence(view.id, p, fence)


def _base(view: CompiledView, record: Rebuild) -> Base:
    ttl = retention_ms(view)
    return Base(
        generation=record.generation,
        vector=record.vector,
        offsets=record.offsets,
        shuffled=None if view.aligned else len(record.offsets),
        vectors=record.vectors,
        alive_since=MIN_INSTANT if ttl is None else record.started_at - ttl * 1000,
    )


def _sum(one: Tally | None, other: Tally) -> Tally:
    if one is None:
        return other
    ledger = dict(one.ledger)
    for p, counts in other.ledger.items():
        ledger[p] = [a + b for a, b in zip(ledger.get(p, [0] * len(Count)), counts, strict=True)]
    return Tally(ledger, max(one.event_time, other.event_time))


def too_short(view: CompiledView, topic: str, partition: int, begin: int, what: str) -> LogTooShort:
    return LogTooShort(
        f"{view.id} cannot be computed without a hole: {topic} begins at offset {begin} in partition {partition}, "
        f"and {what}",
        hint="the stored values are left as they are; see `Stopped: lost` in docs/operations.md for what is possible",
    )
