"""Whether what a view holds is fresh, per partition: what heartbeats and fences say, read in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import xxhash

from featurestore.clock import SECOND, Clock, format_instant
from featurestore.definitions.compiled import CompiledView
from featurestore.errors import FeatureStoreError
from featurestore.offline.events import newest_before
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.loads import Loaded, loaded
from featurestore.offline.materialised import features_table
from featurestore.online.fences import Stage, begins_of
from featurestore.online.store import Beat, Fence, OnlineStore, Rebuild
from featurestore.telemetry import get_logger
from featurestore.types import STATUS_CODES, Status

POLL_SECONDS = 0.5
RECALL_SECONDS = 30.0
LOADS_SECONDS = 5.0
GRACE_SECONDS = 5.0
"""A heartbeat may be this old, and a poll interval more, before nobody vouches for its partition."""

_OK, _LATE, _STALE, _REBUILT = 0, 1, 2, 3
_STATUSES = (Status.OK, Status.LATE_PIPELINE, Status.STALE, Status.UNAVAILABLE)
_CODES = np.array([STATUS_CODES[status] for status in _STATUSES], np.uint8)

_OF_STAGE = {Stage.REPLACING: _REBUILT, Stage.FILLING: _OK, Stage.PROMOTING: _STALE}
"""What a mark makes of a view's values, whatever else is known of them."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PartitionFreshness:
    """One fold partition of a view, for people. `position` and `end` are offsets of the topic it folds."""

    status: Status
    behind_seconds: float
    beat_age_seconds: float
    position: int
    end: int
    waiting_for: str
    stopped: str
    rebuilding: str = ""
    """Who computes the view's values anew, and since when; empty where nobody does."""
    incomplete: str = ""
    """What of the lake's history the values lack, and what to do; empty where they lack nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class ViewFreshness:
    """Status codes by fold partition."""

    codes: np.ndarray
    uniform: int | None
    """The code where all partitions have the same one."""
    unseen: int | None = None
    """The code of entities that were not found, where that is not the one of the partition that their key hashes to: an
    aligned source is partitioned by its producers, and a server that evicts keys may have had them."""

    @property
    def unavailable(self) -> bool:
        """Whether stored values must not be shown: some may be half of what they will be."""
        return self.uniform == STATUS_CODES[Status.UNAVAILABLE]

    def of(self, keys: Sequence[str | None], partition: np.ndarray, found: np.ndarray) -> np.ndarray:
        """`uint8[n]`: the code of the partition that feeds each entity.

        `partition` counts where `found`; an entity that was never seen belongs where its key hashes to.
        """
        if self.uniform is not None:
            return np.full(len(keys), self.uniform, np.uint8)
        count = self.codes.size
        known = found & (partition >= 0) & (partition < count)
        if self.unseen is not None:
            return np.where(known, self.codes[np.where(known, partition, 0)], np.uint8(self.unseen))
        home = np.where(known, partition, 0)
        for row in np.flatnonzero(~known).tolist():
            home[row] = partition_of(keys[row] or "", count)
        return self.codes[home]


def partition_of(key: str, partitions: int) -> int:
    """The shuffle partition of a canonical key."""
    return xxhash.xxh3_64_intdigest(key.encode()) % partitions


_REBUILDING = ViewFreshness(_CODES[[_REBUILT]], STATUS_CODES[Status.UNAVAILABLE])
_UNVOUCHED = ViewFreshness(_CODES[[_STALE]], STATUS_CODES[Status.STALE])


class FreshnessBoard:
    """The latest known freshness of every watched view. `refresh` reads it, `run` keeps reading, `of` only looks."""

    def __init__(
        self, store: OnlineStore, clock: Clock, *, lake: Lake | None = None, poll_seconds: float = POLL_SECONDS
    ) -> None:
        """`lake` tells a board that has just started how far the store was before."""
        self._store, self._clock, self._lake, self._poll_seconds = store, clock, lake, poll_seconds
        self._grace = int((GRACE_SECONDS + poll_seconds) * SECOND)
        self._views: dict[str, CompiledView] = {}
        self._fresh: dict[str, ViewFreshness] = {}
        self._fences: dict[str, dict[int, Fence]] = {}
        self._rebuilds: dict[str, Rebuild] = {}
        self._highest: dict[tuple[str, int], tuple[int, int]] = {}
        self._recalled: set[tuple[str, int]] = set()
        self._report: dict[str, dict[int, PartitionFreshness]] = {}
        self._loaded: dict[str, Loaded] = {}
        self._before: dict[str, tuple[Mapping[int, int], int | None]] = {}
        """By view, where its values began, and the latest event time (µs) of what the lake has of before."""
        self._evicted = False
        self._refreshed = 0
        self._trouble = ""

    def watch(self, views: Iterable[CompiledView]) -> None:
        """Replaces the views to look after. A view that is new is stale until the next refresh."""
        self._views = {view.id: view for view in views}
        self._fresh = {view: fresh for view, fresh in self._fresh.items() if view in self._views}

    def of(self, view_id: str) -> ViewFreshness:
        if self._clock.now() - self._refreshed > self._grace:
            return _UNVOUCHED
        return self._fresh.get(view_id, _UNVOUCHED)

    def report(self) -> Mapping[str, Mapping[int, PartitionFreshness]]:
        """Per view and partition, as of the last refresh."""
        return {view: self._report.get(view, {}) for view in self._views}

    async def run(self) -> None:
        """Refreshes until cancelled; trouble with the store is logged once and then waited out."""
        await asyncio.gather(self._poll(), self._keep_recalling())

    async def _poll(self) -> None:
        while True:
            try:
                await self.refresh()
                self._trouble = ""
            except FeatureStoreError as error:
                if self._trouble != error.code:
                    _log.warning("freshness is unknown", reason=error.message)
                self._trouble = error.code
            await asyncio.sleep(self._poll_seconds)

    async def _keep_recalling(self) -> None:
        loop, last, looked = asyncio.get_running_loop(), 0.0, 0.0
        while True:
            if loop.time() - looked > LOADS_SECONDS or any(map(self._began_unknown, self._views.values())):
                looked = loop.time()
                with suppress(FeatureStoreError):  # as below
                    await self.look_for_loads()
            new = {place for place in self._places() if place not in self._recalled}
            if new or loop.time() - last > RECALL_SECONDS:
                last = loop.time()
                with suppress(FeatureStoreError):  # it is asked again at once, and whoever needs the lake says more
                    await self.recall()
            await asyncio.sleep(self._poll_seconds)

    async def recall(self) -> None:
        """Reads from the lake how far each partition was once: what the store then knows less of is lost, also where
        that was before this board began. Raises Unavailable."""
        if self._lake is None:
            return
        for view in list(self._views.values()):
            ids = {app_id(view.id, p): p for name, p in self._places() if name == view.id}
            recorded = await asyncio.to_thread(self._lake.recorded, features_table(view), list(ids))
            for name, offset in recorded.items():
                place = (view.id, ids[name])
                self._highest[place] = max(self._highest.get(place, (-1, -1)), (0, offset))
            self._recalled |= {(view.id, p) for p in ids.values()}

    async def look_for_loads(self) -> None:
        """Reads from the lake what history was loaded, and what it has that topics no longer had when views began:
        values that began without it lack it. Raises Unavailable."""
        if self._lake is None:
            return
        for source in {view.source.name for view in self._views.values()}:
            self._loaded[source] = await asyncio.to_thread(loaded, self._lake, source)
        for view in list(self._views.values()):
            if self._began_unknown(view):
                begins = self._begins(view)
                self._before[view.id] = begins, await asyncio.to_thread(newest_before, self._lake, view.source, begins)

    def incomplete(self) -> Mapping[str, str]:
        """By view, what its values lack of the history that was loaded, as of the last refresh."""
        known = [view for view in self._views.values() if view.id in self._fences]
        return {view.id: lacks for view in known if (lacks := self._lacks(view))}

    def _lacks(self, view: CompiledView) -> str:
        """What of the lake's history the values of some partition began without, if they can look back at any."""
        found, fences = self._loaded.get(view.source.name), self._fences[view.id].values()
        had = min((fence.loads for fence in fences), default=0)
        lacks = []
        if found is not None and had < found.count and self._looks_back_to(view, found.newest):
            lacks.append(f"{found.count - had} loaded files")
        if self._began_unknown(view):
            return "perhaps events of before its values began: the lake is being asked"
        _, newest = self._before.get(view.id, ({}, None))
        # A generation that begins with the lake's history has no beginning in the topic. And a partition may have told
        # of its beginning before the one that has the first events did.
        if self._begins(view) and newest is not None and self._looks_back_to(view, newest):
            lacks.append("events that the topic no longer had when its values began")
        return f"{' and '.join(lacks)}; run: featurestore backfill {view.id}" if lacks else ""

    def _began_unknown(self, view: CompiledView) -> bool:
        """Whether nobody has looked yet for what the lake has of before the view's values began."""
        begins = self._begins(view)
        asked, _ = self._before.get(view.id, ({}, None))
        return self._lake is not None and bool(begins) and begins != asked

    def _begins(self, view: CompiledView) -> dict[int, int]:
        return begins_of(self._fences.get(view.id, {}).values())

    def _looks_back_to(self, view: CompiledView, instant: int) -> bool:
        return view.reach is None or instant >= self._clock.now() - view.reach

    def _places(self) -> list[tuple[str, int]]:
        """View and partition of all that the store told of."""
        return [(view, p) for view in self._views for p in {*self._fences.get(view, ()), *self._report.get(view, ())}]

    async def refresh(self) -> None:
        """Raises Unavailable."""
        views = dict(self._views)
        sources = {view.source.name for view in views.values()}
        # First: where a mark is gone already, the fences read after it are those that its rebuild put.
        rebuilds = await self._store.rebuilds()
        intakes = {source: await self._store.beats(f"intake:{source}") for source in sources}
        folds = {view: await self._store.beats(f"fold:{view}") for view in views}
        fences = {view: await self._store.fences(view) for view in views}
        self._evicted = await self._store.evicted() > 0
        # Nothing is awaited from here on, so that lookups see all views of one reading, or of the one before.
        self._fences, self._rebuilds = fences, rebuilds
        for view in views.values():
            self._judge(view, intakes[view.source.name], folds[view.id])
        self._refreshed = self._clock.now()

    def _judge(self, view: CompiledView, intake: Mapping[int, Beat], folds: Mapping[int, Beat]) -> None:
        now, count = self._clock.now(), max(folds, default=-1) + 1
        upstream = {p: self._rank(view, beat, now) for p, beat in intake.items()}
        worst_upstream = max(upstream.values(), default=_STALE)
        ranks = []
        for partition in range(count):
            before = upstream.get(partition, _STALE) if view.aligned else worst_upstream
            beat = folds.get(partition)
            own = max(self._rank(view, beat, now), self._repair(view.id, partition, beat))
            ranks.append(max(before, own))
        lacks = self._lacks(view)
        if lacks:
            ranks = [max(rank, _STALE) for rank in ranks]
        rebuild = self._rebuilds.get(view.id)
        if rebuild is not None:
            ranks = [max(rank, _OF_STAGE[rebuild.stage]) for rank in ranks]
        codes = _CODES[ranks] if ranks else _UNVOUCHED.codes
        same = bool((codes == codes[0]).all())
        unseen = int(_CODES[max(ranks)]) if ranks and view.aligned else None
        if self._evicted:
            unseen = int(_CODES[_STALE])
            same = same and int(codes[0]) == unseen
        fresh = ViewFreshness(codes, int(codes[0]) if same else None, unseen)
        replacing = rebuild is not None and rebuild.stage is Stage.REPLACING
        self._fresh[view.id] = _REBUILDING if replacing else fresh
        said = f"{rebuild.by}, since {format_instant(rebuild.started_at)}" if rebuild is not None else ""
        self._report[view.id] = {p: _described(folds[p], _STATUSES[ranks[p]], now, said, lacks) for p in sorted(folds)}

    def _rank(self, view: CompiledView, beat: Beat | None, now: int) -> int:
        if beat is None or beat.stopped or now - beat.at > self._grace:
            return _STALE
        behind = view.freshness is not None and beat.behind_seconds * SECOND > view.freshness
        return _LATE if behind else _OK

    def _repair(self, view_id: str, partition: int, beat: Beat | None) -> int:
        """Stale while the store knows less than it did: it lost writes, and the worker is going over them again. Also
        while no worker goes on from the stored generation: what its beats say is of the values before."""
        fence = self._fences[view_id].get(partition)
        if fence is not None and beat is not None and beat.generation < fence.generation:
            return _STALE
        reached = (fence.generation, fence.offset) if fence is not None else (-1, -1)
        highest = max(self._highest.get((view_id, partition), reached), reached)
        self._highest[view_id, partition] = highest
        return _STALE if reached < highest else _OK


def _described(beat: Beat, status: Status, now: int, rebuilding: str, incomplete: str) -> PartitionFreshness:
    age = max(0.0, (now - beat.at) / SECOND)
    return PartitionFreshness(
        status=status,
        behind_seconds=beat.behind_seconds,
        beat_age_seconds=age,
        position=beat.position,
        end=beat.end,
        waiting_for=beat.waiting_for,
        stopped=beat.stopped,
        rebuilding=rebuilding,
        incomplete=incomplete,
    )
