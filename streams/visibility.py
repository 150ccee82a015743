"""When events became readable online, for the lake: what `as_served` exports count by.

Each flush of a view in an entity partition adds, for each source partition that it brought further, the offsets that
its instant made readable. What a worker had not handed over when it ended is gone with it: the next one that opens the
partition says of all that the fence vouches for that it was readable when the fence was written. That is the latest
instant possible, never one at which a reader could not have seen the events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.definitions.compiled import CompiledView
from featurestore.offline.visibility import ROWS, visible_table
from featurestore.online.fences import Fence
from streams.appending import Appender
from streams.folding import NOTHING
from streams.wiring import Parts


@dataclass(frozen=True, slots=True)
class Seen:
    """Up to which source offsets events of one entity partition were readable at an instant, by source partition."""

    partition: int
    offset: int
    """Of the log."""
    partitions: int
    ranges: tuple[tuple[int, int, int], ...]
    """Source partition, the offset up to which events had been readable before, and the one up to which they are."""
    at: int

    @property
    def num_rows(self) -> int:
        return len(self.ranges)


class Readable:
    """What becomes readable in one view's partition."""

    def __init__(self, put: Callable[[Seen], None], partition: int, partitions: int, fence: Fence | None) -> None:
        self._put, self._partition, self._partitions = put, partition, partitions
        self._opened: Seen | None = None
        if fence is not None and fence.vector and fence.readable:
            # The first generation was folded from the log's beginning on, by workers that recorded, or were killed.
            # A later one began with events that nobody recorded: those are known from intake.
            stood = tuple((p, up_to if fence.generation else NOTHING, up_to) for p, up_to in fence.vector.items())
            self._opened = Seen(partition, fence.offset, partitions, stood, fence.written_at)
            self._put(self._opened)

    def note(self, before: Mapping[int, int], after: Mapping[int, int], offset: int, at: int) -> None:
        """At `at` (µs) the view could be read as of `after` (source partition → offset), where it had been at `before`.
        `offset` is the log's, up to which that was folded."""
        if self._opened is not None:
            # A rebuild's fence may stand before what the lake has recorded of this log, which then takes no row of its
            # offset: the rows go along until the log brings something new.
            self._put(Seen(self._partition, offset, self._partitions, self._opened.ranges, self._opened.at))
        new = tuple((p, before.get(p, NOTHING), up_to) for p, up_to in after.items() if up_to > before.get(p, NOTHING))
        if new:
            self._opened = None
            self._put(Seen(self._partition, offset, self._partitions, new, at))


class VisibleRows:
    """The record of all views that this worker folds, each view in its own table."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._appenders: dict[str, Appender[int, Seen]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, view: CompiledView, partition: int, partitions: int, fence: Fence | None) -> Readable:
        """For a partition that is opened, of `partitions`, and goes on from this fence."""
        if view.id not in self._appenders:
            self._start(view)
        rows = self._appenders[view.id]

        def put(seen: Seen) -> None:
            rows.put(seen.partition, seen, seen.offset, seen.offset)

        return Readable(put, partition, 0 if view.aligned else partitions, fence)

    def check(self, view: CompiledView) -> None:
        """Raises what the lake refused the view's rows for."""
        self._appenders[view.id].check()

    async def flush(self) -> None:
        await asyncio.gather(*(appender.flush() for appender in self._appenders.values()))

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _start(self, view: CompiledView) -> None:
        appender = Appender[int, Seen](
            self._parts.lake,
            visible_table(view),
            view.id,
            self._parts.patience,
            seen_rows,
            _nothing_more,
            interval=self._parts.settings.lake_interval_seconds,
        )
        self._appenders[view.id] = appender
        self._tasks.append(asyncio.create_task(appender.run()))


def seen_rows(pieces: Sequence[Seen]) -> pa.Table:
    """At least one piece → rows of `visible/<view>@<v>`."""
    ranges = np.array([r for seen in pieces for r in seen.ranges], np.int64).reshape(-1, 3)
    sizes = [len(seen.ranges) for seen in pieces]
    partition, offset, partitions, at = (
        np.repeat(np.array(values, np.int64), sizes)
        for values in zip(*((s.partition, s.offset, s.partitions, s.at) for s in pieces), strict=True)
    )
    order = np.lexsort((offset, partition))
    columns = [partition, offset, ranges[:, 0], ranges[:, 1], ranges[:, 2], partitions, at]
    return pa.table([pa.array(c[order]).cast(field.type) for c, field in zip(columns, ROWS, strict=True)], schema=ROWS)


async def _nothing_more(_partition: int, _offset: int) -> None:
    """No mark waits for these rows."""
