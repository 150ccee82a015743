"""Seeded random streams as they go over the wire: disorder, ties, hop boundaries, nulls, and what is no event."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from featurestore.clock import format_instant
from tests.e2e.golden_views import VIEWS
from tests.oracle.meaning import DAY, HOUR, INT64_MAX, INT64_MIN, MINUTE, OracleEvent, latest_time
from tests.oracle.streams import ODD_TEXTS, WINDOWS

USERS = ("a", "a|b", "b|", "", "é", "\\")
SHOPS = (-1, 0, 7)
UNSEEN: dict[str, Any] = {"user": "nobody", "shop": 404, "flag": None}

POISON: tuple[tuple[bytes | None, str], ...] = (
    (None, "empty"),
    (b"", "empty"),
    (b'{"at": 1', "not_json"),
    (b'{"at": 1}{"at": 2}', "not_json"),
    (b"[1]", "not_object"),
    (b'{"user": "a", "shop": 7, "flag": true}', "missing_field"),
    (b'{"at": 1, "user": "a", "amount": NaN}', "not_finite"),
    (b'{"at": 1, "user": "a", "amount": 1e999}', "not_finite"),
    (b'{"at": 1, "user": "a", "user": "b"}', "duplicate_key"),
    (b'{"at": true, "user": "a"}', "wrong_type"),
    (b'{"at": 1, "shop": "7"}', "wrong_type"),
    (b'{"at": 1, "huge": 9223372036854775808}', "out_of_range"),
    (b'{"at": 1, "label": "\\ud800"}', "bad_utf8"),
    (b'{"at": "2013-06-01T12:00:00"}', "bad_timestamp"),
    (b'{"at": "2100-01-01T00:00:00Z", "user": "a", "shop": 7, "flag": true, "score": 1}', "future_event"),
)
"""Values that break the contract, and the reason that each must be given."""

Key = dict[str, Any]


@dataclass
class Record:
    """A message. `event` is None where it must become a dead letter, for `reason`."""

    partition: int
    key: bytes | None
    value: bytes | None
    event: OracleEvent | None
    reason: str = ""
    offset: int = -1

    def arrived(self, offset: int) -> None:
        self.offset = offset
        if self.event is not None:
            self.event |= {"partition": self.partition, "offset": offset}


@dataclass(frozen=True)
class Case:
    """One source with its stream. `records` are in the order of publishing, partitions interleaved."""

    name: str
    topic: str
    lateness: int
    partitions: int
    records: Sequence[Record]
    _events: dict[tuple[str, tuple[Any, ...]], list[OracleEvent]] = field(default_factory=dict)

    @cached_property
    def events(self) -> list[OracleEvent]:
        return [record.event for record in self.records if record.event is not None]

    def of(self, view: str, row: Key) -> list[OracleEvent]:
        """The events of one entity of a view; none where a part of the key is null."""
        key = tuple(row[name] for name in VIEWS[view].keys)
        if (view, key) not in self._events:
            mine = [e for e in self.events if VIEWS[view].takes(e) and tuple(e[k] for k in VIEWS[view].keys) == key]
            self._events[view, key] = mine
        return self._events[view, key]

    def rows(self) -> list[Key]:
        """Every combination of key parts: known, unseen and null."""
        users, shops, flags = [*USERS, UNSEEN["user"], None], [*SHOPS, UNSEEN["shop"], None], [True, False, None]
        return [{"user": u, "shop": s, "flag": f} for u in users for s in shops for f in flags]

    def instants(self, rng: random.Random, count: int) -> list[int]:
        """Instants to ask at: half of them from the latest event on, half before it."""
        latest = latest_time(self.events)
        assert latest is not None
        after = [latest, latest + 1, latest + 400 * DAY, latest + 10 * HOUR]
        before = [min(e["event_time"] for e in self.events) - 1]
        while len(after) < count // 2 or len(before) < count - count // 2:
            at = self._near(rng)
            side = after if at >= latest else before
            if len(side) < count // 2:
                side.append(at)
        return [*after, *before]

    def _near(self, rng: random.Random) -> int:
        """Where an event enters or leaves a window, and a microsecond beside."""
        at: int = rng.choice(self.events)["event_time"]
        if rng.random() < 0.3:  # so that there is something after the latest
            at = max(e["event_time"] for e in self.events if rng.random() < 0.5 or e is self.events[0])
        window, hop = rng.choice(WINDOWS)
        places = (at, at + window, at + window + hop, (at // hop + rng.randint(-1, 2)) * hop,
                  ((at + window) // hop + rng.randint(-1, 2)) * hop)  # fmt: skip
        return rng.choice(places) + rng.choice((0, 0, -1, 1))


def random_case(
    name: str, topic: str, seed: int, *, anchor: int, partitions: int, lateness: int = 0, newest: int, count: int = 350
) -> Case:
    """`count` records around the instant `anchor`, none of which is later than `newest`."""
    rng = random.Random(seed)
    pool = [_instant(rng, anchor, newest) for _ in range(count // 4)]
    records: list[Record] = []
    for _ in range(count):
        die = rng.random()
        if die < 0.06:
            records.append(_poison(rng, partitions))
        elif die < 0.10 and records and records[-1].event is not None:
            records.append(_copy(records[-1]))
        else:
            time = rng.choice(pool) if rng.random() < 0.7 else _instant(rng, anchor, newest)
            records.append(_record(rng, time, partitions))
    return Case(name, topic, lateness, partitions, records)


def _instant(rng: random.Random, anchor: int, newest: int) -> int:
    window, hop = rng.choice(WINDOWS)
    across = window // hop + 2
    kinds = (
        (anchor // hop + rng.randint(-across, across)) * hop + rng.choice((-1, 0, 1)),
        anchor + rng.randint(-window, window),
        anchor + rng.randint(-window, window),
        anchor - rng.randint(2, 50) * window - 1,
    )
    return min(rng.choice(kinds), newest)


def _copy(record: Record) -> Record:
    """What a producer sent twice is two events."""
    assert record.event is not None
    return Record(record.partition, record.key, record.value, dict(record.event))


def _poison(rng: random.Random, partitions: int) -> Record:
    value, reason = rng.choice(POISON)
    return Record(rng.randrange(partitions), rng.choice((None, b"", b"a", b"\xff")), value, None, reason)


def _record(rng: random.Random, time: int, partitions: int) -> Record:
    event = {"at": time, "event_time": time} | {name: _cell(rng, name, time) for name in _CELLS}
    user = event["user"]
    partition = sum(user.encode()) % partitions if user is not None else rng.randrange(partitions)
    key = None if user is None else user.encode()
    return Record(partition, key, _wire(rng, event).encode("utf-8"), event)


_CELLS = ("user", "shop", "amount", "quantity", "huge", "score", "label", "flag", "due")


def _cell(rng: random.Random, name: str, time: int) -> Any:
    if rng.random() < 0.1:
        return None
    choices: dict[str, Any] = {
        "user": USERS,
        "shop": SHOPS,
        # Sums that cancel, in multiples of 2^-62 at most: see `tests.oracle.streams.amounts`.
        "amount": (
            1e10,
            -1e10,
            1e-3,
            0.0,
            0.1,
            0.2,
            -0.3,
            -1e-3,
            1e9 + 1,
            1e9 + 2,
            rng.randint(-(10**6), 10**6) / 1000,
        ),
        "quantity": (rng.randint(-5, 5), 2**53 + rng.randint(-3, 3), -(2**53) + rng.randint(-3, 3)),
        "huge": (INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX, rng.randint(INT64_MIN, INT64_MAX)),
        "score": (rng.randint(-100, 100),),
        "label": (*ODD_TEXTS, chr(rng.randint(0x21, 0xD7FF)) * rng.randint(1, 40)),
        "flag": (True, False),
        "due": (0, -1, time, time + rng.randint(-DAY, DAY), -(10**15) - 7),
    }
    return rng.choice(choices[name])


def _wire(rng: random.Random, event: OracleEvent) -> str:
    """One of the ways in which a producer may write the event."""
    sent = {name: event[name] for name in ("at", *_CELLS) if event[name] is not None or rng.random() < 0.5}
    for name in ("at", "due"):
        if sent.get(name) is not None and rng.random() < 0.5:
            sent[name] = format_instant(sent[name])
    amount = sent.get("amount")
    if amount is not None and amount.is_integer() and rng.random() < 0.5:
        sent["amount"] = int(amount)
    if rng.random() < 0.2:
        sent["later_version"] = {"nested": [1, "x"]}
    names = list(sent)
    rng.shuffle(names)
    return json.dumps({name: sent[name] for name in names}, ensure_ascii=rng.random() < 0.5)


def newest_allowed(now: int) -> int:
    """Well inside `max_future_skew`, on whatever clock it is measured."""
    return now + 3 * MINUTE
