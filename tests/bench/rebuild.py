"""How fast a rebuild is: `python -m tests.bench.rebuild [--events 1000000] [--entities 100000]`.

Real Redis, a lake in a directory, topics without records. Two views: a simple one of an aligned source, and one that is
shuffled and keeps distinct counts, whose state is a hundred times as large. What was written is counted again.
"""

import argparse
import asyncio
import json
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore import Entity, Source, agg, col, feature_view
from featurestore.clock import HOUR, SystemClock
from featurestore.contracts.contract import parse_contract
from featurestore.definitions.compile import compile_view
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.read import ViewReader
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.offline.lake import Lake, app_id
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from streams.embedded import EmbeddedBroker
from streams.folding import Count, totals
from streams.rebuilding import Done, Rebuilder
from streams.topics import Topics, shuffle_topic
from tests.parts.redis import RedisServer

PARTITIONS, APPEND = 4, 250_000
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Purchase",
    "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "user", "type": "string"},
        {"name": "shop", "type": "string"},
        {"name": "amount", "type": "double"},
    ],
}
CONTRACT = parse_contract("purchases/v1", json.dumps(SCHEMA))
Purchases = Source("purchases", topic="purchases", contract="purchases/v1", event_time="at", key=["user"])


@feature_view(entity=Entity("user", keys={"user": str}), source=Purchases, version=1, owner="bench")
class Simple:
    n_all = agg.count()
    total_1h = agg.sum(col("amount"), window="1h")
    last_shop = agg.last(col("shop"))


@feature_view(entity=Entity("shop", keys={"shop": str}), source=Purchases, version=1, owner="bench")
class Sketched:
    n_all = agg.count()
    users_1h = agg.approx_distinct(col("user"), window="1h")


def compiled(view: Any) -> CompiledView:
    found, faults = compile_view(view, CONTRACT)
    assert found is not None, faults
    return found


VIEWS = (compiled(Simple), compiled(Sketched))
SOURCE = VIEWS[0].source


def fill(lake: Lake, events: int, entities: int) -> None:
    rng, start = np.random.default_rng(1), SystemClock().now() - 6 * HOUR
    for first in range(0, events, APPEND):
        n = np.arange(first, min(first + APPEND, events))
        user = rng.integers(0, entities, n.size)
        rows = pa.table(
            {
                "at": pa.array(start + n * (5 * HOUR // events)).cast(pa.timestamp("us", "UTC")),
                "user": pa.array(np.char.add("user", user.astype(str))),
                "shop": pa.array(np.char.add("shop", (user * 7 % entities).astype(str))),
                "amount": pa.array(rng.random(n.size)),
            }
        )
        stored = in_time_order(system_columns(rows, user % PARTITIONS, n, SOURCE.event_time, SystemClock().now()))
        marks = {app_id(SOURCE.name, p): int(n[-1]) for p in range(PARTITIONS)}
        lake.append(events_table(SOURCE.name), stored, marks)


async def check(store: OnlineStore, view: CompiledView, done: Done, events: int) -> None:
    """Every event is in the ledger once, and in the values once."""
    fences = (await store.fences(view.id)).values()
    assert sum(int(totals(fence.ledger)[Count.APPLIED]) for fence in fences) == events
    keys = [key async for key in store.scan_view(view.id)]
    assert len(set(keys)) == done.entities
    reading = ViewReader(view).read(await store.read(view.id, keys), None, SystemClock().now())
    [counts] = [column for column in reading.columns if column.name == "n_all"]
    assert sum(counts.to_list()) == events


async def measure(events: int, entities: int) -> None:
    with RedisServer() as redis, EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as directory:
        lake = Lake(directory)
        fill(lake, events, entities)
        topics = {SOURCE.topic: PARTITIONS, shuffle_topic("fs", VIEWS[1]): PARTITIONS}
        await Topics(broker.bootstrap).ensure(topics)
        async with OnlineStore.connect(redis.url) as store:
            rebuilder = Rebuilder(
                bootstrap=broker.bootstrap,
                project="fs",
                store=store,
                lake=lake,
                catalog=Catalog(
                    revision=1, digest="", created_at=0, views={(v.name, v.version): v for v in VIEWS},
                    services={}, aliases={}, sources={SOURCE.name: SOURCE}, contracts={},
                ),
                clock=SystemClock(),
                by="the bench",
                tell=lambda _: None,
            )  # fmt: skip
            print(f"{events:,} events, {entities:,} entities")
            for view in VIEWS:
                [done] = await rebuilder.run([view.id])
                await check(store, view, done, events)
                print(f"{view.id:<12} {done.seconds:6.1f} s {done.entities / done.seconds:9,.0f} entities/s "
                      f"{done.events / done.seconds:9,.0f} events/s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--entities", type=int, default=100_000)
    given = parser.parse_args()
    asyncio.run(measure(given.events, given.entities))


if __name__ == "__main__":
    main()
