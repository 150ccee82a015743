"""One schedule of faults, from its seed to its verdict."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from featurestore.config import load_settings
from featurestore.online import store as online_store
from streams import shuffle
from streams.producing import Outgoing
from tests.e2e.streaming import TOPIC, Sent
from tests.simulation.backfill import Backfills, parts_of_backfills
from tests.simulation.checking import check, is_quiet
from tests.simulation.events import PARTITIONS, catalog, records_of
from tests.simulation.lake import SimulatedLake
from tests.simulation.log import SimulatedLog
from tests.simulation.loop import SimulatedLoop
from tests.simulation.store import PROJECT, SimulatedRedis
from tests.simulation.worker import SimulatedWorker, Site
from tests.simulation.world import Part, Violation, World

LIVE_SECONDS = 240.0
"""Virtual time after the last fault within which all must be quiet."""
SETTLE_SECONDS = 2.0
BACKFILLED = 0.25
"""Share of the schedules in which views are backfilled meanwhile."""
TROUBLED_SECONDS = 15.0


@dataclass(frozen=True)
class Verdict:
    seed: int
    failure: str
    """Empty where every promise was kept."""
    trace: str
    counts: Counter[str]
    seconds: float
    """Virtual."""


class Run:
    def __init__(self, seed: int, *, say: bool = False) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.loop = SimulatedLoop()
        self.world = World(self.rng, self.loop, say)
        self.loop.delay = self.world.latency
        log, redis = SimulatedLog(self.world), SimulatedRedis(self.world)
        settings = load_settings(
            kafka="simulated:9092",
            project=PROJECT,
            lake_interval_seconds=self.rng.choice([0.3, 1.0, 3.0]),
            batch_records=self.rng.choice([4, 15, 60]),
            shuffle_partitions=2,
        )
        letters = Part(self.world, "dlq")
        self.site = Site(self.world, log, redis, SimulatedLake(self.world), letters, catalog(), settings)
        self.parts = (log.part, redis.part, self.site.lake.part, letters)
        self.workers: list[SimulatedWorker] = []
        self.records = records_of(self.rng, self.rng.randint(40, 80))
        self._static = self.rng.random() < 0.5
        self._started = 0
        # Of its own, so that whether there is a backfill changes nothing else of a seed's schedule.
        rng = random.Random(f"{seed}, backfill")
        self.backfills = Backfills(self.site, rng) if rng.random() < BACKFILLED else None
        self._loaded = self.backfills.loaded if self.backfills else []

    def verdict(self) -> Verdict:
        self.loop.set_exception_handler(self._unhandled)
        with _settings_of_modules(self.rng), parts_of_backfills(self.backfills.keys_at_once if self.backfills else 1):
            try:
                self.loop.run_until_complete(self._story())
                failure = ""
            except AssertionError as error:
                failure = f"{type(error).__name__}: {error}"
            finally:
                self._clean_up()
        return Verdict(self.seed, failure, self.world.trace, self.world.counts, self.loop.time())

    async def _story(self) -> None:
        self.site.log.make(TOPIC, PARTITIONS)
        for part in self.parts:
            part.flaky = self.rng.choice([0.0, 0.0, 0.01, 0.05])
        for _ in range(self.rng.choice([1, 1, 2])):
            self._start()
        faults = [asyncio.create_task(self._fault()) for _ in range(self.rng.randint(1, 6))]
        if self.backfills:
            faults.append(asyncio.create_task(self.backfills.troubled()))
        await asyncio.gather(self._publish(), *faults)
        self.world.calm = True
        if not self.workers:
            self._start()
        self.world.note("calm")
        if self.backfills:
            await self.backfills.complete(LIVE_SECONDS)
        await self._quiet()
        await asyncio.sleep(SETTLE_SECONDS)
        await check(self.site, self.records, self._loaded, self.workers, refilled=self.backfills is not None)
        if self.backfills:
            await self.backfills.check()

    async def _quiet(self) -> None:
        deadline = self.loop.time() + LIVE_SECONDS
        while not await is_quiet(self.site, self.records):
            self._require_alive()
            if self.loop.time() > deadline:
                stopped = [
                    {str(tp): str(stop) for tp, stop in p.stopped.items()} for w in self.workers for p in w.pumps
                ]
                raise Violation(f"not live: {LIVE_SECONDS:.0f} s after the last fault it is not quiet; {stopped}")
            await asyncio.sleep(0.5)

    def _require_alive(self) -> None:
        for worker in self.workers:
            if worker.task.done():
                raise Violation(f"{worker.name} ended: {worker.task.exception()!r}") from worker.task.exception()

    async def _publish(self) -> None:
        left: Sequence[Sent] = self.records
        pause = TROUBLED_SECONDS / len(left)
        while left:
            burst = self.rng.choice([1, 1, 3, 12])
            for record in left[:burst]:
                record.offset = self.site.log.append(
                    Outgoing(TOPIC, record.partition, record.value, record.key, [("trace", b"t1")])
                )
                if record.event is not None:
                    record.event |= {"partition": record.partition, "offset": record.offset}
            left = left[burst:]
            await asyncio.sleep(self.rng.expovariate(1 / (pause * burst)))

    async def _fault(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, TROUBLED_SECONDS))
        kind = self.rng.choice(_FAULTS)
        self.world.note(f"fault: {kind.__name__}")
        self.world.counts[kind.__name__.strip("_")] += 1
        await kind(self)

    def _start(self, instance: str | None = None) -> SimulatedWorker:
        self._started += 1
        name = f"w{self._started}"
        worker = SimulatedWorker(self.site, name, instance or (name if self._static else None))
        self.workers.append(worker)
        self.world.note(f"start {name}")
        return worker

    def _some_worker(self) -> SimulatedWorker | None:
        awake = [worker for worker in self.workers if not worker.frozen]
        return self.rng.choice(awake) if awake else None

    async def _step(self) -> None:
        """Returns between any two callbacks, not only where time passes."""
        reached = asyncio.Event()
        self.loop.after_steps(self.rng.randrange(60), reached.set)
        await reached.wait()

    async def _interrupted(self) -> SimulatedWorker | None:
        """A worker between any two of its steps; None where none is awake."""
        worker = self._some_worker()
        if worker is None:
            return None
        await self._step()
        return worker if worker in self.workers and not worker.frozen else None

    async def _kill(self) -> None:
        worker = await self._interrupted()
        if worker is None:
            return
        self.world.note(f"kill {worker.name}")
        self._require_alive()
        worker.freeze()
        self.workers.remove(worker)
        await asyncio.sleep(self.rng.uniform(0.05, 3.0))
        self._start(worker.instance)

    async def _freeze(self) -> None:
        worker = await self._interrupted()
        if worker is None:
            return
        self.world.note(f"freeze {worker.name}")
        worker.freeze()
        if self.rng.random() < 0.7:
            self._start()
        await asyncio.sleep(self.rng.choice([2.0, 12.0, 18.0]) * self.rng.uniform(0.5, 1.5))
        self.world.note(f"thaw {worker.name}")
        worker.thaw()

    async def _join(self) -> None:
        self._start()

    async def _leave(self) -> None:
        worker = self._some_worker()
        if worker is None or len(self.workers) < 2:
            return
        self.workers.remove(worker)
        self.world.note(f"leave {worker.name}")
        leaving = worker.leave()
        await asyncio.wait([leaving], timeout=120)
        if not leaving.done():
            raise Violation(f"{worker.name} does not end")

    async def _outage(self) -> None:
        part = self.rng.choice(self.parts)
        if part.down:
            return
        self.world.note(f"down: {part.name}")
        part.down = True
        await asyncio.sleep(self.rng.choice([0.5, 4.0, 15.0]))
        part.down = False
        self.world.note(f"up: {part.name}")

    async def _lose(self) -> None:
        await self._step()
        self.site.redis.lose(self.rng.randint(1, self.rng.choice([2, 8, 30])))

    async def _empty(self) -> None:
        await self._step()
        self.site.redis.empty()

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self.world.note(f"unhandled: {context.get('message')}")

    def _clean_up(self) -> None:
        """Ends what is left, so that nothing of this run is found by Python's collector in the next."""
        self.loop.thaw_all()
        self.world.calm = True
        for part in self.parts:
            part.down = False
        while left := [task for task in asyncio.all_tasks(self.loop) if not task.done()]:
            for task in sorted(left, key=hash):
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        self.loop.close()


_FAULTS: tuple[Callable[[Run], Awaitable[None]], ...] = (
    Run._kill, Run._kill, Run._freeze, Run._join, Run._leave, Run._outage, Run._outage, Run._lose, Run._empty,
)  # fmt: skip


@contextmanager
def _settings_of_modules(rng: random.Random) -> Iterator[None]:
    """So few events fill no chunk and no record otherwise; in a record of 1 byte there is room for one of them.
    `random` itself makes the jitter of `Patience`."""
    state, chunk, record = random.getstate(), online_store.CHUNK_KEYS, shuffle.MAX_RECORD_BYTES
    random.seed(rng.random())
    online_store.CHUNK_KEYS, shuffle.MAX_RECORD_BYTES = rng.choice([1, 3, chunk]), rng.choice([1, 2_000, record])
    try:
        yield
    finally:
        online_store.CHUNK_KEYS, shuffle.MAX_RECORD_BYTES = chunk, record
        random.setstate(state)


def simulate(seed: int, *, say: bool = False) -> Verdict:
    return Run(seed, say=say).verdict()
