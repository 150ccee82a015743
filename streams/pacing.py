"""How fast an embedded broker may be fed: it keeps about 5 MB a partition, and what it forgets is lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from featurestore.definitions.compiled import CompiledView
from featurestore.errors import Unavailable
from featurestore.online.store import OnlineStore
from streams.publishing import Sent
from streams.topics import shuffle_topic

WINDOW_BYTES = 5 << 19
"""Sent to a partition and not settled: half of what the broker keeps, since shuffled events are kept there as well."""
PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.05


async def is_embedded(bootstrap: str) -> bool:
    """Whether the broker is the one that lives inside a development process: it has no controller."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=10_000)
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
        return cluster["controller_id"] not in {broker["node_id"] for broker in cluster["brokers"]}
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", f"{bootstrap} does not answer: {error or type(error).__name__}",
                          hint="is FS_KAFKA right?") from error  # fmt: skip
    finally:
        await admin.close()


@dataclass(slots=True)
class _Pending:
    sent: Sent
    shuffled: dict[TopicPartition, int] | None = None
    """Ends of the shuffle topics when intake had forwarded all of it."""


class Pacer:
    """Holds a publisher back until workers have settled enough: stored in the lake, folded, and fenced in Redis.

    Then a worker may even be killed: what it has to read again is still there.
    """

    def __init__(
        self, bootstrap: str, project: str, store: OnlineStore, source: str, views: Sequence[CompiledView]
    ) -> None:
        self._store, self._source = store, source
        self._folds = {view.id: shuffle_topic(project, view) for view in views if not view.aligned}
        self._consumer: Any = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
        self._pending: deque[_Pending] = deque()

    async def start(self) -> None:
        await self._consumer.start()

    async def stop(self) -> None:
        await self._consumer.stop()

    async def admit(self, sent: Sent, on_wait: Callable[[], None]) -> None:
        """Notes what was sent, and returns when more may be. Raises Unavailable where no worker takes it."""
        self._pending.append(_Pending(sent))
        if self._held() > WINDOW_BYTES:
            on_wait()
            await self._until(lambda: self._held() <= WINDOW_BYTES)

    async def drain(self) -> None:
        """Returns when all is settled."""
        await self._until(lambda: not self._pending)

    def _held(self) -> int:
        held: dict[int, int] = {}
        for pending in self._pending:
            for partition, size in pending.sent.sizes.items():
                held[partition] = held.get(partition, 0) + size
        return max(held.values(), default=0)

    async def _until(self, enough: Callable[[], bool]) -> None:
        waited = 0.0
        while not enough():
            if self._pending and await self._settled(self._pending[0]):
                self._pending.popleft()
                waited = 0.0
                continue
            if waited > PATIENCE_SECONDS:
                raise Unavailable(
                    "worker",
                    f"no worker has taken what was published for {PATIENCE_SECONDS:.0f} s, and the embedded broker "
                    "would forget it if more came",
                    hint="`featurestore status` shows what the worker waits for",
                )
            await asyncio.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS

    async def _settled(self, pending: _Pending) -> bool:
        if pending.shuffled is None:
            marks = await self._store.intake_marks(self._source)
            if any(p not in marks or marks[p].offset < end - 1 for p, end in pending.sent.ends.items()):
                return False
            pending.shuffled = await self._shuffle_ends()
        for view, topic in self._folds.items():
            fences = await self._store.fences(view)
            for tp, end in pending.shuffled.items():
                if tp.topic == topic and end and (tp.partition not in fences or fences[tp.partition].offset < end - 1):
                    return False
        return True

    async def _shuffle_ends(self) -> dict[TopicPartition, int]:
        topics = sorted(set(self._folds.values()))
        await self._consumer._client.set_topics(topics)
        partitions = [
            TopicPartition(topic, p) for topic in topics for p in self._consumer.partitions_for_topic(topic) or ()
        ]
        ends: dict[TopicPartition, int] = await self._consumer.end_offsets(partitions) if partitions else {}
        return ends
