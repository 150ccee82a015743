"""One partition's task: batches in order, one at a time; what arrives meanwhile becomes the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiokafka import TopicPartition

MAX_WAITING_BYTES = 16 << 20
"""Of values that wait in one partition: a batch is large where events are small, and not where they are large."""


class Lane:
    """Runs `process(partition, records, start)` for what is offered, until it raises or is drained.

    `next` is the offset after the last finished record, `fetched` the one after the last that was offered. `ended`
    is told of an exception; the lane then takes nothing more.
    """

    def __init__(
        self,
        partition: TopicPartition,
        start: int,
        process: Callable[[TopicPartition, Sequence[Any], int], Awaitable[None]],
        ended: Callable[[Lane, Exception], None],
        room: asyncio.Event,
        limit: int,
    ) -> None:
        """`limit` records, or `MAX_WAITING_BYTES`, may wait before there is no room for more."""
        self.partition = partition
        self.next = start
        self.fetched = start
        self.newest: int | None = None
        """When the broker got the last finished record (µs)."""
        self._process = process
        self._ended = ended
        self._room = room
        self._waiting: list[Any] = []
        self._held = 0
        self._limit = limit
        self._arrived = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    @property
    def has_room(self) -> bool:
        return not self._closing and len(self._waiting) < self._limit and self._held < MAX_WAITING_BYTES

    def offer(self, records: Sequence[Any]) -> None:
        """Records as fetched; those before `fetched`, which overlapping fetches deliver again, are cut off."""
        fresh = records if records[0].offset >= self.fetched else [r for r in records if r.offset >= self.fetched]
        if fresh and not self._closing:
            self.fetched = fresh[-1].offset + 1
            self._waiting.extend(fresh)
            self._held += sum(len(record.value) for record in fresh if record.value)
            self._arrived.set()

    def abandon(self) -> None:
        """Takes nothing more; a running batch is cut off."""
        self._closing = True
        self._task.cancel()

    async def drain(self, seconds: float) -> None:
        """Lets the running batch finish within the time, drops what waits, and ends."""
        self._closing = True
        self._waiting = []
        self._arrived.set()
        await asyncio.wait([self._task], timeout=seconds)
        await end(self._task)

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            records, self._waiting, self._held = self._waiting, [], 0
            self._room.set()
            try:
                await self._process(self.partition, records, self.next)
            except Exception as error:  # noqa: BLE001 — the pump decides what each kind means
                self._closing = True
                self._ended(self, error)
                return
            self.next = records[-1].offset + 1
            self.newest = records[-1].timestamp * 1000


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks until they are done: `asyncio.wait_for` of Python 3.11 can swallow a cancellation that comes just
    as its own wait ends, and waiting for such a task would take for ever."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)
