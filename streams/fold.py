"""The second stage: columnar records of a shuffle topic into the online store, view by view."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
from aiokafka import TopicPartition

from featurestore.contracts.encode import encode_json
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import event_batch
from featurestore.engine.state import ViewState
from featurestore.errors import Corrupt
from featurestore.offline.lake import app_id
from featurestore.offline.materialised import features_table
from featurestore.telemetry import get_logger
from streams.deadletters import Letter
from streams.folding import NOTHING, Delivery, Piece, ViewFold
from streams.materialising import FeatureRows
from streams.shuffle import APPENDED, Shuffled, decode
from streams.stage import Record
from streams.stopping import PartitionStopped, StopReason
from streams.viewlane import Refuse, ViewLane
from streams.wiring import NO_WORK, LanePlan, Parts, Work

MAX_ROWS = 50_000
"""Rows folded at once, where single records are not larger: bounds memory and the time until they can be read."""

_log = get_logger(__name__)

_ENCODED = (("fs.encoded", b"json"),)
"""Of letters whose original bytes are not in the shuffle: the event, encoded anew, under the entity's key."""


async def open_views(
    parts: Parts, rows: FeatureRows, lane: LanePlan, partitions: Collection[int], share: int, count: int
) -> dict[int, list[ViewLane]]:
    """The views of a lane in each partition, from their fences on. `share` divides the memory for state; `count` is how
    many partitions the lane's shuffle topic has.

    Raises Unavailable.
    """
    opened: dict[int, list[ViewLane]] = {p: [] for p in partitions}
    for view in lane.views:
        fences = await parts.store.fences(view.id)
        lost = await _lost(parts, view, [p for p in partitions if p not in fences])
        for p in partitions:
            state = ViewState(view, budget_bytes=int(parts.settings.state_bytes) // max(1, share), xp=parts.xp)
            fold = ViewFold(view, p, state, fences.get(p))
            record = (rows.open(view, p), rows.visible.open(view, p, count, fences.get(p)))
            opened[p].append(ViewLane(fold, parts.store, parts.clock, parts.patience, *record, lost=p in lost))
    return opened


async def _lost(parts: Parts, view: CompiledView, unfenced: Sequence[int]) -> set[int]:
    """Partitions without a fence that had one: the lake has rows of what it vouched for."""
    ids = {app_id(view.id, p): p for p in unfenced}
    if not ids:
        return set()
    recorded = await asyncio.to_thread(parts.lake.recorded, features_table(view), list(ids))
    found = {ids[name] for name, offset in recorded.items() if offset > NOTHING}
    for p in sorted(found):
        _log.warning("the online store lost a fence: the log is read again", view=view.id, partition=p)
    return found


def offset_wanted(views: Sequence[ViewLane], resume: int | None) -> int | None:
    """What `Stage.open` says of a partition that goes on from offset `resume`."""
    # A generation may begin before the first record: then all of them are needed.
    whole = any(view.lost or (view.fold.fence.generation and view.fold.fence.offset == NOTHING) for view in views)
    return 0 if whole else resume or None


class FoldStage:
    """Implements `stage.Stage` for shuffle topics."""

    def __init__(self, parts: Parts, rows: FeatureRows) -> None:
        self._parts, self._rows = parts, rows
        self._work: Work = NO_WORK
        self._counts: Mapping[str, int] = {}
        self._views: dict[TopicPartition, list[ViewLane]] = {}

    @property
    def topics(self) -> Collection[str]:
        return self._work.shuffles

    def plan(self, work: Work, counts: Mapping[str, int]) -> None:
        """What to do from the next `open` on; `counts` has the partitions of every shuffle topic."""
        self._work, self._counts = work, dict(counts)

    def views(self, partition: TopicPartition) -> Sequence[ViewLane]:
        return self._views.get(partition, ())

    async def open(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        share = sum(len(lane.views) for lane in self._work.shuffles.values()) * 4
        for topic, lane in self._work.shuffles.items():
            mine = [tp for tp in partitions if tp.topic == topic]
            if mine:
                numbers, count = [tp.partition for tp in mine], self._counts[topic]
                opened = await open_views(self._parts, self._rows, lane, numbers, share, count)
                self._views.update({tp: opened[tp.partition] for tp in mine})
        return {tp: offset_wanted(self.views(tp), self.durable(tp)) for tp in partitions}

    async def close(self, partitions: Collection[TopicPartition]) -> None:
        for tp in partitions:
            self._views.pop(tp, None)
        await self._rows.flush()

    def durable(self, partition: TopicPartition) -> int | None:
        views = self._views.get(partition)
        return min(view.fold.resume for view in views) if views else None

    async def process(self, partition: TopicPartition, records: Sequence[Record], start: int) -> None:
        lane = self._work.shuffles.get(partition.topic)
        if lane is None:
            return  # the revision that is coming does not read this topic
        for view in lane.views:
            self._rows.check(view)
        _require_contiguous(partition, records, start)
        decoded = _decode_all(lane, records)
        for group in _groups(decoded):
            delivery = _delivery(lane, group)
            refuse = self._refuse(lane, group, delivery)
            await asyncio.gather(*(view.take(delivery, refuse) for view in self.views(partition)))

    def _refuse(self, lane: LanePlan, group: Sequence[_Delivered], delivery: Delivery) -> Refuse:
        async def refuse(rows: np.ndarray, reason: str, error: str) -> None:
            table = pa.Table.from_batches([shuffled.rows for _, shuffled in group]).take(pa.array(rows))
            values = encode_json(lane.source.contract, table.select(lane.source.contract.names))
            places = zip(table["_partition"].to_pylist(), table["_offset"].to_pylist(), values, strict=True)
            keys = delivery.events.keys.take(pa.array(rows)).to_pylist()
            letters = [
                Letter(p, o, (key or "").encode(), value, _ENCODED, reason, error)
                for (p, o, value), key in zip(places, keys, strict=True)
            ]
            await self._parts.dead.send(lane.source, letters)

        return refuse


_Delivered = tuple[int, Shuffled]


def _require_contiguous(partition: TopicPartition, records: Sequence[Record], start: int) -> None:
    """Only intake writes here, without transactions, and nothing is compacted: every offset must be there."""
    hole = hole_in(records, start)
    if hole is not None:
        raise PartitionStopped(StopReason.GAP, f"offset {hole} of {partition.topic} is missing")


def hole_in(records: Sequence[Record], start: int) -> int | None:
    """The first offset from `start` on that is missing before the last record; None where there is none."""
    if records[0].offset == start and records[-1].offset - start + 1 == len(records):
        return None
    offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
    return int(start + np.flatnonzero(offsets != start + np.arange(len(records)))[0])


def _decode_all(lane: LanePlan, records: Sequence[Record]) -> list[_Delivered]:
    try:
        decoded = [(r.offset, decode(r.value or b"", lane.source.contract)) for r in records]
    except Corrupt as error:
        raise PartitionStopped(StopReason.FOREIGN, error.message) from error
    for offset, shuffled in decoded:
        if shuffled.origin.source != lane.source.name:
            raise PartitionStopped(StopReason.FOREIGN, f"record {offset} is of source {shuffled.origin.source!r}")
    return decoded


def _groups(decoded: Sequence[_Delivered]) -> list[list[_Delivered]]:
    """Whole records, in order, of at most MAX_ROWS rows together."""
    groups: list[list[_Delivered]] = [[]]
    held = 0
    for item in decoded:
        rows = len(item[1].offsets)
        if groups[-1] and held + rows > MAX_ROWS:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += rows
    return groups


def _delivery(lane: LanePlan, group: Sequence[_Delivered]) -> Delivery:
    rows = pa.Table.from_batches([shuffled.rows for _, shuffled in group]).combine_chunks()
    return Delivery(
        pieces=tuple(
            Piece(shuffled.origin.partition, shuffled.offsets, np.full(len(shuffled.offsets), offset))
            for offset, shuffled in group
        ),
        events=event_batch(lane.source, lane.keys, rows),
        appended=rows[APPENDED].to_numpy(),
        first=group[0][0],
        last=group[-1][0],
    )
