"""`load` and `backfill` under live traffic: files join what the topic has, without a gap and counted once."""

import asyncio
import random
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.clock import MINUTE, SystemClock
from featurestore.engine.columns import LOADED
from featurestore.engine.packing import headers
from featurestore.engine.sections import GENERATION
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.offline.lake import Lake
from featurestore.online.fences import Stage
from featurestore.online.store import OnlineStore
from featurestore.types import STATUS_CODES
from streams.folding import Count
from tests.e2e.streaming import (
    MORE_DEFINITIONS,
    Project,
    Sent,
    assert_oracle,
    folded,
    records_of,
    send,
    until,
    until_done,
)

LIVE, BESIDE = "shop_clicks@1", "shop_buyers@1"
"""A view that is backfilled, and one that reads the same shuffle topic."""


@pytest.fixture
def broker(either_broker: str) -> str:
    return either_broker


def history(project: Project, count: int, seed: int) -> list[Sent]:
    """A file of clicks of the day before, written to `h.parquet`; its events, as the oracle counts them."""
    rng = random.Random(seed)
    begin = SystemClock().now() // MINUTE * MINUTE - 26 * 60 * MINUTE
    events = [
        {
            "at": begin + i * MINUTE // 2,
            "user": rng.choice([None, *(f"u{n}" for n in range(60))]),  # of which twenty are in no record
            "shop": rng.choice([None, *(f"s{n}" for n in range(20))]),
            "amount": rng.choice([None, rng.uniform(-5, 5)]),
            "items": rng.randrange(5),
        }
        for i in range(count)
    ]
    table = pa.Table.from_pylist(events)
    at = pa.array([event["at"] for event in events], pa.timestamp("us", "UTC"))
    pq.write_table(table.set_column(0, "at", at), project.directory / "h.parquet")
    return [
        Sent(LOADED, None, None, event | {"event_time": event["at"], "partition": LOADED, "offset": i}, i)
        for i, event in enumerate(events)
    ]


async def trickle(project: Project, records: list[Sent]) -> None:
    for first in range(0, len(records), 100):
        await send(project.bootstrap, records[first : first + 100])
        await asyncio.sleep(0.2)


async def generations(store: OnlineStore, view: str) -> set[int]:
    keys = [key async for key in store.scan_view(view)]
    return {int(g) for g in headers(await store.read(view, keys))[:, GENERATION]}


async def forget_the_signs_of_life(store: OnlineStore) -> None:
    """As half a minute without one would."""
    for view, mark in (await store.rebuilds()).items():
        stored = await store.rebuild_mark(view)
        assert await store.swap_rebuild(view, msgspec.structs.replace(mark, at=0), over=stored)


async def watched(store: OnlineStore, lake: str, seen: dict[str, set[str]], views: list[Any]) -> None:
    """What readers are told of each view, until cancelled."""
    board = FreshnessBoard(store, SystemClock(), lake=Lake(lake))
    board.watch(views)
    texts = {code: str(status) for status, code in STATUS_CODES.items()}
    while True:
        await board.look_for_loads()
        await board.refresh()
        for view in views:
            seen.setdefault(view.id, set()).update(texts[code] for code in board.of(view.id).codes.tolist())
        await asyncio.sleep(0.1)


async def assert_everything(store: OnlineStore, views: list[Any], history: list[Sent], records: list[Sent]) -> None:
    events = sum(record.event is not None for record in records)
    for view in views:
        assert await assert_oracle(store, view, [*history, *records]) > 10
        ledger = await folded(store, view.id)
        assert events == ledger[Count.CONSUMED] - ledger[Count.DUPLICATE]
        assert ledger[Count.CONSUMED] == ledger[1:].sum()


@pytest.mark.slow
async def test_history_joins_live_values_without_a_seam(project: Project, store: OnlineStore) -> None:
    catalog, records = project.publish(MORE_DEFINITIONS), records_of(4000, seed=31)
    views = list(catalog.views.values())
    await send(project.bootstrap, records[:1500])
    worker = project.worker()
    await until_done(store, records[:1500], [view.id for view in views])
    old = history(project, 3000, seed=32)

    code, said, talk = await project.fs("load", "clicks", "h.parquet", "--before", "2100-01-01T00:00:00Z")
    assert (0, 3000) == (code, said.get("loaded")), talk
    assert sorted(said["incomplete"]) == sorted(view.id for view in views)
    _, status, talk = await project.fs("status")
    assert dict.fromkeys([view.id for view in views], True) == {
        view["view"]: view["incomplete"].startswith("1 loaded files") for view in status["views"]
    }
    assert f"view {LIVE} lacks 1 loaded files; run: featurestore backfill {LIVE}" in talk

    traffic = asyncio.create_task(trickle(project, records[1500:3500]))
    seen: dict[str, set[str]] = {}
    watching = asyncio.create_task(watched(store, project.lake, seen, views))
    first = project.start("streams.commands", "backfill", "--rate=10", LIVE)
    await until(lambda: scanned(store, LIVE))
    assert {0} == await generations(store, LIVE)
    first.kill()
    first.communicate()
    assert (await store.rebuilds())[LIVE].stage is Stage.FILLING
    code, _, talk = await project.fs("backfill")
    assert (1, True) == (code, f"{LIVE} is being" in talk)
    await forget_the_signs_of_life(store)
    code, said, talk = await project.fs("backfill")  # completes it
    assert code == 0, talk
    assert [LIVE] == [done["view"] for done in said["views"]]
    code, said, talk = await project.fs("backfill")  # the others that lack it
    assert code == 0, talk
    assert {view.id for view in views} - {LIVE} == {done["view"] for done in said["views"]}

    await traffic
    watching.cancel()
    await until_done(store, records[:3500], [view.id for view in views])
    await assert_everything(store, views, old, records[:3500])
    assert worker.alive()
    assert "unavailable" not in seen[LIVE]
    assert "late_pipeline" not in seen[BESIDE]

    newer = project.publish(MORE_DEFINITIONS.replace(
        "version=1, owner=\"o@example.com\", freshness=\"30s\")\nclass ShopClicks",
        "version=2, owner=\"o@example.com\", freshness=\"30s\")\nclass ShopClicks"))  # fmt: skip
    [view] = [view for view in newer.views.values() if view.id == "shop_clicks@2"]
    traffic = asyncio.create_task(trickle(project, records[3500:]))
    code, said, talk = await project.fs("backfill", "shop_clicks@2")
    assert code == 0, talk
    await traffic
    await until_done(store, records, [view.id])
    await assert_everything(store, [*views, view], old, records)
    assert np.all([fence.loads == 1 for fence in (await store.fences(view.id)).values()])


async def scanned(store: OnlineStore, view: str) -> bool:
    """Whether a backfill has begun to write."""
    return bool([key async for key in store.scan_view(f"{view}.next")])
