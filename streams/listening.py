"""What a consumer says of its partitions, until it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from aiokafka import ConsumerRebalanceListener, TopicPartition

Told = Callable[[Collection[TopicPartition]], Awaitable[None]]


class Listener(ConsumerRebalanceListener):
    """Passes on what one consumer says, under the lock. A consumer that is told to end may be in the middle of joining
    its group, and say that partitions are its own after its successor was made: `heard` is then False."""

    def __init__(self, lock: asyncio.Lock, revoked: Told, assigned: Told) -> None:
        self._lock, self._revoked, self._assigned = lock, revoked, assigned
        self.heard = True

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        async with self._lock:
            if self.heard:
                await self._revoked(revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        async with self._lock:
            if self.heard:
                await self._assigned(assigned)
