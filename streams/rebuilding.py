"""`rebuild`: the online store's values from the lake, after a loss: written over what is left of them.

For each view: a mark is put, from which readers know that its values are not whole; the events are folded bucket by
bucket and their values written; then the fences say from where the log goes on, and the mark is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from featurestore.clock import SECOND
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.errors import FeatureStoreError
from featurestore.online.fences import IntakeMark, Rebuild, Stage
from featurestore.registry.catalog import Catalog
from streams.folding import NOTHING, Count
from streams.regenerating import Done, Kept, Mark, Regenerator, too_short
from streams.topics import shuffle_topic

__all__ = ["Done", "Kept", "Rebuilder"]


class Rebuilder(Regenerator):
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

    async def _unfinished(self, found: Mapping[str, Rebuild]) -> list[str]:
        """Views with a mark, and those of the same run that had not even got one."""
        found = {name: mark for name, mark in found.items() if mark.stage is Stage.REPLACING}
        names = list(found)
        for mark in found.values():
            for name in mark.together:
                fences = (await self._store.fences(name)).values()
                if max((fence.generation for fence in fences), default=0) < mark.started_at // SECOND:
                    names.append(name)
        return [name for name in names if name in self._views]

    def _continues(self, view: CompiledView, found: Rebuild) -> bool:
        # The store that a backfill counted on has lost something, or this would not run.
        return found.stage is Stage.REPLACING

    async def _new(self, view: CompiledView, together: list[str], now: int) -> Rebuild:
        source = self._source(view)
        log = await self._topic(source.topic)
        # Read before the version: whatever is at or below these offsets is in that version.
        vector = await self._recorded(source, log.begins)
        offsets = await self._offsets(view, log, vector)
        return await self._pinned(
            view, now, vector=vector, offsets=offsets, vectors={}, together=together, stage=Stage.REPLACING
        )

    async def _offsets(self, view: CompiledView, log: Kept, vector: Mapping[int, int]) -> dict[int, int]:
        """Entity partition → the log offset that its fence begins at."""
        if view.aligned:
            return await self._aligned_offsets(view, log, vector)
        # What is in the shuffle topic and in the values is dropped there by the vector, so that reading all of it
        # again is right, and nobody has to know where in it the vector lies.
        shuffle = await self._topic(shuffle_topic(self._project, view))
        for p, begin in shuffle.begins.items():
            if begin > 0:
                raise too_short(view, shuffle.topic, p, begin, "events that are not in the lake yet may be gone")
        return dict.fromkeys(shuffle.begins, NOTHING)

    async def _rebuild(self, view: CompiledView, mark: Mark) -> Done:
        done = await self._compute(view, mark)
        await self._put_fences(view, mark.record)
        return done

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


def _lanes(catalog: Catalog, source: CompiledSource) -> list[tuple[str, list[CompiledView]]]:
    """The shuffled lanes of a source, each with its views."""
    lanes: dict[str, list[CompiledView]] = {}
    for view in catalog.views.values():
        if view.source.name == source.name and not view.aligned:
            lanes.setdefault(view.lane, []).append(view)
    return list(lanes.items())
