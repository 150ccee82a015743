"""Events per second through the whole stream path: `python -m tests.bench.stream [--events 2000000] [--rounds 3]`.

JSON events on a real Kafka, one worker through both stages into a real Redis and the lake: six features over two
entities, one aligned with the topic and one behind the shuffle. In the same run and in turn: a bare consumer that
decodes and groups the same topic (the limit), and over the first of the events a stock Faust table and, where it is
installed (`pip install bytewax`), a stock Bytewax dataflow (the peers).

The clock of each starts when it has fetched its first records, so that no start-up counts. It stops for the bare loop
and for Faust with the last event counted; for the worker when every view's fences cover all events and its marks say
that the lake has them. Every value of every key is compared with plain NumPy before a figure is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.online.store import OnlineStore
from tests.bench import stream_events as data
from tests.bench.stream_measured import MeasuredWorker, Sampled
from tests.bench.stream_process import Figures, ask
from tests.parts.kafka import KafkaServer
from tests.parts.redis import RedisServer

TARGETS = {"bare loop": 0.4, "Faust table": 30.0, "Bytewax": 4.0}
P50_MS, P99_MS = 60, 250
SENT_AGAIN = 200_000
HEAD = "payments.head"
"""The first events once more, for Faust, which would take minutes over all of them."""
DELAY_SECONDS = 8.0
WARM_SECONDS = 1.0
ASK_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Bench:
    kafka: KafkaServer
    redis: RedisServer
    folder: Path
    events: data.Events
    head: data.Events
    records: list[tuple[bytes, bytes]]
    """Some of them, to be sent once more at a rate."""

    def bare(self, number: int) -> Figures:
        words = ["-m", "tests.bench.stream_bare", self.kafka.bootstrap, data.TOPIC, str(len(self.events))]
        said = ask(words, self.folder / f"bare-{number}.log", ASK_SECONDS)
        return _checked("bare loop", said, self.events)

    def faust(self, number: int) -> Figures:
        environment = {
            "BENCH_KAFKA": self.kafka.bootstrap,
            "BENCH_TOPIC": HEAD,
            "BENCH_EVENTS": str(len(self.head)),
            "BENCH_GROUP": f"faust-{number}",
            "BENCH_DIRECTORY": str(self.folder / f"faust-{number}"),
        }
        words = ["-m", "tests.bench.stream_faust", "worker", "--without-web"]
        said = ask(words, self.folder / f"faust-{number}.log", ASK_SECONDS, environment)
        return _checked("Faust", said, self.head)

    def bytewax(self, number: int) -> Figures:
        words = ["-m", "tests.bench.stream_bytewax", self.kafka.bootstrap, HEAD]
        return _checked("Bytewax", ask(words, self.folder / f"bytewax-{number}.log", ASK_SECONDS), self.head)

    async def worker(self, number: int, *, delays: bool = False) -> tuple[Figures, int, Sampled | None]:
        """Its figures, how many values were checked, and with `delays` those at half of the rate."""
        self.redis.flush()
        project = f"bench-{number}"
        lake, folder = self.folder / project / "lake", self.folder / project
        folder.mkdir()
        views = data.publish(lake, folder)
        with MeasuredWorker(
            kafka=self.kafka.bootstrap, redis=self.redis.url, lake=lake, project=project, folder=folder
        ) as worker:
            async with OnlineStore.connect(self.redis.url, project=project) as store:
                figures = await worker.measure(store, data.VIEWS, len(self.events))
                compared = await data.verify(store, views, self.events)
            since = await self._half_rate(figures.rate / 2) if delays else 0.0
            sampled = worker.stop(since=since)
        return figures, compared, sampled if delays else None

    async def _half_rate(self, rate: float) -> float:
        """Sends events at this rate; returns when the first of them that count were sent (monotonic)."""
        await asyncio.to_thread(data.produce, self.kafka, data.TOPIC, data.paced(self.records, rate, DELAY_SECONDS))
        ended = time.monotonic()
        await asyncio.sleep(WARM_SECONDS)
        return ended - DELAY_SECONDS + WARM_SECONDS


def _checked(name: str, said: dict[str, Any], events: data.Events) -> Figures:
    users, counts = np.unique(events.user, return_counts=True)
    expected = {f"u{user}": count for user, count in zip(users.tolist(), counts.tolist(), strict=True)}
    if said["counts"] != expected:
        raise SystemExit(f"{name}: its counts are not those of the events that were sent")
    seconds = said["ended"] - said["started"]
    return Figures(len(events) / seconds, said["cpu"] * 1e6 / len(events), said["peak"])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", type=int, default=2_000_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--faust-events", type=int, default=20_000)
    options.add_argument("--alone", action="store_true", help="the worker only, as for profiling")
    given = options.parse_args()
    events = data.make_events(given.events)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs-bench-")))
        redis = stack.enter_context(RedisServer())
        kafka = stack.enter_context(KafkaServer(heap="1g", flags=()))
        head = events.head(min(given.faust_events, given.events))
        bench = Bench(kafka, redis, folder, events, head, list(events.head(SENT_AGAIN).records()))
        for topic, some in ((data.TOPIC, events), (HEAD, head)):
            kafka.create_topic(topic, partitions=data.PARTITIONS, config={"message.timestamp.type": "LogAppendTime"})
            data.produce(kafka, topic, some.records())
        _compare(bench, given.rounds, alone=given.alone)


def _compare(bench: Bench, rounds: int, *, alone: bool) -> None:
    peers: dict[str, Callable[[int], Figures]] = {} if alone else {"bare loop": bench.bare, "Faust table": bench.faust}
    if peers and find_spec("bytewax"):
        peers["Bytewax"] = bench.bytewax
    found: dict[str, list[Figures]] = {name: [] for name in (*peers, "featurestore")}
    compared, sampled = 0, None
    for number in range(rounds):
        for name, measure in peers.items():
            found[name].append(measure(number))
        last = number == rounds - 1  # it sends more events: nobody else may come after it
        figures, checked, sampled = asyncio.run(bench.worker(number, delays=last and not alone))
        found["featurestore"].append(figures)
        compared += checked
    _print(bench, found, compared, sampled)


def _print(bench: Bench, found: dict[str, list[Figures]], compared: int, sampled: Sampled | None) -> None:
    size = statistics.mean(len(value) for _, value in bench.records[:1000])
    print(
        f"stream: {len(bench.events):,} JSON events of {size:.0f} bytes, {data.PARTITIONS} partitions, "
        f"{data.USERS:,} users, {data.MERCHANTS:,} merchants (skewed), {data.FEATURES} features; "
        f"Faust and Bytewax: the first {len(bench.head):,}"
    )
    rates = {name: statistics.median(f.rate for f in figures) for name, figures in found.items() if figures}
    for name in rates:
        print(f"  {name:<13} {_row(found[name])}")
    slope = statistics.median(figures.slope for figures in found["featurestore"])
    print(f"  {compared:,} values checked; memory grew by {slope:.1f} bytes an event over the second half")
    ours = rates["featurestore"]
    for name, target in TARGETS.items():
        if name in rates:
            ratio = statistics.median(a.rate / b.rate for a, b in zip(found["featurestore"], found[name], strict=True))
            print(f"  {ratio:.2f} × {name}; target {target:g}: {'met' if ratio >= target else 'NOT MET'}")
    if sampled is not None:
        p50, p99 = sampled.quantile(0.5) * 1e3, sampled.quantile(0.99) * 1e3
        met = "met" if p50 <= P50_MS and p99 <= P99_MS else "NOT MET"
        print(
            f"  event to readable at {ours / 2:,.0f} events/s: p50 {p50:.0f} ms, p99 {p99:.0f} ms; "
            f"target {P50_MS} and {P99_MS}: {met}"
        )


def _row(figures: Sequence[Figures]) -> str:
    rates = [f.rate for f in figures]
    return (
        f"{statistics.median(rates):>9,.0f} events/s ({min(rates):,.0f}–{max(rates):,.0f})  "
        f"{statistics.median(f.cpu for f in figures):6.1f} CPU s per million  "
        f"{max(f.peak for f in figures) / 2**20:5.0f} MiB at most"
    )


if __name__ == "__main__":
    main()
