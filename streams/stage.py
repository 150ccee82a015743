"""What a pump feeds: the two stages, intake and fold, as it sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from aiokafka import TopicPartition

Record: TypeAlias = Any
"""Of aiokafka, see `records`; not typed."""


class Stage(Protocol):
    """What is done with the records of a topic's partitions."""

    async def open(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """Prepares partitions, also ones that are open already; returns the next offset wanted (None: the first there
        is; 0: the first there was, since what was made of it is lost).

        Raises Unavailable where a part that is needed does not answer; it is then called again.
        """
        ...

    async def process(self, partition: TopicPartition, records: Sequence[Record], start: int) -> None:
        """Takes records, read from `start` on without a jump. Raises PartitionStopped to leave them unread."""
        ...

    async def close(self, partitions: Collection[TopicPartition]) -> None:
        """Forgets partitions that now belong to someone else, or that failed and are opened again."""
        ...

    def durable(self, partition: TopicPartition) -> int | None:
        """The offset below which no record is needed again; None where that is not known."""
        ...
