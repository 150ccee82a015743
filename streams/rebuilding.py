"""`rebuild`: the online store's values from the lake, as a new generation that the log then continues.

For each view: a mark is put, from which readers know that its values are not whole; the events are folded bucket by
bucket and their values written; then the fences say from where the log goes on, and the mark is removed. Workers see
the higher generation and go on from its fences. Whoever finds a mark without a sign of life goes on with it: the same
events give the same values under the same generation, so it does not matter what of them was written already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from featurestore.clock import MIN_INSTANT, SECOND, Clock, format_instant
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.errors import FeatureStoreError, LogTooShort, NotFound, RebuildConflict, Unavailable
from featurestore.offline.events import count_events, events_table, scan_events
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.loads import loaded
from featurestore.online.fences import REBUILD_LEASE, Fence, IntakeMark, Rebuild, Tally, decode
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from streams.folding import NOTHING, Count, retention_ms
from streams.refolding import Base, Buckets, Refold
from streams.scanning import scan
from streams.topics import Topics, shuffle_topic

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


class Rebuilder:
    """Rebuilds views of one project. Raises RebuildConflict where another process does so, LogTooShort where the lake
    and the log together do not have every event, and Unavailable."""

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

    async def run(self, names: Sequence[str] = ()) -> list[Done]:
        """Rebuilds these views (`name@version`). Without names: what an earlier rebuild left unfinished, else all."""
        found, now = await self._store.rebuilds(), self._clock.now()
        views = [self._view(name) for name in dict.fromkeys(names or await self._unfinished(found) or self._views)]
        for view in views:
            self._require_abandoned(view, found.get(view.id))
        together = [view.id for view in views]
        marks: list[tuple[CompiledView, Mark]] = []
        try:
            for view in views:
                marks.append((view, await self._begin(view, together, now)))
            return await self._rebuild_all(marks)
        except BaseException:
            # The values of views that had not had their turn are as good as they were.
            with contextlib.suppress(FeatureStoreError):
                for _, mark in marks:
                    if not mark.begun:
                        await mark.remove()
            raise

    async def _rebuild_all(self, marks: Sequence[tuple[CompiledView, Mark]]) -> list[Done]:
        done = []
        async with self._beating([mark for _, mark in marks]):
            # Until every reader has seen the marks, it could take a value of the new generation for a whole view's.
            await asyncio.sleep(self._notice_seconds)
            for i, (view, mark) in enumerate(marks):
                done.append(await self._rebuild(view, mark))
                if all(view.source.name != later.source.name for later, _ in marks[i + 1 :]):
                    await self._put_intake_marks(self._source(view), mark.record)
                await mark.remove()
        return done

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

    async def _unfinished(self, found: Mapping[str, Rebuild]) -> list[str]:
        """Views with a mark, and those of the same run that had not even got one."""
        names = list(found)
        for mark in found.values():
            for name in mark.together:
                fences = (await self._store.fences(name)).values()
                if max((fence.generation for fence in fences), default=0) < mark.started_at // SECOND:
                    names.append(name)
        return [name for name in names if name in self._views]

    def _require_abandoned(self, view: CompiledView, found: Rebuild | None) -> None:
        if found is not None and not found.abandoned(self._clock.now(), self._lease):
            raise RebuildConflict(
                f"{view.id} is being rebuilt by {found.by}, since {format_instant(found.started_at)}",
                hint=f"wait for it; where that process has ended, run this again {self._lease / SECOND:g} s later",
            )

    async def _begin(self, view: CompiledView, together: list[str], now: int) -> Mark:
        """Takes over the mark that stands, or makes one."""
        stored = await self._store.rebuild_mark(view.id)
        if stored:
            record = decode(Rebuild, stored, f"the mark of {view.id}")
            self._require_abandoned(view, record)
            mark = Mark(self._store, self._clock, view.id, record, stored)
            await mark.put(by=self._by)
            return mark
        mark = Mark(self._store, self._clock, view.id, await self._new(view, together, now), b"")
        await mark.put()
        return mark

    async def _new(self, view: CompiledView, together: list[str], now: int) -> Rebuild:
        source, fences = self._source(view), await self._store.fences(view.id)
        log = await self._topic(source.topic)
        # Read before the version: whatever is at or below these offsets is in that version.
        ids = {p: app_id(source.name, p) for p in log.begins}
        recorded = await asyncio.to_thread(self._lake.recorded, events_table(source.name), list(ids.values()))
        vector = {p: recorded[name] for p, name in ids.items() if name in recorded}
        version = await asyncio.to_thread(self._lake.version, events_table(source.name))
        rows = await asyncio.to_thread(count_events, self._lake, source, version)
        loads = await asyncio.to_thread(loaded, self._lake, source.name, version)
        highest = max((fence.generation for fence in fences.values()), default=0)
        return Rebuild(
            # Above anything that a frozen worker may still write, also where the store forgot its generations.
            generation=max(highest + 1, now // SECOND),
            lake_version=NOTHING if version is None else version,
            vector=vector,
            offsets=await self._offsets(view, log, vector),
            buckets=min(MAX_BUCKETS, rows // self._bucket_rows + 1),
            done=[],
            tallies={},
            entities=0,
            events=0,
            started_at=now,
            together=together,
            at=now,
            by=self._by,
            loads=loads.count,
        )

    async def _offsets(self, view: CompiledView, log: Kept, vector: Mapping[int, int]) -> dict[int, int]:
        """Entity partition → the log offset that its fence begins at."""
        if view.aligned:
            for p, begin in log.begins.items():
                if begin > vector.get(p, NOTHING) + 1:
                    raise _too_short(view, log.topic, p, begin, f"the lake has it up to {vector.get(p, NOTHING)}")
            return {p: vector.get(p, NOTHING) for p in log.begins}
        # What is in the shuffle topic and in the values is dropped there by the vector, so that reading all of it
        # again is right, and nobody has to know where in it the vector lies.
        shuffle = await self._topic(shuffle_topic(self._project, view))
        for p, begin in shuffle.begins.items():
            if begin > 0:
                raise _too_short(view, shuffle.topic, p, begin, "events that are not in the lake yet may be gone")
        return dict.fromkeys(shuffle.begins, NOTHING)

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

    async def _rebuild(self, view: CompiledView, mark: Mark) -> Done:
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
        await self._put_fences(view, mark.record)
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
            await self._store.write(refold.view.id, part.keys, part.values, ttl_ms=retention_ms(refold.view))
            entities, events = entities + len(part.keys), events + part.events
            for p, tally in part.tallies.items():
                tallies[p] = _sum(tallies.get(p), tally)
        await mark.put(done=[*record.done, bucket], tallies=tallies, entities=entities, events=events)

    def _say(self, view: CompiledView, record: Rebuild, doing: str) -> None:
        self._tell({"view": view.id, "doing": doing, "buckets": record.buckets, "filled": len(record.done),
                    "entities": record.entities, "events": record.events})  # fmt: skip

    async def _put_fences(self, view: CompiledView, record: Rebuild) -> None:
        """After every value is acknowledged."""
        for p, offset in record.offsets.items():
            tally = record.tallies.get(p, Tally({}, 0))
            vector = {p: offset} if view.aligned else dict(record.vector)
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

    async def _put_intake_marks(self, source: CompiledSource, record: Rebuild) -> None:
        """Those that are missing, so that intake does not read again what the lake has.

        What the lake has was delivered to every lane's shuffle before. But for a lane that was just added intake may
        still be going over old events, and only a view of this generation does without those: a lane is left out,
        and its events are delivered again, unless all of its views are such.
        """
        marks, vector = await self._store.intake_marks(source.name), record.vector
        missing = [p for p in vector if p not in marks]
        if not missing:
            return
        lanes = [lane for lane, views in _lanes(self._catalog, source) if await self._all_have(views, vector)]
        for p in missing:
            forwarded = sum(tally.ledger[p][Count.CONSUMED] for tally in record.tallies.values() if p in tally.ledger)
            ledger = {"consumed": forwarded, "forwarded": forwarded, "dead_lettered": 0}
            mark = IntakeMark(dict.fromkeys(lanes, vector[p]), vector[p], ledger, self._clock.now())
            await self._store.put_intake_mark(source.name, p, mark)

    async def _all_have(self, views: Sequence[CompiledView], vector: Mapping[int, int]) -> bool:
        for view in views:
            fences = (await self._store.fences(view.id)).values()
            if not fences or any(f.vector.get(p, NOTHING) < offset for f in fences for p, offset in vector.items()):
                return False
        return True


def _base(view: CompiledView, record: Rebuild) -> Base:
    ttl = retention_ms(view)
    return Base(
        generation=record.generation,
        vector=record.vector,
        offsets=record.offsets,
        shuffled=None if view.aligned else len(record.offsets),
        alive_since=MIN_INSTANT if ttl is None else record.started_at - ttl * 1000,
    )


def _lanes(catalog: Catalog, source: CompiledSource) -> list[tuple[str, list[CompiledView]]]:
    """The shuffled lanes of a source, each with its views."""
    lanes: dict[str, list[CompiledView]] = {}
    for view in catalog.views.values():
        if view.source.name == source.name and not view.aligned:
            lanes.setdefault(view.lane, []).append(view)
    return list(lanes.items())


def _sum(one: Tally | None, other: Tally) -> Tally:
    if one is None:
        return other
    ledger = dict(one.ledger)
    for p, counts in other.ledger.items():
        ledger[p] = [a + b for a, b in zip(ledger.get(p, [0] * len(Count)), counts, strict=True)]
    return Tally(ledger, max(one.event_time, other.event_time))


def _too_short(view: CompiledView, topic: str, partition: int, begin: int, what: str) -> LogTooShort:
    return LogTooShort(
        f"{view.id} cannot be rebuilt without a hole: {topic} begins at offset {begin} in partition {partition}, "
        f"and {what}",
        hint="the stored values are left as they are; see `Stopped: lost` in docs/operations.md for what is possible",
    )
