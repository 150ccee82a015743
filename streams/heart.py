"""The worker's slow loop: follows the registry, sees which topics there are, and says that the lanes live."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from aiokafka import TopicPartition

from featurestore.clock import SECOND
from featurestore.errors import FeatureStoreError, StoreRefused, Unavailable
from featurestore.online.fences import Beat, Fence
from featurestore.registry.follow import Follower
from featurestore.telemetry import CONSUMER_LAG, PARTITION_STOPPED, REGISTRY_REVISION, STATE_ENTITIES, get_logger
from streams.consumer import Pump
from streams.fold import FoldStage
from streams.intake import IntakeStage
from streams.viewlane import ViewLane
from streams.wiring import NO_WORK, Parts, Work, work_of

INTERVAL_SECONDS = 0.5
BEAT_SECONDS = 1.0
WATCH_SECONDS = 5.0

_log = get_logger(__name__)


class Heart:
    def __init__(
        self,
        parts: Parts,
        follower: Follower,
        intake: IntakeStage,
        intake_pump: Pump,
        fold: FoldStage,
        fold_pump: Pump,
    ) -> None:
        self._parts, self._follower = parts, follower
        self._intake, self._intake_pump = intake, intake_pump
        self._fold, self._fold_pump = fold, fold_pump
        self._work: Work = NO_WORK
        self._missing: frozenset[str] = frozenset()
        self._caught_up: dict[TopicPartition, int] = {}
        self._stopped_said: set[tuple[str, str, str]] = set()
        self._lags_said: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Beats until cancelled. Trouble with a part is waited out."""
        await asyncio.gather(self._follow(), self._beat(), self._watch_store())

    async def _follow(self) -> None:
        trouble = ""
        while True:
            try:
                await self._follower.refresh()
                if self._follower.trouble is not None:
                    raise self._follower.trouble
                await self._arrange()
                trouble = ""
            except FeatureStoreError as error:
                if str(error) != trouble:
                    _log.warning("cannot follow the registry and the topics", reason=error.message, hint=error.hint)
                trouble = str(error)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _arrange(self) -> None:
        """Gives both stages their work where something is new: a revision, or a topic that was missing."""
        catalog = self._follower.catalog
        if catalog is None:
            return
        work = self._work
        if catalog.revision != work.revision:
            work = work_of(catalog, self._parts.settings.project)
            REGISTRY_REVISION.set(catalog.revision)
            self._parts.dead.revision = catalog.revision
        changed = work.content != self._work.content
        if not changed and not self._missing:
            self._work = work
            return
        sources = await self._parts.topics.look(work.sources)
        self._say_missing(sources.missing)
        if changed or sources.missing != self._missing:
            await self._assign(work, sources.counts, reopen=changed)
        self._work, self._missing = work, sources.missing

    async def _assign(self, work: Work, counts: Mapping[str, int], *, reopen: bool) -> None:
        wanted = {
            topic: self._parts.settings.shuffle_partitions or counts[lane.source.topic]
            for topic, lane in work.shuffles.items()
            if lane.source.topic in counts
        }
        shuffles = await self._parts.topics.ensure(wanted) if wanted else {}
        self._intake.plan(work, shuffles)
        self._fold.plan(work, shuffles)
        _log.info("lanes", revision=work.revision, sources=sorted(counts), shuffles=sorted(shuffles))
        for pump, topics in ((self._fold_pump, shuffles), (self._intake_pump, counts)):
            if not await pump.subscribe(topics) and reopen:
                await pump.reopen()

    def _say_missing(self, missing: frozenset[str]) -> None:
        for topic in sorted(missing - self._missing):
            _log.warning("waiting for a topic that does not exist yet", topic=topic, hint="create it, or publish to it")
        for topic in sorted(self._missing - missing):
            _log.info("the topic is there", topic=topic)

    async def _beat(self) -> None:
        while True:
            try:
                self._measure()
                await self._put_beats()
                await self._look_for_losses()
            except FeatureStoreError as error:
                _log.warning("no beat", reason=error.message) if not isinstance(error, Unavailable) else None
            await asyncio.sleep(BEAT_SECONDS)

    async def _watch_store(self) -> None:
        """A server that was safe at the start can be told to evict. It then gets no more values until it is not."""
        refused = ""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self._parts.store.require_safe()
                if refused:
                    _log.info("the online store is safe again")
                refused = ""
            except StoreRefused as error:
                if error.message != refused:
                    _log.error("the online store is unsafe; nothing is written", reason=error.message, hint=error.hint)
                refused = error.message
            except Unavailable:
                continue  # who writes will say so

    def _measure(self) -> None:
        """Entities held, over all partitions; what is said of partitions that another worker has now is taken back."""
        held = Counter({view.id: 0 for lane in self._work.lanes for view in lane.views})
        mine = self._intake_pump.assignment | self._fold_pump.assignment
        for tp in mine:
            for view in self._current(tp):
                held[view.fold.view.id] += len(view.fold.state)
        for view_id, entities in held.items():
            STATE_ENTITIES.labels(view_id).set(entities)
        for topic, partition in self._lags_said - {(tp.topic, str(tp.partition)) for tp in mine}:
            CONSUMER_LAG.remove(topic, partition)
            self._lags_said.discard((topic, partition))
            self._count_stop(TopicPartition(topic, int(partition)), "")

    async def _put_beats(self) -> None:
        beats: dict[str, dict[int, Beat]] = defaultdict(dict)
        for topic in self._missing:
            source = self._work.sources[topic]
            beats[f"intake:{source.name}"][0] = self._nothing_to_read(topic)
        for tp, beat in self._beats_of(self._intake_pump, self._intake):
            source_of = self._intake.sources.get(tp.topic)
            if source_of is not None:
                beats[f"intake:{source_of.name}"][tp.partition] = beat
            for view in self._intake.views(tp):
                beats[f"fold:{view.fold.view.id}"][tp.partition] = _of_generation(beat, view)
        for tp, beat in self._beats_of(self._fold_pump, self._fold):
            for view in self._fold.views(tp):
                beats[f"fold:{view.fold.view.id}"][tp.partition] = _of_generation(beat, view)
        for stage, of_partitions in beats.items():
            await self._parts.store.put_beats(stage, of_partitions)

    def _nothing_to_read(self, topic: str) -> Beat:
        waiting = f"topic {topic}"
        return Beat(at=self._parts.clock.now(), position=0, end=0, behind_seconds=0.0, waiting_for=waiting)

    def _beats_of(self, pump: Pump, stage: IntakeStage | FoldStage) -> Iterator[tuple[TopicPartition, Beat]]:
        for tp in pump.assignment:
            stop = pump.stopped.get(tp)
            position = pump.position(tp) if stop is None else stage.durable(tp) or 0
            end = pump.end(tp)
            if position is None or end is None:
                continue  # not opened: nobody vouches for it yet
            CONSUMER_LAG.labels(tp.topic, str(tp.partition)).set(max(0, end - position))
            self._lags_said.add((tp.topic, str(tp.partition)))
            self._count_stop(tp, stop.reason if stop is not None else "")
            yield (
                tp,
                Beat(
                    at=self._parts.clock.now(),
                    position=position,
                    end=end,
                    behind_seconds=self._behind(tp, position, end, pump.newest(tp)),
                    waiting_for=self._parts.patience.waiting_for or pump.waiting_for,
                    stopped=str(stop) if stop is not None else "",
                ),
            )

    def _behind(self, tp: TopicPartition, position: int, end: int, newest: int | None) -> float:
        """Seconds. A quiet partition that has just got a record is not as far behind as its last record is old."""
        now = self._parts.clock.now()
        if position >= end:
            self._caught_up[tp] = now
            return 0.0
        since = [at for at in (newest, self._caught_up.setdefault(tp, now)) if at is not None]
        return max(0, now - max(since)) / SECOND

    def _count_stop(self, tp: TopicPartition, reason: str) -> None:
        topic, partition = tp.topic, str(tp.partition)
        for said in [s for s in self._stopped_said if s[:2] == (topic, partition) and s[2] != reason]:
            PARTITION_STOPPED.labels(*said).set(0)
            self._stopped_said.discard(said)
        if reason:
            PARTITION_STOPPED.labels(topic, partition, reason).set(1)
            self._stopped_said.add((topic, partition, reason))

    async def _look_for_losses(self) -> None:
        """Rewinds partitions of which the store holds less than it acknowledged, or a newer generation."""
        views: dict[str, list[tuple[Pump, TopicPartition, ViewLane, Fence | None]]] = defaultdict(list)
        lanes: Sequence[tuple[Pump, IntakeStage | FoldStage]] = (
            (self._intake_pump, self._intake),
            (self._fold_pump, self._fold),
        )
        for pump, stage in lanes:
            for tp in pump.assignment:
                for view in stage.views(tp):
                    views[view.fold.view.id].append((pump, tp, view, view.stored))
        for view_id, held in views.items():
            found = await self._parts.store.fences(view_id)
            for pump, tp, view, believed in held:
                if _must_reread(found.get(tp.partition), believed) and view in self._current(tp):
                    _log.warning("the online store lost writes or was rebuilt", view=view_id, partition=tp.partition)
                    await pump.rewind(tp)

    def _current(self, tp: TopicPartition) -> Sequence[ViewLane]:
        return (*self._intake.views(tp), *self._fold.views(tp))


def _of_generation(beat: Beat, view: ViewLane) -> Beat:
    generation = view.fold.fence.generation
    return msgspec.structs.replace(beat, generation=generation) if generation else beat


def _must_reread(found: Fence | None, believed: Fence | None) -> bool:
    if believed is None:
        return found is not None and found.generation > 0
    return found is None or found.position < believed.position or found.generation > believed.generation
