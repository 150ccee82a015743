"""All records of a topic up to where it ends now, once, without a consumer group."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from featurestore.errors import Unavailable

_SILENCE_SECONDS = 30.0
_WAIT_MS = 500
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Scan:
    """`kept` and `ends` are, by partition, the first offset that the broker keeps and the one after the last.

    Records of open and of aborted transactions are read like all others.
    """

    topic: str
    kept: Mapping[int, int]
    ends: Mapping[int, int]
    starts: Mapping[int, int]
    _consumer: Any

    @property
    def total(self) -> int:
        """Records to read, where no offset is without one."""
        return sum(max(0, end - self.starts[p]) for p, end in self.ends.items())

    async def batches(self) -> AsyncGenerator[Sequence[Any], None]:
        """Records in the order of each partition, some hundreds at a time. Raises Unavailable("kafka")."""
        with _answering(self.topic):
            left = {TopicPartition(self.topic, p): end for p, end in self.ends.items() if self.starts[p] < end}
            if not left:
                return
            self._consumer.assign(list(left))
            for tp in left:
                self._consumer.seek(tp, self.starts[tp.partition])
            heard = time.monotonic()
            while left:
                found = await self._consumer.getmany(*left, timeout_ms=_WAIT_MS, max_records=_AT_ONCE)
                for tp, records in found.items():
                    wanted = [record for record in records if record.offset < left[tp]]
                    if wanted:
                        yield wanted
                before = len(left)
                left = {tp: end for tp, end in left.items() if await self._consumer.position(tp) < end}
                if found or len(left) < before:
                    heard = time.monotonic()
                if time.monotonic() - heard > _SILENCE_SECONDS:
                    raise Unavailable("kafka", f"{self.topic} has no next record for {_SILENCE_SECONDS:.0f} s",
                                      hint="has every partition a leader?")  # fmt: skip


@contextlib.asynccontextmanager
async def scan(
    bootstrap: str, topic: str, partitions: int, starts: Mapping[int, int] | None = None
) -> AsyncIterator[Scan]:
    """A topic of no partitions is one that does not exist, and has no records.

    Without `starts` all that is kept is read. Raises Unavailable("kafka").
    """
    if not partitions:
        yield Scan(topic, {}, {}, {}, None)
        return
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="none")
    try:
        with _answering(topic):
            await consumer.start()
            every = [TopicPartition(topic, p) for p in range(partitions)]
            kept = {tp.partition: offset for tp, offset in (await consumer.beginning_offsets(every)).items()}
            ends = {tp.partition: offset for tp, offset in (await consumer.end_offsets(every)).items()}
        yield Scan(topic, kept, ends, {p: (starts or kept).get(p, 0) for p in ends}, consumer)
    finally:
        await consumer.stop()


@contextlib.contextmanager
def _answering(topic: str) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", f"{topic} cannot be read: {error or type(error).__name__}",
                          hint="is FS_KAFKA right, and may this client read there?") from error  # fmt: skip
