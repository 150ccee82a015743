"""`backfill`: a view's values from the lake, while the ones that it has go on being served.

The new values are computed up to where the log's fences are and wait beside the view's own. When all are there, they
take their places, which is a matter of seconds, and the fences of the new generation hand them to the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from featurestore.clock import DAY
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.errors import FeatureStoreError, RebuildConflict, Unavailable
from featurestore.offline.events import newest_before
from featurestore.offline.loads import loaded
from featurestore.online.fences import Fence, Rebuild, Stage, begins_of
from featurestore.online.keys import staged
from streams.folding import NOTHING, retention_ms
from streams.regenerating import Done, Mark, Regenerator, too_short
from streams.topics import shuffle_topic

RATE = 10_000
"""Entities written per second: so that workers and lookups keep most of the store."""
STAGED_MS = 7 * DAY // 1000
"""How long values wait: those of a backfill that nobody completes are gone after that."""
RESUMED_WITHIN = 6 * DAY
"""A backfill that began earlier is begun anew: the first of its values may be gone soon."""
LAKE_SECONDS = 60.0
"""How long the lake has for what was folded: it takes events in intervals of seconds."""
PROMOTED_AT_ONCE = 16_384
_RETRY_SECONDS = 0.2
_PACED_KEYS = 1_024


class Backfiller(Regenerator):
    _rate = RATE

    async def run(self, names: Sequence[str] = (), *, rate: int = RATE) -> list[Done]:
        """Backfills these views (`name@version`), one after the other. Without names: what an earlier backfill left
        unfinished, else the views whose values lack history that was loaded. `rate` is a limit of entities written per
        second, 0 is none."""
        self._rate = rate
        found = await self._store.rebuilds()
        chosen = names or [name for name, mark in found.items() if mark.stage is not Stage.REPLACING]
        views = [self._view(name) for name in dict.fromkeys(chosen or await self._incomplete())]
        for view in views:
            self._require_abandoned(view, found.get(view.id))
        return [await self._backfill(view) for view in views]

    async def _incomplete(self) -> list[str]:
        counts: dict[str, int] = {}
        for name in {view.source.name for view in self._views.values()}:
            counts[name] = (await asyncio.to_thread(loaded, self._lake, name)).count
        found = []
        for view in self._views.values():
            fences = (await self._store.fences(view.id)).values()
            lacks = counts[view.source.name] > min((fence.loads for fence in fences), default=0)
            if lacks or await self._began_late(view, begins_of(fences)):
                found.append(view.id)
        return found

    async def _began_late(self, view: CompiledView, begins: Mapping[int, int]) -> bool:
        """Whether the topic no longer had what the lake has when the view's values began."""
        if not begins:
            return False
        return await asyncio.to_thread(newest_before, self._lake, self._source(view), begins) is not None

    async def _backfill(self, view: CompiledView) -> Done:
        mark = await self._begin(view, [], self._clock.now())
        try:
            async with self._beating([mark]):
                if not mark.record.done:
                    await self._forget(view)
                done = await self._compute(view, mark)
                await self._promote(view, mark)
                await self._put_fences(view, mark.record)
                await mark.remove()
                return done
        except BaseException:
            if not mark.begun:
                with contextlib.suppress(FeatureStoreError):
                    await mark.remove()
            raise

    def _continues(self, view: CompiledView, found: Rebuild) -> bool:
        if found.stage is Stage.REPLACING:
            raise RebuildConflict(
                f"a rebuild of {view.id} was left unfinished by {found.by}",
                hint="its values are unavailable until it is completed: featurestore rebuild",
            )
        return found.stage is Stage.PROMOTING or self._clock.now() - found.started_at < RESUMED_WITHIN

    async def _new(self, view: CompiledView, together: list[str], now: int) -> Rebuild:
        source = self._source(view)
        log = await self._topic(source.topic)
        if view.aligned:
            vector = await self._recorded(source, log.begins)
            offsets, vectors = await self._aligned_offsets(view, log, vector), dict[int, dict[int, int]]()
        else:
            offsets, vectors = await self._places(view)
            vector = _highest(vectors)
            await self._until_stored(source, vector)
        return await self._pinned(
            view, now, vector=vector, offsets=offsets, vectors=vectors, together=together, stage=Stage.FILLING
        )

    async def _places(self, view: CompiledView) -> tuple[dict[int, int], dict[int, dict[int, int]]]:
        """Entity partition → where the values end in the shuffle topic, and with which vector.

        A fence of any view that reads the topic says which events are at or before its offset: all up to its vector.
        The furthest leaves the least to be read again.
        """
        shuffle = await self._topic(shuffle_topic(self._project, view))
        furthest: dict[int, Fence] = {}
        for other in self._views.values():
            if other.lane == view.lane and not other.aligned:
                for p, fence in (await self._store.fences(other.id)).items():
                    if p not in furthest or fence.offset > furthest[p].offset:
                        furthest[p] = fence
        for p, begin in shuffle.begins.items():
            reached = furthest[p].offset if p in furthest else NOTHING
            if begin > reached + 1:
                raise too_short(view, shuffle.topic, p, begin, f"views that read it have had it up to {reached}")
        offsets = {p: furthest[p].offset if p in furthest else NOTHING for p in shuffle.begins}
        return offsets, {p: dict(furthest[p].vector) if p in furthest else {} for p in shuffle.begins}

    async def _until_stored(self, source: CompiledSource, vector: Mapping[int, int]) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + LAKE_SECONDS
        while True:
            recorded = await self._recorded(source, vector)
            behind = [p for p, offset in vector.items() if recorded.get(p, NOTHING) < offset]
            if not behind:
                return
            if loop.time() > until:
                raise Unavailable(
                    "lake",
                    f"events of partition {behind[0]} of {source.topic} are in online values, and not in the lake",
                    hint="`featurestore status` says whether a worker stores them; then run it again",
                )
            await asyncio.sleep(_RETRY_SECONDS)

    async def _write(self, view: CompiledView, keys: Sequence[str], values: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        for start in range(0, len(keys), _PACED_KEYS):
            some, began = slice(start, start + _PACED_KEYS), loop.time()
            await self._store.write(staged(view.id), keys[some], values[some], ttl_ms=STAGED_MS)
            if self._rate:
                await asyncio.sleep(max(0.0, began + len(keys[some]) / self._rate - loop.time()))

    async def _forget(self, view: CompiledView) -> None:
        """What an earlier backfill left waiting: this one may know nothing of it."""
        left = list({key async for key in self._store.scan_view(staged(view.id))})
        for start in range(0, len(left), PROMOTED_AT_ONCE):
            await self._store.forget(staged(view.id), left[start : start + PROMOTED_AT_ONCE])

    async def _promote(self, view: CompiledView, mark: Mark) -> None:
        waiting = list({key async for key in self._store.scan_view(staged(view.id))})
        if mark.record.stage is Stage.FILLING:
            await self._require_all(view, mark, len(waiting))
            await mark.put(stage=Stage.PROMOTING)
            # Until every reader has seen it, it would take values of both generations for as good as before.
            await asyncio.sleep(self._notice_seconds)
        for start in range(0, len(waiting), PROMOTED_AT_ONCE):
            await self._store.promote(view.id, waiting[start : start + PROMOTED_AT_ONCE], ttl_ms=retention_ms(view))
            self._say(view, mark.record, doing="promoting")

    async def _require_all(self, view: CompiledView, mark: Mark, waiting: int) -> None:
        """Before anything is replaced: every value is there, and the log still goes on from where they end."""
        if waiting != mark.record.entities:
            await mark.remove()
            raise RebuildConflict(
                f"{mark.record.entities:,} values of {view.id} were written, and {waiting:,} are there",
                hint="the store lost some, or another backfill left some; nothing was replaced: run it again",
            )
        self._kept.clear()
        log = await self._topic(self._source(view).topic if view.aligned else shuffle_topic(self._project, view))
        for p, begin in log.begins.items():
            if begin > mark.record.offsets.get(p, NOTHING) + 1:
                await mark.remove()
                raise too_short(view, log.topic, p, begin, f"the values end at {mark.record.offsets.get(p, NOTHING)}")


def _highest(vectors: Mapping[int, Mapping[int, int]]) -> dict[int, int]:
    highest: dict[int, int] = {}
    for vector in vectors.values():
        for s, offset in vector.items():
            highest[s] = max(highest.get(s, NOTHING), offset)
    return highest
