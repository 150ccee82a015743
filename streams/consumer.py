"""The pump under both stages: one consumer, one task per partition, and nothing lost between rebalances.

The rules, each paid for by somebody's lost data:
- `getmany` can hand out records of a new assignment before its listener has run: a partition is only asked for once
  its stage has opened it and its offset was sought, and a fetch that a rebalance overtook is thrown away.
- Offsets in Kafka are a hint for people. Where to read on is what the stage says, always by an explicit seek; with
  `auto_offset_reset="none"` a missing offset is an error and never a jump.
- A listener must return quickly, so opening (which may wait for Redis) happens beside it, and giving up a partition
  waits for its running batch only within a budget. A batch that is cut off is replayed by the next owner.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from featurestore.errors import Unavailable
from featurestore.telemetry import get_logger
from streams.lane import Lane, end
from streams.listening import Listener
from streams.stage import Record, Stage
from streams.stopping import PartitionStopped, StopReason

SESSION_MS = 6_000
"""Until a group misses a silent member: the least that brokers allow by default."""
RELEASE_SECONDS = 5.0
POLL_MS = 20
COMMIT_SECONDS = 5.0
MAX_FAILURES = 5
"""Times in a row that the batch at one offset may fail before its partition stops."""
STUCK_SECONDS = 5.0
_NOWHERE = TopicPartition("", -1)
_NEVER_MS = 24 * 3600 * 1000

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PumpConfig:
    bootstrap: str
    group: str
    batch_records: int
    instance: str | None = None
    """Static membership: a worker that comes back under the same name takes its partitions over at once."""
    fetch_bytes: int = 4 << 20


def kafka_consumer(config: PumpConfig) -> Any:
    """A consumer of the group, not started yet."""
    return AIOKafkaConsumer(
        bootstrap_servers=config.bootstrap,
        group_id=config.group,
        group_instance_id=config.instance,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        max_poll_records=config.batch_records,
        max_partition_fetch_bytes=config.fetch_bytes,
        fetch_max_wait_ms=100,
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=1_000,
        # A lane that waits for Redis keeps its partitions: nobody else could do better, and lag shows it.
        max_poll_interval_ms=_NEVER_MS,
        metadata_max_age_ms=30_000,
    )


class Pump:
    """Feeds a stage from a consumer group. `start`, then `subscribe`; `stop` drains."""

    def __init__(
        self, config: PumpConfig, stage: Stage, consumer: Callable[[PumpConfig], Any] = kafka_consumer
    ) -> None:
        """`consumer` makes what records come from: a simulation puts another one in its place."""
        self._config = config
        self._stage = stage
        self._make_consumer = consumer
        self._waiting_for = ""
        self._ends: dict[TopicPartition, int] = {}
        self._failures: dict[TopicPartition, tuple[int, int]] = {}
        self._retries: set[asyncio.Task[None]] = set()
        self._consumer: Any = None
        self._started = asyncio.Event()
        self._lanes: dict[TopicPartition, Lane] = {}
        self._stopped: dict[TopicPartition, PartitionStopped] = {}
        self._assigned: set[TopicPartition] = set()
        self._generation = 0
        self._opening: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._room = asyncio.Event()
        self._topics: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()
        self._listener = self._listen()

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._assigned)

    @property
    def waiting_for(self) -> str:
        """The part that keeps partitions from being opened, or empty."""
        return self._waiting_for

    @property
    def stopped(self) -> Mapping[TopicPartition, PartitionStopped]:
        return self._stopped

    def position(self, partition: TopicPartition) -> int | None:
        """The next offset that the stage has not finished; None while the partition is not open."""
        lane = self._lanes.get(partition)
        return lane.next if lane is not None else None

    def end(self, partition: TopicPartition) -> int | None:
        """The end of the partition as of the last fetch; None before it was opened."""
        fetched: int | None = self._consumer.highwater(partition) if partition in self._assigned else None
        opened = self._ends.get(partition)
        return opened if fetched is None or opened is None else max(fetched, opened)

    def newest(self, partition: TopicPartition) -> int | None:
        """When the broker got the last record that was finished here (µs)."""
        lane = self._lanes.get(partition)
        return lane.newest if lane is not None else None

    async def start(self) -> None:
        """Returns once the broker answers, however long that takes."""
        self._consumer = await self._connect()
        self._started.set()
        self._tasks = [asyncio.create_task(self._poll()), asyncio.create_task(self._commit_hints())]

    async def wait(self) -> None:
        """Returns when the pump has ended; raises what ended it."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Finishes the running batches within the budget, commits the hints and leaves the group."""
        await end(*self._tasks, *self._retries)
        if self._consumer is None:
            return
        self._listener.heard = False
        await self._release(self._assigned)
        await self._leave()

    async def subscribe(self, topics: Collection[str]) -> bool:
        """Reads these topics from now on. True where they are others than before: the group then shares its
        partitions anew, and all are opened again."""
        wanted = frozenset(topics)
        if not wanted or wanted == self._topics:
            return False
        await self._started.wait()
        self._topics = wanted
        self._consumer.subscribe(sorted(wanted), listener=self._listener)
        return True

    async def reopen(self) -> None:
        """Has the stage open all partitions of this worker again, for instance because the definitions changed."""
        async with self._lock:
            await self._drain(self._lanes)
            self._begin_opening()

    async def rewind(self, partition: TopicPartition) -> None:
        """Drops what the stage holds for a partition and reads on from where it says, also where it was stopped."""
        async with self._lock:
            self._stopped.pop(partition, None)
            await self._drain([partition])
            await self._stage.close([partition])
            self._begin_opening()

    def _listen(self) -> Listener:
        return Listener(self._lock, self._revoke, self._assign)

    async def _revoke(self, revoked: Collection[TopicPartition]) -> None:
        await self._release(set(revoked) | set(self._lanes))

    async def _assign(self, assigned: Collection[TopicPartition]) -> None:
        self._assigned = set(assigned)
        self._stopped = {}
        if assigned:
            self._begin_opening()

    async def _release(self, partitions: Collection[TopicPartition]) -> None:
        self._assigned -= set(partitions)
        await self._drain(partitions)
        try:
            await asyncio.wait_for(self._stage.close(partitions), RELEASE_SECONDS)
        except (TimeoutError, Unavailable) as error:
            _log.warning("partitions were released before all was written; it will be replayed", error=str(error))
        await self._commit(partitions)

    async def _drain(self, partitions: Collection[TopicPartition]) -> None:
        self._generation += 1
        if self._opening is not None:
            await end(self._opening)
            self._opening = None
        leaving = [lane for tp in list(partitions) if (lane := self._lanes.pop(tp, None)) is not None]
        await asyncio.gather(*(lane.drain(RELEASE_SECONDS) for lane in leaving))

    def _begin_opening(self) -> None:
        self._opening = asyncio.create_task(self._open(self._generation))

    async def _open(self, generation: int) -> None:
        delay = 0.1
        while wanted := self._assigned - set(self._lanes) - set(self._stopped):
            try:
                offsets = await self._stage.open(wanted)
                starts = await self._consumer.beginning_offsets(list(wanted))
                ends = await self._consumer.end_offsets(list(wanted))
            except Exception as error:  # noqa: BLE001 — whatever it is, it is shown and tried again
                self._cannot_open(error, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
                continue
            if generation == self._generation:
                self._waiting_for = ""
                for tp in wanted:
                    self._seek(tp, offsets.get(tp), starts[tp], ends[tp])
                opened = {f"{tp.topic}/{tp.partition}": lane.next for tp, lane in sorted(self._lanes.items())}
                _log.info("reading", group=self._config.group, offsets=opened)
                self._room.set()
            return

    def _cannot_open(self, error: Exception, delay: float) -> None:
        self._waiting_for = "kafka" if isinstance(error, KafkaError) else getattr(error, "part", "")
        _log.warning(
            "partitions cannot be opened yet",
            group=self._config.group,
            reason=str(error) or type(error).__name__,
            again_in_seconds=delay,
            exc_info=None if self._waiting_for else error,
        )

    def _seek(self, tp: TopicPartition, wanted: int | None, start: int, end: int) -> None:
        self._ends[tp] = end
        try:
            at = check_range(wanted, start, end)
            self._consumer.seek(tp, at)
        except PartitionStopped as stop:
            self._stop_partition(tp, stop)
            return
        except IllegalStateError:
            return  # revoked meanwhile
        self._lanes[tp] = Lane(tp, at, self._stage.process, self._lane_ended, self._room, self._config.batch_records)

    async def _poll(self) -> None:
        while True:
            asked = {tp: lane for tp, lane in self._lanes.items() if lane.has_room}
            if not asked:
                self._room.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), 0.5)
            try:
                fetched = await self._fetch(list(asked))
            except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
                await self._out_of_range(list(asked), error)
            except TimeoutError:
                continue
            except KafkaError as error:
                await self._start_over(error)
            else:
                self._hand_out(fetched, asked)

    def _hand_out(
        self, fetched: Mapping[TopicPartition, Sequence[Record]], asked: Mapping[TopicPartition, Lane]
    ) -> None:
        """Records go to the lane that asked for them. A partition that was opened anew meanwhile asks again from where
        it stands: the fetch may have begun before its seek or after, and has moved the consumer on in either case."""
        for tp, records in fetched.items():
            lane = self._lanes.get(tp)
            if lane is None:
                continue  # given up or stopped meanwhile; opening it again seeks
            if lane is asked.get(tp):
                lane.offer(records)
                continue
            with contextlib.suppress(IllegalStateError):
                self._consumer.seek(tp, lane.fetched)

    async def _fetch(self, idle: Sequence[TopicPartition]) -> Mapping[TopicPartition, Sequence[Record]]:
        """Asks even where there is no room: only then aiokafka says that its membership of the group has died. Bounded,
        because it waits for the end of a rebalance, which a dead membership never sees."""
        if not self._topics:
            return {}
        asking = self._consumer.getmany(*(idle or (_NOWHERE,)), timeout_ms=POLL_MS if idle else 0)
        found: Mapping[TopicPartition, Sequence[Record]] = await asyncio.wait_for(asking, STUCK_SECONDS)
        return found if idle else {}

    async def _start_over(self, error: KafkaError) -> None:
        """A consumer that raised may have left its group for good: give everything up and join with a new one."""
        reason = str(error) or type(error).__name__
        _log.warning("the consumer failed; joining again", group=self._config.group, reason=reason)
        await asyncio.sleep(0.5)
        async with self._lock:
            self._listener.heard = False
            await self._release(self._assigned | set(self._lanes))
        await self._leave()
        self._consumer = await self._connect()
        self._listener = self._listen()
        self._consumer.subscribe(sorted(self._topics), listener=self._listener)

    async def _leave(self) -> None:
        with contextlib.suppress(KafkaError, TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(self._consumer.stop(), RELEASE_SECONDS)

    async def _out_of_range(self, asked: Collection[TopicPartition], error: Exception) -> None:
        """Some partition's wanted offset is not there: look at each, and stop those it is true of."""
        try:
            starts = await self._consumer.beginning_offsets(list(asked))
            ends = await self._consumer.end_offsets(list(asked))
        except KafkaError as trouble:
            await self._start_over(trouble)
            return
        for tp in asked:
            lane = self._lanes.get(tp)
            if lane is None:
                continue
            try:
                self._consumer.seek(tp, check_range(lane.fetched, starts[tp], ends[tp]))
            except PartitionStopped as stop:
                self._stop_partition(tp, stop)
                lane.abandon()
            except IllegalStateError:
                continue
        _log.warning("offset out of range", error=str(error))

    def _lane_ended(self, lane: Lane, error: Exception) -> None:
        tp = lane.partition
        if self._lanes.get(tp) is not lane:
            return
        if isinstance(error, PartitionStopped):
            self._stop_partition(tp, error)
            return
        at, failures = self._failures.get(tp, (lane.next, 0))
        failures = failures + 1 if at == lane.next else 1
        self._failures[tp] = (lane.next, failures)
        if failures >= MAX_FAILURES:
            self._stop_partition(tp, PartitionStopped(StopReason.FAILING, f"{type(error).__name__}: {error}"))
            return
        _log.warning(
            "a batch failed; its partition is opened again",
            topic=tp.topic,
            partition=tp.partition,
            offset=lane.next,
            failures=failures,
            exc_info=error,
        )
        del self._lanes[tp]
        self._retries.add(retry := asyncio.create_task(self._retry(lane, 0.2 * 2**failures)))
        retry.add_done_callback(self._retries.discard)

    async def _retry(self, lane: Lane, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if lane.partition in self._assigned and lane.partition not in self._lanes:
            await self.rewind(lane.partition)

    def _stop_partition(self, tp: TopicPartition, stop: PartitionStopped) -> None:
        self._lanes.pop(tp, None)
        self._stopped[tp] = stop
        _log.error("partition stopped", topic=tp.topic, partition=tp.partition, reason=stop.reason, what=str(stop))

    async def _connect(self) -> Any:
        delay = 0.2
        while True:
            consumer = self._make_consumer(self._config)
            try:
                await consumer.start()
                return consumer
            except KafkaError as error:
                self._waiting_for = "kafka"
                _log.warning("waiting for Kafka", bootstrap=self._config.bootstrap, error=str(error))
                await consumer.stop()
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    async def _commit_hints(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            await self._commit(self._assigned)

    async def _commit(self, partitions: Collection[TopicPartition]) -> None:
        known = {tp: at for tp in partitions if (at := self._stage.durable(tp)) is not None}
        if known:
            # A commit that fails in a rebalance is normal; the fences are what counts.
            with contextlib.suppress(KafkaError, IllegalStateError, TimeoutError):
                await asyncio.wait_for(self._consumer.commit(known), RELEASE_SECONDS)


def check_range(wanted: int | None, start: int, end: int) -> int:
    """The offset to read from (None: the first there is); PartitionStopped where reading there would skip something."""
    at = start if wanted is None else wanted
    if wanted == 0 < start:
        raise PartitionStopped(
            StopReason.LOST, f"the online store lost what was folded here, and the topic now begins at {start}"
        )
    if at < start:
        raise PartitionStopped(StopReason.GAP, f"offset {at} is wanted, but the topic now begins at {start}")
    if at > end:
        raise PartitionStopped(StopReason.REWOUND, f"offset {at} is wanted, but the topic ends at {end}")
    return at
