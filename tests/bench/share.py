"""How long values stand still while workers share the work: `python -m tests.bench.share [--rate 4000]`.

Events come at a steady rate on a real Kafka. One worker has all partitions; a second joins and takes half of them, and
later leaves in order. Meanwhile the fences of every view are read again and again: a partition's longest time without a
newer one is a stop. In the end every event was counted, and every value is compared with plain NumPy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from featurestore.online.embedded import start_attached
from featurestore.online.store import OnlineStore
from tests.bench import stream_events as data
from tests.parts.kafka import KafkaServer
from tests.parts.redis import RedisServer

TARGET_SECONDS = 2.0
PROJECT = "bench-share"
PHASES = ("one worker alone", "a second one joins", "both", "the second one leaves", "one worker alone again")
PHASE_SECONDS = 10.0
LOOK_SECONDS = 0.02
WAIT_SECONDS = 120.0


class Worker:
    """`python -m streams.worker` with a log of its own."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, str]) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = start_attached(
                [sys.executable, "-m", "streams.worker"],
                env={**os.environ, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    async def leave(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self._process.wait, WAIT_SECONDS)
        if code:
            raise SystemExit(f"the worker ended with {code}; its log ends:\n{self._log.read_text()[-3000:]}")

    def partitions(self) -> int:
        """How many it was reading when it last said so, of both stages."""
        last: dict[str, int] = {}
        for line in self._log.read_text().splitlines():
            said = json.loads(line)
            if said.get("event") == "reading":
                last[said["group"]] = len(said["offsets"])
        return sum(last.values())


class Watch:
    """The longest time that any partition's fence stood still, by phase."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self.longest = dict.fromkeys(PHASES, 0.0)
        self.phase = PHASES[0]
        self._moved: dict[tuple[str, int], tuple[int, float]] = {}

    async def run(self) -> None:
        while True:
            now = time.monotonic()
            for view in data.VIEWS:
                for partition, fence in (await self._store.fences(view)).items():
                    self._look((view, partition), fence.offset, now)
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self, of: tuple[str, int], offset: int, now: float) -> None:
        before, since = self._moved.get(of, (-1, now))
        self.longest[self.phase] = max(self.longest[self.phase], now - since)
        if offset != before:
            self._moved[of] = (offset, now)

    async def counted(self) -> int:
        """Events that every view has."""
        return min([await self._counted(view) for view in data.VIEWS])

    async def _counted(self, view: str) -> int:
        fences = await self._store.fences(view)
        return sum(counts[0] for fence in fences.values() for counts in fence.ledger.values())

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            task.cancel()


class Sent:
    """Records on their way to a producer, counted."""

    def __init__(self, records: Iterator[tuple[bytes, bytes]]) -> None:
        self._records, self.count = records, 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for record in self._records:
            self.count += 1
            yield record


async def measure(kafka: KafkaServer, redis: RedisServer, folder: Path, rate: float) -> tuple[Mapping[str, float], int]:
    """Seconds by phase, and how many values were compared."""
    seconds = PHASE_SECONDS * (len(PHASES) + 1)
    events = data.make_events(int(rate * seconds) + 1)
    views = data.publish(folder / "lake", folder)
    settings = {
        "FS_KAFKA": kafka.bootstrap,
        "FS_REDIS": redis.url,
        "FS_LAKE": str(folder / "lake"),
        "FS_PROJECT": PROJECT,
    }
    sent = Sent(data.paced(list(events.records()), rate, seconds))
    with ExitStack() as started:
        first = Worker("first", folder, settings)
        started.callback(first.kill)
        async with OnlineStore.connect(redis.url, project=PROJECT) as store:
            watch = Watch(store)
            sending = asyncio.create_task(asyncio.to_thread(data.produce, kafka, data.TOPIC, iter(sent)))
            await _until(watch, 1)
            async with watch.looking():
                await asyncio.sleep(PHASE_SECONDS)
                watch.phase = PHASES[1]
                second = Worker("second", folder, settings)
                started.callback(second.kill)
                await asyncio.sleep(PHASE_SECONDS)
                if not second.partitions():
                    raise SystemExit(f"the second worker has no partitions after {PHASE_SECONDS:g} s")
                watch.phase = PHASES[2]
                await asyncio.sleep(PHASE_SECONDS)
                watch.phase = PHASES[3]
                await second.leave()
                await asyncio.sleep(PHASE_SECONDS / 2)
                watch.phase = PHASES[4]
                await asyncio.sleep(PHASE_SECONDS / 2)
            await sending
            await _until(watch, sent.count)
            return watch.longest, await data.verify(store, views, events.head(sent.count))


async def _until(watch: Watch, events: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while await watch.counted() < events:
        if time.monotonic() > deadline:
            raise SystemExit(f"{await watch.counted():,} events are counted; expected {events:,}")
        await asyncio.sleep(LOOK_SECONDS)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rate", type=float, default=4_000, help="events per second")
    rate = options.parse_args().rate
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs-bench-")))
        redis = stack.enter_context(RedisServer())
        kafka = stack.enter_context(KafkaServer(heap="1g", flags=()))
        kafka.create_topic(data.TOPIC, partitions=data.PARTITIONS, config={"message.timestamp.type": "LogAppendTime"})
        longest, compared = asyncio.run(measure(kafka, redis, folder, rate))
    print(f"share: {rate:,.0f} events/s, {data.PARTITIONS} partitions, two views; longest time without a newer fence")
    for phase, seconds in longest.items():
        print(f"  {phase:<24} {seconds:5.2f} s")
    met = "met" if max(longest.values()) <= TARGET_SECONDS else "NOT MET"
    print(f"  {compared:,} values checked; target {TARGET_SECONDS:g} s: {met}")


if __name__ == "__main__":
    main()
