"""One run of one scenario: its own Redis, topic and lake, its workers, and a history of what was done to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from streams.folding import Count
from tests.chaos.load import PLAIN, SHOPS, Feeder, Load, Mix, make_load, offsets_of
from tests.chaos.sampling import Sampler
from tests.e2e.streaming import DEFINITIONS, PARTITIONS, VIEWS, Project, Worker, folded
from tests.parts.kafka import KafkaServer
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer

SOURCE = "clicks"
PATIENCE_SECONDS = 90.0
FRESHNESS_SECONDS = 3
"""What the views promise: lookups are `late_pipeline` beyond."""
SENT_AFTER = 60
"""Records that a recovery waits for beyond those that were sent before: some for each partition."""
WATCHED = 12
"""Entities of each view whose values are sampled."""


class Unsupported(Exception):
    """This machine cannot bring the fault about; the message says why."""


@dataclass
class Site:
    """What the runs of one session share: a real Kafka that also listens behind a proxy."""

    kafka: KafkaServer
    proxy: Proxy
    directory: Path
    starts: Executor
    """A server ends with the thread that started it: this one lives as long as the session."""

    async def started(self, part: RedisServer | KafkaServer) -> None:
        await asyncio.get_running_loop().run_in_executor(self.starts, part.start)

    def heal(self) -> None:
        self.proxy.heal()
        if not self.kafka.alive():
            self.starts.submit(self.kafka.start).result()
        self.kafka.thaw()


@dataclass
class Tally:
    kills: int = 0
    events: int = 0
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the end of a fault until everything sent before can be read."""
    repeated_letters: int = 0
    """Dead letters beyond the first of their record: the topic may hold one twice after a crash."""
    heaviest: int = 0


class Run:
    """`async with Run(...)`: afterwards every process of it is gone; the folder with logs and history stays."""

    def __init__(self, site: Site, row: int, seed: int, size: float) -> None:
        self.site, self.row, self.seed, self.size = site, row, seed, size
        self.id = f"r{row}s{seed}n{random.SystemRandom().randrange(10**6)}"
        self.rng = random.Random(f"{row}/{seed}")
        self._numbers = np.random.default_rng([row, seed])
        self.topic = f"{SOURCE}-{self.id}"
        self.directory = site.directory / self.id
        self.directory.mkdir(parents=True)
        self.history = self.directory / "history.jsonl"
        self.tally = Tally()
        self.loads: list[Load] = []
        self.losses: list[tuple[float, float]] = []
        """When acknowledged writes were taken away (`time.monotonic()`)."""
        self.kept: Load | None = None
        """What must have been taken, where the scenario made that less than what was sent."""
        self.stopped: frozenset[int] = frozenset()
        """Source partitions that must be stopped in the end."""
        self.settings: dict[str, str] = {"FS_PROJECT": self.id}
        self.workers: dict[str, Worker] = {}
        self._feeders: list[Feeder] = []
        self._began = time.monotonic()
        self._stack = contextlib.AsyncExitStack()
        self._log = self.history.open("a")
        self._sampling: asyncio.Task[None] | None = None
        self.sampler = Sampler(self.note, SOURCE, self._watched(), self._pids)

    async def __aenter__(self) -> Self:
        try:
            return await self._set_up()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _set_up(self) -> Self:
        self._stack.callback(self._log.close)
        self._last = self._stack.enter_context(contextlib.ExitStack())
        self.redis = self.another_redis()
        self.project = Project(self.site.kafka.bootstrap, self.redis.url, self.directory)
        await self.site.started(self.redis)
        self._stack.callback(self._delete_topics)
        self._stack.callback(self.site.heal)
        self._stack.callback(self.project.stop)
        await asyncio.to_thread(self.site.kafka.create_topic, self.topic, partitions=PARTITIONS)
        self.catalog = self.publish()
        await self.look_at(self.redis)
        self.note("begins", row=self.row, seed=self.seed, topic=self.topic)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.note("ends", error=None if error is None else repr(error)[:2000])
        await self._stop_looking()
        for feeder in self._feeders:
            feeder.hurry()
        await self._stack.aclose()

    def another_redis(self, **options: str) -> RedisServer:
        """Not started; it keeps its data over a kill, and goes with the run."""
        server = RedisServer(persist=True, options={"appendfsync": "no", **options})
        self._stack.callback(server.stop)
        return server

    def proxy_to(self, port: int) -> Proxy:
        return self._stack.enter_context(Proxy(port, seed=self.seed))

    def redis_behind_proxy(self) -> Proxy:
        """Workers that start from now on reach Redis through it."""
        proxy = self.proxy_to(self.redis.port)
        self.project.redis = f"redis://127.0.0.1:{proxy.port}/0"
        return proxy

    def afterwards(self, undo: Callable[[], Any]) -> None:
        """Called when the run ends, after its workers have."""
        self._last.callback(undo)

    async def look_at(self, redis: RedisServer) -> None:
        """Samples and checks read this server from now on."""
        await self._stop_looking()
        self.redis = redis
        self.store = OnlineStore.connect(redis.url, project=self.id)
        self._sampling = asyncio.create_task(self.sampler.run(self.store))

    async def _stop_looking(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)
            await self.store.close()
            self._sampling = None

    def publish(self) -> Catalog:
        """Applies the definitions; with FS_PROJECT of this run nothing is shared with another."""
        definitions = DEFINITIONS.replace('topic="clicks"', f'topic="{self.topic}"')
        return self.project.publish(definitions.replace('freshness="30s"', f'freshness="{FRESHNESS_SECONDS}s"'))

    def _delete_topics(self) -> None:
        admin = self.site.kafka.admin
        mine = [topic for topic in admin.list_topics(timeout=30).topics if self.id in topic]
        for future in admin.delete_topics(mine).values():
            future.result(timeout=30)

    def start(self, *names: str, static: bool = True, **settings: str) -> None:
        """Workers by name. A `static` one that was killed comes back as the same member of its group."""
        for name in names:
            instance = f"{self.id}-{name}" if static else ""
            self.workers[name] = self.project.worker(instance=instance, **self.settings, **settings)
            self.note("started", worker=name, pid=self.workers[name].pid)

    async def verb(self, *words: str) -> asyncio.subprocess.Process:
        """A command of `featurestore` on this run's parts, started; `communicate` returns when it has ended."""
        settings = {"FS_KAFKA": self.project.bootstrap, "FS_REDIS": self.project.redis, "FS_LAKE": self.project.lake}
        command = [sys.executable, "-m", "featurestore.cli", *words]
        pipe = asyncio.subprocess.PIPE
        environment = {**os.environ, **settings, **self.settings}
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=pipe, stderr=pipe)
        self._last.callback(_end, process)
        self.note("started", verb=words[0], pid=process.pid)
        return process

    async def kill(self, name: str) -> None:
        """SIGKILL, and gone."""
        worker = self.workers.pop(name)
        self.note("killed", worker=name, pid=worker.pid)
        self.tally.kills += 1
        await asyncio.to_thread(worker.kill)

    async def replace(self, name: str) -> None:
        await self.kill(name)
        self.start(name)

    async def terminate(self, name: str) -> None:
        """SIGTERM once it is up; AssertionError unless it drains and exits with 0."""
        await self.said(name, "worker started")
        worker = self.workers.pop(name)
        self.note("terminated", worker=name, pid=worker.pid)
        code = await asyncio.to_thread(worker.terminate, 30)
        assert code == 0, f"worker {name} exits with {code}:\n{worker.log[-1500:]}"

    def signal(self, name: str, number: signal.Signals) -> None:
        self.note("signalled", worker=name, pid=self.workers[name].pid, signal=number.name)
        self.workers[name].signal(number)

    async def killed_part(self, part: RedisServer | KafkaServer) -> None:
        self.note("killed", part=part.name, pid=part.pid)
        self.tally.kills += 1
        await asyncio.to_thread(part.kill)

    def _pids(self) -> list[int]:
        return [worker.pid for worker in self.workers.values()]

    def many(self, count: int, least: int = 1) -> int:
        """As many as the size of the run asks for."""
        return max(least, round(count * self.size))

    def feed(self, count: int, *, rate: float = 2500, mix: Mix = PLAIN) -> Feeder:
        """Begins to publish `count` records at `rate` a second (both for a run of size 1), so for as long in any."""
        return self.feed_load(self.another(count, mix), rate=rate)

    def another(self, count: int, mix: Mix = PLAIN) -> Load:
        """`count` records (for a run of size 1) that follow what was fed, not published yet."""
        return make_load(self.many(count, 1500), self._numbers, mix, before=self.loads)

    def renumbered(self, load: Load) -> Load:
        """With the offsets that its records get if nothing else comes before them."""
        return replace(load, offset=offsets_of(load.partition, self.loads))

    def feed_load(self, load: Load, *, rate: float = 2500) -> Feeder:
        self.loads.append(load)
        self.tally.events += len(load)
        self.note("feeding", records=len(load), rate=rate)
        pace = rate * min(1.0, self.size)
        self._feeders.append(Feeder(self.site.kafka.bootstrap, self.topic, load, pace).start())
        return self._feeders[-1]

    async def fed(self) -> None:
        """Everything is published."""
        for feeder in self._feeders:
            await asyncio.to_thread(feeder.finish)

    def sent(self) -> Load:
        """All that was given to the producers by now."""
        parts = [load.where(np.arange(len(load)) < f.given) for load, f in zip(self.loads, self._feeders, strict=True)]
        return joined(parts)

    def progress(self) -> list[tuple[int, int]]:
        """Of each load: how many records were given to the producer, and how many it has acknowledged."""
        return [(feeder.given, feeder.acknowledged) for feeder in self._feeders]

    @property
    def expected(self) -> Load:
        return joined(self.loads) if self.kept is None else self.kept

    async def pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self.rng.uniform(least, most))

    async def until(
        self, happened: Callable[[], Awaitable[bool]], what: str, seconds: float = PATIENCE_SECONDS
    ) -> None:
        deadline = time.monotonic() + seconds
        while not await happened():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            await asyncio.sleep(0.05)

    async def folded(self) -> int:
        """Events of which every view has the effect, by the ledgers."""
        ledgers = [await folded(self.store, view) for view in VIEWS]
        return int(min(n[Count.CONSUMED] - n[Count.DUPLICATE] for n in ledgers))

    async def flowing(self) -> None:
        """More than nothing is folded."""

        async def begun() -> bool:
            return await self.folded() > 0

        await self.until(begun, "the first events are folded")

    async def recovered(self) -> float:
        """Returns when all that was sent before this call, and a little after it, can be read; the seconds count as a
        recovery. In each partition: one that nobody reads must not hide behind the others."""
        began = time.monotonic()
        await self._sent_more()
        events = self.sent().events
        goal = np.bincount(events.partition, minlength=PARTITIONS)

        async def there() -> bool:
            return bool((await self._folded_by_partition() >= goal).all())

        await self.until(there, f"all {goal.tolist()} events sent so far can be read")
        spent = time.monotonic() - began
        self.tally.recoveries.append(spent)
        self.note("recovered", seconds=round(spent, 3), events=goal.tolist())
        return spent

    async def _sent_more(self) -> None:
        """Returns when something more was sent to each partition, or everything was."""
        before, total = len(self.sent()), sum(map(len, self.loads))

        async def more() -> bool:
            return len(self.sent()) >= min(total, before + SENT_AFTER)

        await self.until(more, "more is sent")

    async def _folded_by_partition(self) -> np.ndarray:
        """`int64[partitions]`: events of each source partition of which every view has the effect."""
        views = []
        for view in VIEWS:
            found = np.zeros(PARTITIONS, np.int64)
            for fence in (await self.store.fences(view)).values():
                for partition, counts in fence.ledger.items():
                    found[partition] += counts[Count.CONSUMED] - counts[Count.DUPLICATE]
            views.append(found)
        least: np.ndarray = np.min(views, axis=0)
        return least

    async def said(self, name: str, text: str, seconds: float = 40) -> None:
        async def found() -> bool:
            return text in self.workers[name].log

        await self.until(found, f"worker {name} says {text!r}", seconds)

    async def anybody_said(self, text: str) -> bool:
        return any(text in worker.log for worker in self.workers.values())

    async def seen_in_beats(self, kind: str, code: str) -> bool:
        """Whether any beat was `stopped` or `waiting` (the kind) for this reason at any time."""
        return (kind, code) in self.sampler.reasons

    @contextlib.asynccontextmanager
    async def loss(self, what: str) -> AsyncIterator[None]:
        """Acknowledged writes are taken away here; positions may fall."""
        self.note("loss", what=what)
        began = time.monotonic()
        try:
            with self.sampler.loss():
                yield
        finally:
            self.losses.append((began, time.monotonic()))

    def note(self, what: str, /, **details: Any) -> None:
        line = {"at": round(time.monotonic() - self._began, 3), "what": what, **details}
        self._log.write(json.dumps(line, default=str) + "\n")
        self._log.flush()

    def _watched(self) -> dict[str, list[str]]:
        users = [f"u{n}" for n in range(WATCHED)]
        shops = [f"s{n}" for n in self.rng.sample(range(SHOPS), WATCHED)]
        return dict(zip(VIEWS, (users, shops), strict=True))


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


def joined(loads: list[Load]) -> Load:
    if len(loads) == 1:
        return loads[0]
    names = Load.__slots__
    return Load(*(np.concatenate([getattr(load, name) for load in loads]) for name in names))
