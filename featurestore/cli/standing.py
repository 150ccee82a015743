"""How things stand: what `status` shows, as one document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from featurestore.clock import SECOND, Clock, format_instant
from featurestore.config import Settings
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.errors import FeatureStoreError
from featurestore.monitor.freshness import FreshnessBoard, PartitionFreshness
from featurestore.offline.lake import Lake
from featurestore.online.fences import LEDGER, Stage
from featurestore.online.store import Beat, Fence, IntakeMark, OnlineStore, Rebuild
from featurestore.registry.catalog import Catalog

Ends = Mapping[str, Mapping[str, list[int]]]
"""Topic → partition → (first offset kept, offset after the last), as Kafka has it now."""

INTAKE = ("consumed", "forwarded", "dead_lettered")


async def standing(settings: Settings, catalog: Catalog, ends: Ends | None, clock: Clock) -> dict[str, Any]:
    """`ends` is None where Kafka is away. Raises Unavailable where the online store does not answer."""
    store = OnlineStore.connect(settings.redis, project=settings.project)
    board = FreshnessBoard(store, clock, lake=Lake(settings.lake))
    board.watch(catalog.views.values())
    try:
        await board.refresh()
        with suppress(FeatureStoreError):  # without the lake, what the store lost before now is not seen
            await board.recall()
            await board.look_for_loads()
            await board.refresh()
        reader = _Reader(store, board, ends, clock.now(), await store.rebuilds())
        return {
            "revision": catalog.revision,
            "sources": [await reader.source(source) for source in catalog.sources.values()],
            "views": [await reader.view(view, settings.project) for view in catalog.views.values()],
        }
    finally:
        await store.close()


class _Reader:
    def __init__(
        self,
        store: OnlineStore,
        board: FreshnessBoard,
        ends: Ends | None,
        now: int,
        rebuilds: Mapping[str, Rebuild],
    ) -> None:
        self._store, self._board, self._now, self._rebuilds = store, board, now, rebuilds
        self._reachable, self._ends = ends is not None, ends or {}

    async def source(self, source: CompiledSource) -> dict[str, Any]:
        beats = await self._store.beats(f"intake:{source.name}")
        marks = await self._store.intake_marks(source.name)
        known = self._ends.get(source.topic, {})
        return {
            "source": source.name,
            "topic": source.topic,
            "exists": bool(known) if self._reachable else None,
            "partitions": [
                self._intake(p, beats.get(p), marks.get(p), known.get(str(p)))
                for p in sorted({*beats, *marks, *map(int, known)})
            ],
        }

    def _intake(self, p: int, beat: Beat | None, mark: IntakeMark | None, span: list[int] | None) -> dict[str, Any]:
        done = mark.offset + 1 if mark is not None else span[0] if span else 0
        end = span[1] if span else beat.end if beat is not None else done
        ledger = dict(mark.ledger) if mark is not None else {}
        reasons = {name: count for name, count in ledger.items() if name not in INTAKE and count}
        return {
            "partition": p,
            "stored_to": done,
            "end": end,
            "lag": max(0, end - max(done, beat.position if beat is not None else 0)),
            "ledger": {name: ledger.get(name, 0) for name in INTAKE},
            "dead_letters": reasons,
            **self._life(beat),
        }

    def _life(self, beat: Beat | None) -> dict[str, Any]:
        """What the worker last said about a partition; nulls where none ever did."""
        if beat is None:
            return {"behind_seconds": None, "beat_age_seconds": None, "waiting_for": "", "stopped": ""}
        return {
            "behind_seconds": round(beat.behind_seconds, 3),
            "beat_age_seconds": round(max(0, self._now - beat.at) / SECOND, 3),
            "waiting_for": beat.waiting_for,
            "stopped": beat.stopped,
        }

    async def view(self, view: CompiledView, project: str) -> dict[str, Any]:
        fences = await self._store.fences(view.id)
        beats = await self._store.beats(f"fold:{view.id}")
        fresh = self._board.report().get(view.id, {})
        topic = view.source.topic if view.aligned else f"{project}.shuffle.{view.lane}"
        known = self._ends.get(topic, {})
        return {
            "view": view.id,
            "source": view.source.name,
            "topic": topic,
            "freshness_seconds": None if view.freshness is None else view.freshness / SECOND,
            "partitions": [
                self._fold(p, fences.get(p), beats.get(p), fresh.get(p), known.get(str(p)))
                for p in sorted({*fences, *beats, *map(int, known)})
            ],
            "ledger": _ledger(fences.values()),
            "incomplete": self._board.incomplete().get(view.id, ""),
            "rebuild": self._rebuild(self._rebuilds.get(view.id)),
        }

    def _rebuild(self, mark: Rebuild | None) -> dict[str, Any] | None:
        """How far it is; null where none is under way or was left unfinished."""
        if mark is None:
            return None
        return {
            "verb": "rebuild" if mark.stage is Stage.REPLACING else "backfill",
            "stage": str(mark.stage) or "replacing",
            "by": mark.by,
            "since": format_instant(mark.started_at),
            "generation": mark.generation,
            "done": len(mark.done) / mark.buckets,
            "entities": mark.entities,
            "silent_seconds": round(max(0, self._now - mark.at) / SECOND, 3),
            "abandoned": mark.abandoned(self._now),
        }

    def _fold(
        self, p: int, fence: Fence | None, beat: Beat | None, fresh: PartitionFreshness | None, span: list[int] | None
    ) -> dict[str, Any]:
        done = fence.offset + 1 if fence is not None else span[0] if span else 0
        end = span[1] if span else beat.end if beat is not None else done
        return {
            "partition": p,
            "status": str(fresh.status) if fresh is not None else "stale",
            "lag": max(0, end - done),
            "end": end,
            "fence": None if fence is None else _fence(fence),
            **self._life(beat),
        }


def _fence(fence: Fence) -> dict[str, Any]:
    return {
        "generation": fence.generation,
        "offset": fence.offset,
        "event_time": format_instant(fence.event_time) if fence.event_time > 0 else None,
        "written_at": format_instant(fence.written_at),
    }


def _ledger(fences: Iterable[Fence]) -> list[dict[str, Any]]:
    """Counts by source partition, over all entity partitions."""
    totals: dict[int, list[int]] = {}
    for fence in fences:
        for partition, counts in fence.ledger.items():
            total = totals.setdefault(partition, [0] * len(LEDGER))
            totals[partition] = [a + b for a, b in zip(total, counts, strict=True)]
    return [{"source_partition": p, **dict(zip(LEDGER, totals[p], strict=True))} for p in sorted(totals)]
