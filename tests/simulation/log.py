"""Kafka as the stages see it: a log, a producer's outbox, topics, and consumers that share partitions in a group."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, NamedTuple, TypeVar

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnknownMemberIdError,
)

from featurestore.errors import Unavailable
from streams.consumer import PumpConfig
from streams.producing import Headers, Outgoing
from streams.topics import Partitions
from tests.simulation.world import Gone, Part, World

T = TypeVar("T")

SESSION_SECONDS = 10.0
_HEARTBEAT_SECONDS = 1.0
_BUSY = 0.3
"""Share of the fetches that time passes between, and their handing out."""
_TORN = 0.2
"""Share of the records that get lost while others of the same call for the same partition arrive."""


class SimulatedRecord(NamedTuple):
    offset: int
    timestamp: int
    """Milliseconds, the broker's."""
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class SimulatedLog:
    def __init__(self, world: World) -> None:
        self.world, self.part = world, Part(world, "kafka")
        self.topics: dict[str, list[list[SimulatedRecord]]] = {}
        self.groups: dict[str, Group] = {}
        self._readers: list[asyncio.Event] = []

    def make(self, topic: str, partitions: int) -> None:
        self.topics.setdefault(topic, [[] for _ in range(partitions)])

    def append(self, record: Outgoing) -> int:
        """The offset that the record got."""
        records = self.topics[record.topic][record.partition]
        now = self.world.now() // 1000
        records.append(SimulatedRecord(len(records), now, 1, record.key, record.value, record.headers))
        self.world.note(f"log: {record.topic}/{record.partition}@{len(records) - 1}")
        for reader in self._readers:
            reader.set()
        return len(records) - 1

    def of(self, tp: TopicPartition) -> list[SimulatedRecord]:
        return self.topics[tp.topic][tp.partition]

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(self))

    def consumer(self, config: PumpConfig) -> SimulatedConsumer:
        arrived = asyncio.Event()
        self._readers.append(arrived)
        return SimulatedConsumer(self, config, arrived)


class SimulatedOutbox:
    """`producing.Outbox`: partitions are independent, and of many records for one of them some may not arrive, also
    such as were sent before others that do."""

    def __init__(self, log: SimulatedLog, part: Part) -> None:
        self._log, self._part = log, part

    async def deliver(self, records: Sequence[Outgoing]) -> None:
        asked: dict[TopicPartition, list[Outgoing]] = defaultdict(list)
        for record in records:
            asked[TopicPartition(record.topic, record.partition)].append(record)
        answers = [self._part.ask(partial(self._append, some)) for some in asked.values()]
        if not all(came and whole for whole, came in [await answer for answer in answers]):
            raise Unavailable(self._part.name, "records are not acknowledged")

    def _append(self, records: Sequence[Outgoing]) -> bool:
        """Whether all have arrived."""
        world = self._log.world
        torn = len(records) > 1 and self._part.flaky > 0 and not world.calm
        arrived = [not torn or world.rng.random() >= _TORN for _ in records]
        for record in compress(records, arrived):
            self._log.append(record)
        return all(arrived)


class SimulatedTopics:
    """`topics.Topics`."""

    def __init__(self, log: SimulatedLog) -> None:
        self._log = log

    async def look(self, names: Collection[str]) -> Partitions:
        return await self._done(lambda: self._look(names))

    async def ensure(self, wanted: Mapping[str, int]) -> dict[str, int]:
        def make() -> dict[str, int]:
            for topic, partitions in wanted.items():
                self._log.make(topic, partitions)
            return dict(self._look(wanted).counts)

        return await self._done(make)

    async def is_plain(self, _topic: str) -> bool:
        return True

    def _look(self, names: Collection[str]) -> Partitions:
        counts = {name: len(self._log.topics[name]) for name in sorted(names) if name in self._log.topics}
        return Partitions(counts, frozenset(set(names) - set(counts)))

    async def _done(self, effect: Callable[[], T]) -> T:
        try:
            return await self._log.part.done(effect)
        except Gone:
            raise Unavailable("kafka", "does not answer") from None


@dataclass(eq=False)
class _Member:
    consumer: SimulatedConsumer
    seen: float
    joining: asyncio.Future[frozenset[TopicPartition]] | None = None


class Group:
    """A coordinator: everybody gives everything up, then the partitions are shared anew."""

    def __init__(self, log: SimulatedLog) -> None:
        self._log, self._world = log, log.world
        self.committed: dict[TopicPartition, int] = {}
        self.members: list[_Member] = []
        self._sweeping = False
        self._generation = 0

    def find(self, consumer: SimulatedConsumer) -> _Member | None:
        return next((member for member in self.members if member.consumer is consumer), None)

    def beat(self, consumer: SimulatedConsumer) -> bool:
        """False where the group knows no such member, any more."""
        member = self.find(consumer)
        if member is not None:
            member.seen = self._world.loop.time()
        return member is not None

    def join(self, consumer: SimulatedConsumer) -> asyncio.Future[frozenset[TopicPartition]]:
        """Resolves with the consumer's partitions when every member has joined, or has been missed for a session."""
        if not self._sweeping:
            self._sweeping = True
            self._sweep()
        member = self.find(consumer)
        if member is None:
            self._replace_instance(consumer)
            member = _Member(consumer, 0.0)
            self.members.append(member)
        member.seen = self._world.loop.time()
        member.joining = joined = self._world.loop.create_future()
        self._rejoin_all()
        self._complete()
        return joined

    def leave(self, consumer: SimulatedConsumer) -> None:
        member = self.find(consumer)
        if member is not None:
            self._remove(member)

    def _replace_instance(self, consumer: SimulatedConsumer) -> None:
        for member in [m for m in self.members if consumer.instance and m.consumer.instance == consumer.instance]:
            member.consumer.fenced = True
            self._world.counts["instances taken over"] += 1
            self.members.remove(member)

    def _remove(self, member: _Member) -> None:
        self.members.remove(member)
        self._rejoin_all()
        self._complete()

    def _rejoin_all(self) -> None:
        """Members hear of it with the answer to their next heartbeat."""
        generation = self._generation

        def tell(member: _Member) -> None:
            if member.joining is None and generation == self._generation:
                member.consumer.rejoin.set()

        for member in self.members:
            delay = self._world.rng.uniform(0, _HEARTBEAT_SECONDS)
            self._world.loop.outside(delay, partial(tell, member))

    def _sweep(self) -> None:
        now = self._world.loop.time()
        if self._log.part.down:  # a coordinator that is away misses nobody
            for member in self.members:
                member.seen = max(member.seen, now - SESSION_SECONDS)
        for member in [m for m in self.members if m.seen < now - SESSION_SECONDS]:
            self._world.counts["sessions lost"] += 1
            self._world.note(f"group: session of {member.consumer.name} lost")
            self._remove(member)
        self._world.loop.outside(1.0, self._sweep)

    def _complete(self) -> None:
        if not self.members or any(member.joining is None for member in self.members):
            return
        members = list(self.members)
        self._world.rng.shuffle(members)
        topics = sorted({topic for member in members for topic in member.consumer.topics})
        shares: list[set[TopicPartition]] = [set() for _ in members]
        partitions = [TopicPartition(t, p) for t in topics for p in range(len(self._log.topics.get(t, ())))]
        for n, tp in enumerate(partitions):
            wanting = [i for i, member in enumerate(members) if tp.topic in member.consumer.topics]
            shares[wanting[n % len(wanting)]].add(tp)
        self._world.counts["rebalances"] += 1
        self._generation += 1
        for member, share in zip(members, shares, strict=True):
            future, member.joining = member.joining, None
            assert future is not None
            self._world.note(f"group: {member.consumer.name} has {sorted((t.topic, t.partition) for t in share)}")
            if not future.done():
                future.set_result(frozenset(share))


class SimulatedConsumer:
    """What `Pump` uses of `AIOKafkaConsumer`, with its habits: a fetch that a rebalance overtakes is still handed out,
    and who is not a member any more learns it late."""

    def __init__(self, log: SimulatedLog, config: PumpConfig, arrived: asyncio.Event) -> None:
        self._log, self._world, self._group = log, log.world, log.group(config.group)
        self.instance, self.name = config.instance, config.group
        self._most = config.batch_records
        self._arrived = arrived
        self.topics: frozenset[str] = frozenset()
        self.fenced = False
        self.rejoin = asyncio.Event()
        self._listener: ConsumerRebalanceListener | None = None
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._positions: dict[TopicPartition, int] = {}
        self._settled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._ask(lambda: None)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._assigned = frozenset()
        await self._log.part.ask(lambda: self._group.leave(self))

    def subscribe(self, topics: Collection[str], listener: ConsumerRebalanceListener) -> None:
        self.topics, self._listener = frozenset(topics), listener
        self.rejoin.set()
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._coordinate()), asyncio.create_task(self._beat())]

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._require(tp)
        self._positions[tp] = offset
        self._arrived.set()

    def highwater(self, tp: TopicPartition) -> int | None:
        return len(self._log.of(tp)) if tp in self._positions else None

    async def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._ask(lambda: dict.fromkeys(partitions, 0))

    async def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._ask(lambda: {tp: len(self._log.of(tp)) for tp in partitions})

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        def take() -> bool:
            member = self._group.find(self) is not None
            if member:
                self._group.committed.update(offsets)
            return member

        if not await self._ask(take):
            raise CommitFailedError

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        await asyncio.sleep(self._world.latency())
        if timeout_ms:
            await self._settled.wait()
        self._fail()
        found = self._take(partitions)
        if not found and timeout_ms:
            # Longer than asked for: an idle broker must not cost the simulation a thousand fetches.
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), self._world.rng.uniform(0.3, 1.5))
            found = self._take(partitions)
        if found:
            # Fetched, and not handed out yet: the process has other things to do, as opening a partition again. Who
            # gives up waiting now gets it all the same.
            with contextlib.suppress(asyncio.CancelledError):
                for _ in range(self._world.rng.randrange(4)):
                    await asyncio.sleep(0)
                if self._world.rng.random() < _BUSY:
                    await asyncio.sleep(self._world.latency())
        return found

    def _take(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, list[Any]]:
        found: dict[TopicPartition, list[Any]] = {}
        left = self._most
        for tp in partitions:
            if tp not in self._assigned:
                continue
            at = self._position(tp)
            records = self._log.of(tp)[at : at + self._world.rng.randint(1, max(1, left))]
            if records and left > 0:
                left -= len(records)
                found[tp] = list(records)
                self._positions[tp] = records[-1].offset + 1
        return found

    def _position(self, tp: TopicPartition) -> int:
        at = self._positions.get(tp, self._group.committed.get(tp))
        if at is None:
            raise NoOffsetForPartitionError(tp)
        if at > len(self._log.of(tp)):
            raise OffsetOutOfRangeError({tp: at})
        return at

    def _fail(self) -> None:
        if self.fenced:
            raise UnknownMemberIdError
        if self._log.part.fails_now() and self._world.rng.random() < 0.2:
            self._world.counts["consumers failed"] += 1
            raise KafkaConnectionError
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _require(self, tp: TopicPartition) -> None:
        if tp not in self._assigned:
            raise IllegalStateError(f"{tp} is not assigned")

    async def _ask(self, effect: Callable[[], T]) -> T:
        try:
            return await self._log.part.done(effect)
        except Gone:
            raise KafkaConnectionError from None

    async def _coordinate(self) -> None:
        assert self._listener is not None
        while True:
            await self.rejoin.wait()
            self.rejoin.clear()
            self._settled.clear()
            if self._assigned:
                await self._listener.on_partitions_revoked(self._assigned)
            await asyncio.sleep(self._world.latency())
            assigned = await self._group.join(self)
            self._assigned, self._positions = assigned, {}
            self._settled.set()
            for _ in range(self._world.rng.randrange(4)):
                await asyncio.sleep(0)  # assigned, and the listener does not know yet
            await self._listener.on_partitions_assigned(assigned)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            if self._log.part.down or self._group.beat(self) or self.rejoin.is_set() or not self._settled.is_set():
                continue
            if self.fenced:
                continue
            if self._world.rng.random() < 0.3:
                raise UnknownMemberIdError  # the coordinator's task ends; `getmany` says so
            self.rejoin.set()
