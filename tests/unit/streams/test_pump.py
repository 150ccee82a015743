"""A pump on a broker: whatever is rewound or stopped meanwhile, no partition misses a record."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaConnectionError

from streams.consumer import Pump, PumpConfig, kafka_consumer
from streams.embedded import PARTITIONS, EmbeddedBroker
from streams.lane import end
from streams.stopping import PartitionStopped, StopReason

RECORDS = 3000
REWINDS = 100
WHOLE = {p: list(range(RECORDS)) for p in range(PARTITIONS)}


class Seen:
    """A stage that notes every offset once, and resumes after the last one noted. `stops` says where it stops."""

    def __init__(self, stops: Mapping[int, int] | None = None) -> None:
        self.offsets: dict[int, list[int]] = defaultdict(list)
        self.holes: list[tuple[int, int, int]] = []
        self._stops = stops or {}

    async def open(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        return {tp: self.durable(tp) for tp in partitions}

    async def process(self, partition: TopicPartition, records: Sequence[Any], start: int) -> None:
        await asyncio.sleep(random.random() / 500)
        number, wanted = partition.partition, start
        for record in records:
            if record.offset != wanted:
                self.holes.append((number, wanted, record.offset))
            if record.offset == self._stops.get(number):
                raise PartitionStopped(StopReason.REJECTS, "told to")
            self.offsets[number].append(record.offset)
            wanted = record.offset + 1

    async def close(self, partitions: Collection[TopicPartition]) -> None:
        pass

    def durable(self, partition: TopicPartition) -> int | None:
        noted = self.offsets[partition.partition]
        return noted[-1] + 1 if noted else None


@pytest.fixture
async def address(embedded_broker: EmbeddedBroker) -> str:
    async with AIOKafkaProducer(bootstrap_servers=embedded_broker.bootstrap, linger_ms=5) as producer:
        await asyncio.gather(
            *[await producer.send("t", b"%d" % i, partition=p) for i in range(RECORDS) for p in range(PARTITIONS)]
        )
    return embedded_broker.bootstrap


async def read_all(pump: Pump, stage: Seen, wanted: Mapping[int, int], rewound: Sequence[int] = ()) -> None:
    """Until the stage has so many records of each partition; partitions are rewound again and again meanwhile, but not
    for ever: on a busy machine opening one takes longer than the pauses."""
    left = REWINDS
    await pump.start()
    try:
        await pump.subscribe(["t"])
        async with asyncio.timeout(120):
            while not stage.holes and any(len(stage.offsets[p]) < n for p, n in wanted.items()):
                await asyncio.sleep(random.uniform(0.02, 0.1))
                for p in rewound if left else ():
                    await pump.rewind(TopicPartition("t", p))
                left = max(0, left - 1)
    finally:
        await pump.stop()


async def test_rewinding_one_partition_costs_the_others_no_record(address: str) -> None:
    stage = Seen()
    pump = Pump(PumpConfig(address, "g", batch_records=20), stage)
    await read_all(pump, stage, dict.fromkeys(range(PARTITIONS), RECORDS), rewound=[0])

    assert stage.holes == []
    assert WHOLE == dict(stage.offsets)


async def test_reopening_everything_costs_no_record(address: str) -> None:
    stage = Seen()
    pump = Pump(PumpConfig(address, "g", batch_records=20), stage)
    reading = asyncio.create_task(read_all(pump, stage, dict.fromkeys(range(PARTITIONS), RECORDS)))
    while not reading.done():
        await asyncio.sleep(random.uniform(0.02, 0.4))
        await pump.reopen()
    await reading

    assert stage.holes == []
    assert WHOLE == dict(stage.offsets)


async def test_a_partition_that_stops_leaves_the_others_alone(address: str) -> None:
    stage = Seen(stops={1: 40, 2: 1000})
    pump = Pump(PumpConfig(address, "g", batch_records=20), stage)
    await read_all(pump, stage, {0: RECORDS, 1: 40, 2: 1000, 3: RECORDS})

    assert {0: RECORDS, 1: 40, 2: 1000, 3: RECORDS} == {p: len(seen) for p, seen in stage.offsets.items()}
    assert {TopicPartition("t", 1), TopicPartition("t", 2)} == set(pump.stopped)


class Waiting(Seen):
    """Opens partitions slowly: the second time until all have `joined`, the third time until records are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = asyncio.Event()
        self._asked = 0

    async def open(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        self._asked += 1
        found = await super().open(partitions)
        if self._asked == 2:
            await self.joined.wait()
        while self._asked == 3 and found == await super().open(partitions):  # noqa: ASYNC110 - other tasks read them
            await asyncio.sleep(0.01)
        return found


class Late(ConsumerRebalanceListener):
    """Of a new consumer: while it joins the group, the old one says that it has all partitions."""

    def __init__(self, old: ConsumerRebalanceListener, new: ConsumerRebalanceListener, joined: asyncio.Event) -> None:
        self._old, self._new, self._joined = old, new, joined

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._new.on_partitions_revoked(revoked)
        await self._old.on_partitions_assigned({TopicPartition("t", p) for p in range(PARTITIONS)})

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._new.on_partitions_assigned(assigned)
        self._joined.set()


async def test_what_a_consumer_says_after_it_was_given_up_opens_nothing(address: str) -> None:
    """Its partitions would be read twice at once: by its lanes, and by those of its successor."""
    stage, listeners = Waiting(), list[ConsumerRebalanceListener]()

    def consumer(config: PumpConfig) -> Any:
        made = kafka_consumer(config)
        subscribe, getmany, first = made.subscribe, made.getmany, not listeners

        def heard(topics: Sequence[str], listener: ConsumerRebalanceListener) -> None:
            subscribe(topics, listener=listener if first else Late(listeners[0], listener, stage.joined))
            listeners.append(listener)

        async def fails(*partitions: TopicPartition, timeout_ms: int) -> Any:
            if first and any(len(seen) > 100 for seen in stage.offsets.values()):
                raise KafkaConnectionError
            return await getmany(*partitions, timeout_ms=timeout_ms)

        made.subscribe, made.getmany = heard, fails
        return made

    pump = Pump(PumpConfig(address, "g", batch_records=20), stage, consumer)
    await read_all(pump, stage, dict.fromkeys(range(PARTITIONS), RECORDS))

    assert len(listeners) == 2
    assert stage.holes == []
    assert WHOLE == dict(stage.offsets)


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed += 1

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await end(task)

    assert 1 == swallowed
    assert task.cancelled()
