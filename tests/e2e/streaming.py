"""A project whose events go through real workers: what the streaming tests send, wait for and compare."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from featurestore.clock import HOUR, MINUTE, SECOND, SystemClock, format_instant
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.load import load_definitions
from featurestore.engine.read import ViewReader
from featurestore.online.embedded import start_attached
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from streams.folding import Count, totals
from tests.oracle.compare import assert_values
from tests.oracle.meaning import OracleEvent, OracleFeature, evaluate, magnitude

TOPIC, PARTITIONS = "clicks", 4
VIEWS = ("user_clicks@1", "shop_clicks@1")
"""Of `DEFINITIONS`."""

SCHEMA = {
    "type": "record",
    "name": "Click",
    "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "user", "type": ["null", "string"], "default": None},
        {"name": "shop", "type": ["null", "string"], "default": None},
        {"name": "amount", "type": ["null", "double"], "default": None},
        {"name": "items", "type": "long", "default": 1},
    ],
}

DEFINITIONS = """
from featurestore import Entity, FeatureService, Source, agg, col, feature_view

User = Entity("user", keys={"user": str})
Shop = Entity("shop", keys={"shop": str})
Clicks = Source("clicks", topic="clicks", contract="clicks/v1", event_time="at", key=["user"])


@feature_view(entity=User, source=Clicks, version=1, owner="o@example.com", freshness="30s")
class UserClicks:
    n_5m = agg.count(window="5m")
    mean_1h = agg.mean(col("amount"), window="1h")
    last_shop = agg.last(col("shop"))
    own = agg.last(col("user"))


@feature_view(entity=Shop, source=Clicks, version=1, owner="o@example.com", freshness="30s")
class ShopClicks:
    n_5m = agg.count(window="5m")
    items_1h = agg.sum(col("items"), window="1h")
    max_1h = agg.max(col("amount"), window="1h")
    n_all = agg.count()
    own = agg.last(col("shop"))


clicks = FeatureService("clicks", views=[UserClicks, ShopClicks], owner="o@example.com")
"""

MORE_DEFINITIONS = (
    DEFINITIONS
    + """

@feature_view(entity=Shop, source=Clicks, version=1, owner="o@example.com", freshness="30s")
class ShopBuyers:
    buyers_1h = agg.count(col("user"), window="1h")


@feature_view(entity=Entity("pair", keys={"user": str, "shop": str}), source=Clicks, version=1, owner="o@example.com")
class PairClicks:
    n_all = agg.count()


pairs = FeatureService("pairs", views=[ShopBuyers, PairClicks], owner="o@example.com")
"""
)

KEYS = {
    "user_clicks@1": ["user"],
    "shop_clicks@1": ["shop"],
    "shop_clicks@2": ["shop"],
    "shop_buyers@1": ["shop"],
    "pair_clicks@1": ["user", "shop"],
}

_SHOP_CLICKS = (
    OracleFeature("n_5m", "count", window=5 * MINUTE),
    OracleFeature("items_1h", "sum", "items", window=HOUR),
    OracleFeature("max_1h", "max", "amount", window=HOUR),
    OracleFeature("n_all", "count"),
    OracleFeature("own", "last", "shop"),
)

ORACLE: Mapping[str, Sequence[OracleFeature]] = {
    "user_clicks@1": (
        OracleFeature("n_5m", "count", window=5 * MINUTE),
        OracleFeature("mean_1h", "mean", "amount", window=HOUR),
        OracleFeature("last_shop", "last", "shop"),
        OracleFeature("own", "last", "user"),
    ),
    "shop_clicks@1": _SHOP_CLICKS,
    "shop_clicks@2": _SHOP_CLICKS,
    "shop_buyers@1": (OracleFeature("buyers_1h", "count", "user", window=HOUR),),
    "pair_clicks@1": (OracleFeature("n_all", "count"),),
}


@dataclass
class Sent:
    """A record as it was sent. `event` is None where it must become a dead letter."""

    partition: int
    key: bytes | None
    value: bytes | None
    event: OracleEvent | None
    offset: int = -1


def records_of(count: int, seed: int) -> list[Sent]:
    """The last two hours: disorder, ties, nulls, very late events, and about one in fifty that is no event."""
    rng, start = random.Random(seed), SystemClock().now() - 2 * HOUR
    return [_record(rng, start + i * SECOND // 4) for i in range(count)]


def _record(rng: random.Random, now: int) -> Sent:
    user = rng.choice([None, *(f"u{n}" for n in range(40))])
    partition = sum(user.encode()) % PARTITIONS if user is not None else rng.randrange(PARTITIONS)
    key = user.encode() if user is not None else None
    late = rng.choice([0, 0, 0, SECOND, 3 * MINUTE, 50 * MINUTE, 5 * HOUR])
    event: dict[str, Any] = {
        "at": (now - late) // SECOND * SECOND,
        "user": user,
        "shop": rng.choice([None, "s|1", "s\\2", "é", *(f"s{n}" for n in range(12))]),
        "amount": rng.choice([None, 0.1, rng.uniform(-5, 5)]),
        "items": rng.randrange(5),
    }
    if rng.random() < 0.02:
        return Sent(partition, key, rng.choice(POISON), None)
    if rng.random() < 0.005:
        return Sent(partition, key, json.dumps(event | {"at": "2100-01-01T00:00:00Z"}).encode(), None)
    sent = event | ({"at": format_instant(event["at"])} if rng.random() < 0.5 else {})
    return Sent(partition, key, json.dumps(sent).encode(), event | {"event_time": event["at"]})


POISON: tuple[bytes | None, ...] = (None, b"", b"{", b"[]", b'{"at": true}', b'{"user": "u1"}', b'{"at": 1}{"at": 2}')


async def send(bootstrap: str, records: Sequence[Sent]) -> None:
    """In order; afterwards every record and its event know their offsets."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5) as producer:
        futures = [await _send(producer, record) for record in records]
        for record, future in zip(records, futures, strict=True):
            record.offset = (await future).offset
            if record.event is not None:
                record.event |= {"partition": record.partition, "offset": record.offset}


async def _send(producer: AIOKafkaProducer, record: Sent) -> Any:
    headers = [("trace", b"t1")]
    if record.key is None and record.value is None:  # aiokafka sends these only as a batch
        batch = producer.create_batch()
        batch.append(key=None, value=None, timestamp=None, headers=headers)
        return await producer.send_batch(batch, TOPIC, partition=record.partition)
    return await producer.send(TOPIC, value=record.value, key=record.key, partition=record.partition, headers=headers)


@dataclass
class Project:
    bootstrap: str
    redis: str
    directory: Path
    interval: float = 0.3
    workers: list[Worker] = field(default_factory=list)

    @property
    def lake(self) -> str:
        return str(self.directory / "lake")

    def publish(self, definitions: str = DEFINITIONS) -> Catalog:
        schemas = self.directory / "schemas" / TOPIC
        schemas.mkdir(parents=True, exist_ok=True)
        (schemas / "v1.avsc").write_text(json.dumps(SCHEMA))
        (self.directory / "defs.py").write_text(definitions)
        found = load_definitions(str(self.directory / "defs.py"))
        return apply(Registry(self.lake), found, now=SystemClock().now())

    def worker(self, *, instance: str = "", **environment: str) -> Worker:
        """One that takes over from a killed one of the same `instance` does not wait for the group to miss that."""
        worker = Worker(self, environment, ["--instance", instance] if instance else [])
        self.workers.append(worker)
        return worker

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """`python -m` with these words, in the project's directory and with its parts."""
        settings = {"FS_KAFKA": self.bootstrap, "FS_REDIS": self.redis, "FS_LAKE": self.lake}
        return start_attached(
            [sys.executable, "-m", *words],
            env={**os.environ, **settings},
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def fs(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, document and talk of a verb."""
        process = self.start("featurestore.cli", *words, "--output", "json")
        out, err = await asyncio.to_thread(process.communicate, timeout=120)
        return process.returncode, json.loads(out or b"{}"), " ".join(err.decode().split())

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()


class Worker:
    """`python -m streams.worker` in a process of its own."""

    def __init__(self, project: Project, environment: Mapping[str, str], arguments: Sequence[str] = ()) -> None:
        self._log = project.directory / f"worker-{len(project.workers)}.log"
        settings = {
            "FS_KAFKA": project.bootstrap,
            "FS_REDIS": project.redis,
            "FS_LAKE": project.lake,
            "FS_LAKE_INTERVAL_SECONDS": str(project.interval),
            **environment,
        }
        with self._log.open("wb") as log:
            self._process = start_attached(
                [sys.executable, "-m", "streams.worker", *arguments],
                env={**os.environ, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float = 20) -> int:
        return self._process.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def terminate(self, seconds: float = 20) -> int:
        """SIGTERM; returns the exit code."""
        self._process.terminate()
        return self._process.wait(seconds)

    def alive(self) -> bool:
        return self._process.poll() is None


async def folded(store: OnlineStore, view: str) -> np.ndarray:
    """Ledger of a view, over all partitions."""
    fences = await store.fences(view)
    return sum((totals(fence.ledger) for fence in fences.values()), start=totals({}))


async def until(happened: Callable[[], Awaitable[bool]], seconds: float = 40) -> None:
    """Polls a store: nothing there could tell us."""
    deadline = time.monotonic() + seconds
    while not await happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


async def until_done(store: OnlineStore, records: Sequence[Sent], views: Iterable[str], seconds: float = 60) -> None:
    """Returns when every event is in every view, and every record is behind an intake mark."""
    ends = {p: max((r.offset for r in records if r.partition == p), default=-1) for p in range(PARTITIONS)}
    events = sum(record.event is not None for record in records)
    deadline = time.monotonic() + seconds
    while True:
        marks = await store.intake_marks(TOPIC)
        ledgers = {view: await folded(store, view) for view in views}
        done = all(n[Count.CONSUMED] - n[Count.DUPLICATE] >= events for n in ledgers.values())
        if done and all(end < 0 or (p in marks and marks[p].offset >= end) for p, end in ends.items()):
            return
        assert time.monotonic() < deadline, f"{events} events; {ledgers}; {marks}; {await store.beats('intake:clicks')}"
        await asyncio.sleep(0.1)


async def assert_oracle(store: OnlineStore, view: CompiledView, records: Sequence[Sent]) -> int:
    """Every entity's stored values are the oracle's, at its latest event and later. Returns how many were compared."""
    keys = KEYS[view.id]
    events = [r.event for r in records if r.event is not None and all(r.event[k] is not None for k in keys)]
    entities = sorted({tuple(event[k] for k in keys) for event in events})
    texts = ["|".join(p.replace("\\", "\\\\").replace("|", "\\|") for p in entity) for entity in entities]
    values = await store.read(view.id, texts)
    own = [[e for e in events if tuple(e[k] for k in keys) == entity] for entity in entities]
    latest = np.array([max(e["event_time"] for e in mine) for mine in own])
    for at in (latest, latest + 7 * MINUTE + 1):
        reading = ViewReader(view).read(values, at, 0)
        columns = {column.name: column.to_list() for column in reading.columns}
        for row, (entity, mine) in enumerate(zip(entities, own, strict=True)):
            when = int(at[row])
            assert_values(
                ORACLE[view.id],
                evaluate(ORACLE[view.id], mine, when),
                {name: column[row] for name, column in columns.items()},
                magnitudes={f.name: magnitude(f, mine, when) for f in ORACLE[view.id] if f.op in ("sum", "mean")},
                label=f"{view.id} {entity} at {when}",
            )
    return len(entities)


async def dead_letters(
    bootstrap: str, source_topic: str = TOPIC
) -> list[tuple[dict[str, str], bytes | None, bytes | None]]:
    """(headers, key, value) of everything in the dead-letter topic."""
    topic = f"{source_topic}.dlq"
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False) as consumer:
        partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        left = sum((await consumer.end_offsets(partitions)).values())
        found: list[tuple[dict[str, str], bytes | None, bytes | None]] = []
        while len(found) < left:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [({k: v.decode() for k, v in r.headers}, r.key, r.value) for r in records]
        return found
