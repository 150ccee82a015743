"""The events of a run as columns, and the thread that publishes them at a pace while parts fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import msgspec
import numpy as np
from confluent_kafka import KafkaError, Message, Producer

from featurestore.clock import HOUR, MINUTE, SECOND, SystemClock
from tests.e2e.streaming import PARTITIONS, Sent

USERS, SHOPS = 400, 60
FUTURE = 4_102_444_800_000_000
"""2100-01-01, beyond any skew that a source allows."""
BATCHES_A_SECOND = 20
_FLUSH_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Mix:
    """What a load is made of."""

    bad: float = 0.003
    """Share of records that must become dead letters."""
    late: float = 0.2
    """Share that is late, by up to `late_by`."""
    late_by: int = 90 * MINUTE
    users: int = USERS
    quiet_partition: int | None = None
    """Gets nothing."""
    skew: int = 0
    """Half of the producers have clocks that are wrong by up to this, and step while they send."""


PLAIN = Mix()


class _Click(msgspec.Struct, gc=False):
    at: int
    user: str | None
    shop: str | None
    amount: float | None
    items: int


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """n records in the order in which they are sent. `user` and `shop` are numbers, -1 for null; amounts NaN for null.

    `offset` is where each one lies in its partition, given that nobody else writes to the topic.
    """

    at: np.ndarray
    user: np.ndarray
    shop: np.ndarray
    amount: np.ndarray
    items: np.ndarray
    partition: np.ndarray
    offset: np.ndarray
    bad: np.ndarray
    """0 for an event, else which kind of dead letter it must become."""

    def __len__(self) -> int:
        return self.at.size

    def where(self, chosen: np.ndarray) -> Load:
        return Load(*(getattr(self, column.name)[chosen] for column in fields(self)))

    @property
    def events(self) -> Load:
        return self.where(self.bad == 0)

    def values(self) -> list[bytes]:
        """The JSON of each record, or what stands in its place."""
        encode = msgspec.json.Encoder().encode
        columns = (c.tolist() for c in (self.at, self.user, self.shop, self.amount, self.items, self.bad))
        return [
            _spoiled(kind, encode(_Click(at, _name("u", user), _name("s", shop), _amount(amount), items)))
            for at, user, shop, amount, items, kind in zip(*columns, strict=True)
        ]

    def keys(self) -> list[bytes | None]:
        return [None if user < 0 else b"u%d" % user for user in self.user.tolist()]

    def sent(self) -> list[Sent]:
        """As the oracle takes them; only for few."""
        columns = (getattr(self, c.name).tolist() for c in fields(self))
        return [
            Sent(partition, None, None, _event(at, user, shop, amount, items, partition, offset), offset)
            for at, user, shop, amount, items, partition, offset, _ in zip(*columns, strict=True)
        ]


def _name(letter: str, number: int) -> str | None:
    return None if number < 0 else f"{letter}{number}"


def _amount(value: float) -> float | None:
    return None if np.isnan(value) else value


def _event(at: int, user: int, shop: int, amount: float, items: int, partition: int, offset: int) -> dict[str, object]:
    return {
        "event_time": at,
        "user": _name("u", user),
        "shop": _name("s", shop),
        "amount": _amount(amount),
        "items": items,
        "partition": partition,
        "offset": offset,
    }


BAD_KINDS = 6
_NOT_YET, _FUTURE = 0, 6


def _spoiled(kind: int, value: bytes) -> bytes:
    """A record of that kind of badness: cut off, not JSON, without its time, of another shape, twice, in the future."""
    if kind == _NOT_YET:
        return value
    spoiled = (
        value[: len(value) // 2],
        b"\xff\x00" + value,
        b'{"user": "u1", "items": 1}',
        b'{"at": "yesterday"}',
        value + value,
        b'{"at": %d, "items": 1}' % FUTURE,
    )
    return spoiled[kind - 1]


def make_load(count: int, rng: np.random.Generator, mix: Mix = PLAIN, *, before: Sequence[Load] = ()) -> Load:
    """Event times rise over the last two hours; `before` holds what went to the same topic."""
    start = SystemClock().now() - 2 * HOUR
    at = start + np.arange(count) * (2 * HOUR // max(1, count)) - rng.integers(0, 3 * SECOND, count)
    at = at - np.where(rng.random(count) < mix.late, rng.integers(0, mix.late_by, count), 0)
    if mix.skew:
        steps = rng.integers(-mix.skew, mix.skew, count // 500 + 1)
        at = at + np.where(rng.random(count) < 0.5, steps[np.arange(count) // 500], 0)
        at = np.minimum(at, SystemClock().now())
    user = rng.integers(0, mix.users, count)
    user = np.where(rng.random(count) < 0.02, -1, user)
    partition = np.where(user < 0, rng.integers(0, PARTITIONS, count), user % PARTITIONS)
    if mix.quiet_partition is not None:
        moved = partition == mix.quiet_partition
        user = np.where(moved, np.where(user < 0, -1, user + 1), user)
        partition = np.where(moved, (partition + 1) % PARTITIONS, partition)
    return Load(
        at=at,
        user=user,
        shop=np.where(rng.random(count) < 0.05, -1, rng.integers(0, SHOPS, count)),
        amount=np.where(rng.random(count) < 0.1, np.nan, np.round(rng.normal(0, 20, count), 2)),
        items=rng.integers(0, 5, count),
        partition=partition,
        offset=offsets_of(partition, before),
        bad=np.where(rng.random(count) < mix.bad, rng.integers(1, BAD_KINDS + 1, count), 0),
    )


def offsets_of(partition: np.ndarray, before: Sequence[Load]) -> np.ndarray:
    """Of records with these partitions that follow the loads `before`."""
    offsets = np.empty(partition.size, np.int64)
    for number in range(PARTITIONS):
        mine = partition == number
        first = sum(int((load.partition == number).sum()) for load in before)
        offsets[mine] = first + np.arange(int(mine.sum()))
    return offsets


class Feeder:
    """Publishes a load in a thread: `rate` records a second, all that is left once `hurry` is called.

    A producer that repeats what was not acknowledged, in order: the broker may go away meanwhile.
    """

    def __init__(self, bootstrap: str, topic: str, load: Load, rate: float) -> None:
        self._load, self._rate = load, rate
        self._topic = topic
        self._hurry = threading.Event()
        self._failed: list[str] = []
        self.given = 0
        self.acknowledged = 0
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 10,
                "message.timeout.ms": 300_000,
                "queue.buffering.max.messages": 1_000_000,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def hurry(self) -> None:
        self._hurry.set()

    def finish(self) -> None:
        """Returns when everything is acknowledged. AssertionError where that cannot be."""
        self.hurry()
        self._thread.join()
        assert not self._failed, f"the producer lost records: {self._failed[:3]}"
        assert self.acknowledged == len(self._load), f"{self.acknowledged} of {len(self._load)} are acknowledged"

    def _run(self) -> None:
        values, keys, partitions = self._load.values(), self._load.keys(), self._load.partition.tolist()
        started, first = time.monotonic(), 0
        while first < len(values):
            if not self._hurry.is_set():
                self._hurry.wait(max(0.0, started + first / self._rate - time.monotonic()))
            last = min(len(values), first + max(1, int(self._rate / BATCHES_A_SECOND)))
            for i in range(first, last):
                self._producer.produce(
                    self._topic, values[i], keys[i], partition=partitions[i], on_delivery=self._delivered
                )
            self._producer.poll(0)
            first = self.given = last
        if self._producer.flush(_FLUSH_SECONDS):
            self._failed.append(f"{len(self._producer)} records are still waiting for the broker")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(str(error))
        else:
            self.acknowledged += 1
