"""The events of the stream benchmark, the views over them, and what each value must be in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from featurestore.clock import DAY, HOUR, MINUTE, SECOND, SystemClock
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.load import load_definitions
from featurestore.engine.read import ViewReader
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.parts.kafka import KafkaServer

TOPIC, PARTITIONS = "payments", 4
USERS, MERCHANTS = 10_000, 1_000
SPAN = 4 * HOUR
"""Event time that the events cover, so that one-hour windows lose events while they are computed."""
READ_AT_ONCE = 2_000

SCHEMA = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "merchant", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "quantity", "type": "long"},
        {"name": "country", "type": "string"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "flag", "type": "boolean"},
    ],
}

DEFINITIONS = """
from featurestore import Entity, FeatureService, Source, agg, col, feature_view

User = Entity("user", keys={"user": str})
Merchant = Entity("merchant", keys={"merchant": str})
Payments = Source("payments", topic="payments", contract="payments/v1", event_time="ts", key=["user"])


@feature_view(entity=User, source=Payments, version=1)
class UserPayments:
    count_1h = agg.count(window="1h")
    sum_1h = agg.sum(col("amount"), window="1h")
    mean_24h = agg.mean(col("amount"), window="24h")


@feature_view(entity=Merchant, source=Payments, version=1)
class MerchantPayments:
    max_24h = agg.max(col("amount"), window="24h")
    flagged_1h = agg.count(window="1h", where=col("flag"))
    last_country = agg.last(col("country"))


payments = FeatureService("payments", views=[UserPayments, MerchantPayments])
"""

VIEWS = ("user_payments@1", "merchant_payments@1")
FEATURES = 6


class Payment(msgspec.Struct, gc=False):
    user: str
    merchant: str
    amount: float
    quantity: int
    country: str
    ts: int
    flag: bool


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """n events in the order in which they are sent; keys as numbers (`user` 7 is sent as `u7`)."""

    user: np.ndarray
    merchant: np.ndarray
    amount: np.ndarray
    quantity: np.ndarray
    country: np.ndarray
    ts: np.ndarray
    flag: np.ndarray

    def __len__(self) -> int:
        return self.ts.size

    def head(self, count: int) -> Events:
        return Events(*(getattr(self, name)[:count] for name in self.__slots__))

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """(message key, JSON) of each event."""
        encode = msgspec.json.Encoder().encode
        columns = (getattr(self, name).tolist() for name in self.__slots__)
        for user, merchant, amount, quantity, country, ts, flag in zip(*columns, strict=True):
            key = f"u{user}"
            yield key.encode(), encode(Payment(key, f"m{merchant}", amount, quantity, f"C{country}", ts, flag))


def make_events(count: int, seed: int = 11) -> Events:
    """Few keys have most events, as in life (Zipf); event times rise with a disorder of some seconds."""
    rng = np.random.default_rng(seed)
    start = SystemClock().now() - SPAN - MINUTE
    steps = start + np.arange(count) * (SPAN // max(1, count))
    return Events(
        user=_skewed(rng, USERS, count),
        merchant=_skewed(rng, MERCHANTS, count),
        amount=np.round(rng.gamma(2.0, 20.0, count), 2),
        quantity=rng.integers(1, 9, count),
        country=rng.integers(0, 40, count),
        ts=steps - rng.integers(0, 5 * SECOND, count),
        flag=rng.random(count) < 0.2,
    )


def _skewed(rng: np.random.Generator, keys: int, count: int) -> np.ndarray:
    weights = 1.0 / np.arange(10, keys + 10)
    return np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(count)).clip(0, keys - 1)


def produce(kafka: KafkaServer, topic: str, records: Iterator[tuple[bytes, bytes]]) -> None:
    """Sends everything as fast as it goes and returns when all is acknowledged."""
    from confluent_kafka import Producer  # noqa: PLC0415 — not for the processes that are measured

    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": 20,
            "batch.size": 512 << 10,
            "queue.buffering.max.messages": 2_000_000,
        }
    )
    failures: list[object] = []
    for number, (key, value) in enumerate(records):
        producer.produce(topic, value, key, on_delivery=lambda error, _: failures.append(error) if error else None)
        if number % 2_000 == 0:
            producer.poll(0)
    left = producer.flush(120)
    if left or failures:
        raise SystemExit(f"{left + len(failures)} records were not sent: {failures[:1]}")


def paced(
    records: Sequence[tuple[bytes, bytes]], rate: float, seconds: float, step: float = 0.01
) -> Iterator[tuple[bytes, bytes]]:
    """Some of the records, as many in each `step` (seconds) as the rate (per second) asks for."""
    started, given = time.monotonic(), 0
    while (spent := time.monotonic() - started) < seconds:
        due = int(spent * rate)
        yield from (records[i % len(records)] for i in range(given, due))
        given = max(given, due)
        time.sleep(step)


def publish(lake: Path, folder: Path) -> Mapping[str, CompiledView]:
    """Applies the definitions to a new lake; returns the views by id."""
    schemas = folder / "schemas" / TOPIC
    schemas.mkdir(parents=True, exist_ok=True)
    (schemas / "v1.avsc").write_text(json.dumps(SCHEMA))
    (folder / "defs.py").write_text(DEFINITIONS)
    catalog = apply(Registry(str(lake)), load_definitions(str(folder / "defs.py")), now=SystemClock().now())
    return {view.id: view for view in catalog.views.values()}


def truth(events: Events, view: str) -> tuple[list[str], np.ndarray, dict[str, list[object]]]:
    """Keys, each key's latest event time, and every feature of the view at that instant, by plain NumPy."""
    by, letter = (events.user, "u") if view == VIEWS[0] else (events.merchant, "m")
    entities, entity = np.unique(by, return_inverse=True)
    latest = np.zeros(entities.size, np.int64)
    np.maximum.at(latest, entity, events.ts)
    hour = events.ts >= ((latest - HOUR) // (5 * MINUTE) * (5 * MINUTE))[entity]
    day = events.ts >= ((latest - DAY) // HOUR * HOUR)[entity]

    def total(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(entity[mask], values[mask], entities.size)

    ones = np.ones(len(events))
    if view == VIEWS[0]:
        found = {
            "count_1h": total(hour, ones).astype(np.int64),
            "sum_1h": total(hour, events.amount),
            "mean_24h": total(day, events.amount) / total(day, ones),
        }
        return _names(letter, entities), latest, {name: values.tolist() for name, values in found.items()}
    greatest = np.full(entities.size, -np.inf)
    np.maximum.at(greatest, entity[day], events.amount[day])
    return (
        _names(letter, entities),
        latest,
        {
            "max_24h": greatest.tolist(),
            "flagged_1h": total(hour & events.flag, ones).astype(np.int64).tolist(),
            "last_country": [],  # ties are broken by offsets, which the sender does not know
        },
    )


def _names(letter: str, entities: np.ndarray) -> list[str]:
    return [f"{letter}{n}" for n in entities.tolist()]


async def verify(store: OnlineStore, views: Mapping[str, CompiledView], events: Events) -> int:
    """Every value of every key in the online store against the truth; returns how many were compared."""
    compared = 0
    for view_id, view in views.items():
        keys, latest, expected = truth(events, view_id)
        values: list[bytes | None] = []
        for start in range(0, len(keys), READ_AT_ONCE):
            values += await store.read(view_id, keys[start : start + READ_AT_ONCE])
        for column in ViewReader(view).read(values, latest, 0).columns:
            compared += _compare(view_id, column.name, column.to_list(), expected[column.name])
    return compared


def _compare(view: str, feature: str, got: Sequence[object], expected: Sequence[object]) -> int:
    if not expected:
        assert all(isinstance(value, str) for value in got), f"{view}.{feature} has holes"
    elif isinstance(expected[0], int):
        assert list(expected) == list(got), f"{view}.{feature} differs"
    else:
        np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-9, err_msg=f"{view}.{feature}")
    return len(got)
