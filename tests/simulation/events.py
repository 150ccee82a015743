"""What the simulated workers are given: few entities and much disorder, so that events meet."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from featurestore.clock import HOUR, MINUTE, SECOND, format_instant
from featurestore.registry.catalog import Catalog
from tests.e2e.streaming import POISON, Project, Sent
from tests.simulation.world import START

PARTITIONS = 2
SHUFFLE = "sim.shuffle.clicks.shop"


def records_of(rng: random.Random, count: int) -> list[Sent]:
    """Ties, nulls, very late events, and about one in twenty that must become a dead letter."""
    return [_record(rng, START - HOUR + i * SECOND // 2) for i in range(count)]


def _record(rng: random.Random, now: int) -> Sent:
    user = rng.choice([None, *(f"u{n}" for n in range(6))])
    partition = int(user[1:]) % PARTITIONS if user is not None else rng.randrange(PARTITIONS)
    key = user.encode() if user is not None else None
    if rng.random() < 0.05:
        return Sent(partition, key, rng.choice(POISON), None)
    event: dict[str, Any] = {
        "at": (now - rng.choice([0, 0, 0, SECOND, 3 * MINUTE, 50 * MINUTE, 5 * HOUR])) // SECOND * SECOND,
        "user": user,
        "shop": rng.choice([None, "s|1", "s\\2", "é", "s1", "s2"]),
        "amount": rng.choice([None, 0.1, rng.uniform(-5, 5)]),
        "items": rng.randrange(5),
    }
    sent = event | ({"at": format_instant(event["at"])} if rng.random() < 0.5 else {})
    return Sent(partition, key, json.dumps(sent).encode(), event | {"event_time": event["at"]})


@functools.cache
def catalog() -> Catalog:
    """One view that is aligned with its source, one that is shuffled."""
    with tempfile.TemporaryDirectory() as directory:
        return Project("", "", Path(directory)).publish()
