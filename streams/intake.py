"""The first stage: records of a source topic become events in the lake, batches by entity, and dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from aiokafka import TopicPartition

from featurestore.definitions.compiled import CompiledSource
from featurestore.engine.columns import canonical_keys, event_batch
from featurestore.engine.placement import partitions_of
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.online.fences import IntakeMark
from streams.appending import Appender
from streams.deadletters import Letter
from streams.fold import hole_in, offset_wanted, open_views
from streams.folding import NOTHING, Delivery, Piece
from streams.materialising import FeatureRows
from streams.producing import Outgoing
from streams.reading import Batch, read
from streams.rejects import RejectWatch
from streams.shuffle import APPENDED, PARTITION, Origin, encode
from streams.stage import Record
from streams.stopping import PartitionStopped, StopReason
from streams.viewlane import Refuse, ViewLane
from streams.wiring import NO_WORK, LanePlan, Parts, Work

NO_MARK = IntakeMark(lanes={}, offset=NOTHING, ledger={}, written_at=0)


@dataclass(slots=True, eq=False)
class _Partition:
    """One source partition that this worker reads."""

    source: CompiledSource
    watch: RejectWatch
    mark: IntakeMark
    """As of the last batch that was handed over; stored when the lake has it too."""
    durable: IntakeMark
    recorded: int = NOTHING
    """What the lake had when the partition was opened. A crash between its append and the mark leaves the mark behind;
    those records are counted again, and no dead letter is sent twice."""
    lanes: list[LanePlan] = field(default_factory=list)
    aligned: list[tuple[LanePlan, list[ViewLane]]] = field(default_factory=list)

    @property
    def views(self) -> list[ViewLane]:
        return [view for _, views in self.aligned for view in views]

    @property
    def resume(self) -> int:
        """The first offset that some sink has not got."""
        shuffled = [self.durable.lanes.get(lane.name, NOTHING) for lane in self.lanes]
        return min([self.durable.offset, *shuffled, *(view.fold.fence.offset for view in self.views)]) + 1


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """Events of one batch, on their way to the lake."""

    events: pa.RecordBatch
    partition: int
    offsets: np.ndarray
    visible_time: int
    """µs, when this worker took them."""

    @property
    def num_rows(self) -> int:
        return len(self.offsets)


class IntakeStage:
    """Implements `stage.Stage` for source topics."""

    def __init__(self, parts: Parts, rows: FeatureRows) -> None:
        self._parts, self._rows = parts, rows
        self._work: Work = NO_WORK
        self._counts: Mapping[str, int] = {}
        self._open: dict[TopicPartition, _Partition] = {}
        self._appenders: dict[str, Appender[IntakeMark, Arrived]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def sources(self) -> Mapping[str, CompiledSource]:
        return self._work.sources

    def plan(self, work: Work, counts: Mapping[str, int]) -> None:
        """What to do from the next `open` on; `counts` has the partitions of every shuffle topic."""
        self._work, self._counts = work, dict(counts)

    def views(self, partition: TopicPartition) -> Sequence[ViewLane]:
        part = self._open.get(partition)
        return part.views if part is not None else ()

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def open(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        for topic, source in self._work.sources.items():
            mine = [tp for tp in partitions if tp.topic == topic]
            if mine:
                await self._open_source(source, mine)
        return {tp: offset_wanted(self.views(tp), self.durable(tp)) for tp in partitions}

    async def _open_source(self, source: CompiledSource, mine: Sequence[TopicPartition]) -> None:
        numbers = [tp.partition for tp in mine]
        marks = await self._parts.store.intake_marks(source.name)
        # Definitions may have changed without the partitions being closed: what waits for the lake is read again.
        self._appender(source).forget(numbers)
        recorded = await self._appender(source).recorded(numbers)
        aligned = self._work.of_source(source.name, aligned=True)
        share = sum(len(lane.views) for lane in aligned) * 4
        views = [(lane, await open_views(self._parts, self._rows, lane, numbers, share, 0)) for lane in aligned]
        for tp in mine:
            mark = marks.get(tp.partition, NO_MARK)
            self._open[tp] = _Partition(
                source=source,
                watch=RejectWatch(self._parts.settings.stop_share),
                mark=mark,
                durable=mark,
                recorded=recorded[tp.partition],
                lanes=list(self._work.of_source(source.name, aligned=False)),
                aligned=[(lane, opened[tp.partition]) for lane, opened in views],
            )

    async def close(self, partitions: Collection[TopicPartition]) -> None:
        """Hands what is buffered to the lake, so that the next owner need not read it again."""
        sources = {part.source.name for tp in partitions if (part := self._open.get(tp)) is not None}
        try:
            await asyncio.gather(*(self._appenders[name].flush() for name in sources))
        finally:
            for tp in partitions:
                part = self._open.pop(tp, None)
                if part is not None:
                    self._appenders[part.source.name].forget([tp.partition])

    def durable(self, partition: TopicPartition) -> int | None:
        part = self._open.get(partition)
        return part.resume if part is not None else None

    async def process(self, partition: TopicPartition, records: Sequence[Record], start: int) -> None:
        part = self._open[partition]
        await self._require_whole(part, partition, records, start)
        now = self._parts.clock.now()
        batch = read(part.source, partition.partition, records, start, now)
        cut = part.watch.cut(batch.refused)
        if cut is None:
            await self._take(part, batch)
            return
        if cut:
            some = records[:cut]
            await self._take(part, read(part.source, partition.partition, some, start, now))
        at = records[cut].offset
        said = next(letter for letter in batch.letters if letter.offset >= at)
        raise PartitionStopped(
            StopReason.REJECTS,
            f"from offset {at} on, more than {self._parts.settings.stop_share:.0%} of the records are refused; "
            f"the first as {said.reason}: {said.error}",
        )

    async def _take(self, part: _Partition, batch: Batch) -> None:
        """Returns when every sink but the lake has acknowledged the batch, and the lake's buffer has it."""
        fresh = [letter for letter in batch.letters if letter.offset > part.mark.offset]
        # Dead letters are acknowledged before the lake's append: where the lake has more, they need not go again.
        unsent = [letter for letter in fresh if letter.offset > part.recorded]
        records = self._shuffle(part, batch)
        await all_done(
            self._parts.dead.send(part.source, unsent),
            self._deliver(records),
            *self._fold_in_place(part, batch),
        )
        part.mark = _advanced(part, batch, fresh)
        start = int(np.searchsorted(batch.offsets, part.durable.offset, "right"))
        arrived = Arrived(batch.events.slice(start), batch.partition, batch.offsets[start:], self._parts.clock.now())
        await self._appender(part.source).add(batch.partition, arrived, part.mark.offset, part.mark)

    def _shuffle(self, part: _Partition, batch: Batch) -> list[list[Outgoing]]:
        """Rounds of columnar records. One partition occurs once in a round: a later record must not overtake an
        earlier one that has to be sent again, since fold would then take that for a second delivery."""
        rounds: list[list[Outgoing]] = []
        origin = Origin(part.source.name, batch.partition, part.source.contract.id)
        for lane in part.lanes:
            start = int(np.searchsorted(batch.offsets, part.mark.lanes.get(lane.name, NOTHING), "right"))
            events = batch.events.slice(start)
            if not events.num_rows:
                continue
            count = self._counts[lane.topic]
            targets = partitions_of(
                canonical_keys([events.column(k) for k in lane.keys]), count, batch.partition % count
            )
            for target, payloads in encode(origin, events, targets).items():
                for number, payload in enumerate(payloads):
                    if number == len(rounds):
                        rounds.append([])
                    rounds[number].append(Outgoing(lane.topic, target, payload))
        return rounds

    async def _deliver(self, rounds: Sequence[Sequence[Outgoing]]) -> None:
        for records in rounds:
            await self._parts.patience.until_done(lambda records=records: self._parts.outbox.deliver(records))  # type: ignore[misc]

    def _fold_in_place(self, part: _Partition, batch: Batch) -> list[Awaitable[None]]:
        """The aligned shortcut: the source topic is the log that these views read."""
        if not part.aligned:
            return []
        partitions = pa.array(np.full(len(batch.offsets), batch.partition, np.int32))
        names = [*batch.events.schema.names, PARTITION]
        rows = pa.RecordBatch.from_arrays([*batch.events.columns, partitions], names=names)
        piece = Piece(batch.partition, batch.offsets, batch.offsets)
        takes: list[Awaitable[None]] = []
        for lane, views in part.aligned:
            delivery = Delivery(
                pieces=(piece,) if len(batch.offsets) else (),
                events=event_batch(part.source, lane.keys, rows),
                appended=rows[APPENDED].to_numpy(),
                first=batch.first,
                last=batch.last,
            )
            for view in lane.views:
                self._rows.check(view)
            refuse = self._refuse(part, batch)
            takes += [view.take(delivery, refuse) for view in views]
        return takes

    def _refuse(self, part: _Partition, batch: Batch) -> Refuse:
        async def refuse(rows: np.ndarray, reason: str, error: str) -> None:
            await self._parts.dead.send(part.source, [batch.letter(row, reason, error) for row in rows.tolist()])

        return refuse

    async def _require_whole(self, part: _Partition, tp: TopicPartition, records: Sequence[Any], start: int) -> None:
        """Raises PartitionStopped where events may have been lost."""
        shuffled = (part.mark.lanes.get(lane.name, NOTHING) for lane in part.lanes)
        had = {max(part.mark.offset, part.recorded), *shuffled} - {NOTHING}
        oldest = min(had, default=start)
        if start > oldest + 1:
            raise PartitionStopped(StopReason.GAP, f"offset {oldest + 1} is wanted, and the next one there is {start}")
        hole = hole_in(records, start)
        # Where nothing is compacted away, what is missing are the marks of transactions, or aborted ones.
        if hole is not None and not await self._parts.topics.is_plain(tp.topic):
            raise PartitionStopped(
                StopReason.GAP,
                f"offset {hole} of {tp.topic} is missing, and the broker does not say that it keeps every record "
                "(cleanup.policy=delete)",
            )

    def _appender(self, source: CompiledSource) -> Appender[IntakeMark, Arrived]:
        if source.name not in self._appenders:

            async def durable(partition: int, mark: IntakeMark) -> None:
                await self._durable(source, partition, mark)

            appender = Appender[IntakeMark, Arrived](
                self._parts.lake,
                events_table(source.name),
                source.name,
                self._parts.patience,
                partial(_lake_rows, source),
                durable,
                interval=self._parts.settings.lake_interval_seconds,
            )
            self._appenders[source.name] = appender
            self._tasks.append(asyncio.create_task(appender.run()))
        return self._appenders[source.name]

    async def _durable(self, source: CompiledSource, partition: int, mark: IntakeMark) -> None:
        """The lake has it; lanes and dead letters had it before."""
        stamped = msgspec.structs.replace(mark, written_at=self._parts.clock.now())
        await self._parts.patience.until_done(
            lambda: self._parts.store.put_intake_mark(source.name, partition, stamped)
        )
        part = self._open.get(TopicPartition(source.topic, partition))
        if part is not None and stamped.offset >= part.durable.offset:
            part.durable = stamped


async def all_done(*effects: Awaitable[None]) -> None:
    """Waits for all, then raises what the first of them raised: nothing keeps running behind a failure."""
    for outcome in await asyncio.gather(*effects, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _advanced(part: _Partition, batch: Batch, letters: Sequence[Letter]) -> IntakeMark:
    """The mark after a batch. What is read again for a new lane's sake is not counted twice."""
    mark = part.mark
    ledger = dict(mark.ledger)
    events = len(batch.offsets) - int(np.searchsorted(batch.offsets, mark.offset, "right"))
    added = {"consumed": events + len(letters), "forwarded": events, "dead_lettered": len(letters)}
    for name, n in added.items():
        ledger[name] = ledger.get(name, 0) + n
    for letter in letters:
        ledger[letter.reason] = ledger.get(letter.reason, 0) + 1
    lanes = dict(mark.lanes)
    for lane in part.lanes:
        lanes[lane.name] = max(lanes.get(lane.name, NOTHING), batch.last)
    return IntakeMark(lanes=lanes, offset=max(mark.offset, batch.last), ledger=ledger, written_at=mark.written_at)


def _lake_rows(source: CompiledSource, arrived: Sequence[Arrived]) -> pa.Table:
    """Events as the lake keeps them."""
    # Arrow cannot join a piece without rows that was cut off the end of another.
    some = [piece for piece in arrived if piece.num_rows] or [arrived[0]]
    sizes = [piece.num_rows for piece in some]
    return in_time_order(
        system_columns(
            pa.Table.from_batches([piece.events for piece in some]).select(source.contract.names),
            np.repeat([piece.partition for piece in some], sizes),
            np.concatenate([piece.offsets for piece in some]),
            source.event_time,
            np.repeat([piece.visible_time for piece in some], sizes),
        )
    )
