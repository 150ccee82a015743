"""Reads that are late are repeated on a replica: seldom, only where it is up to date, and with the same answer."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from featurestore import telemetry
from featurestore.clock import MINUTE
from featurestore.monitor.replica import POLL_SECONDS
from featurestore.online.fences import Fence
from featurestore.online.reads import HEDGE_BURST, HEDGE_SHARE
from featurestore.online.store import OnlineStore
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer
from tests.unit.serving import flights
from tests.unit.serving.api import Api, running

VIEW = flights.view("airport_delay")
LOOKED = 3 * POLL_SECONDS


@dataclass
class Site:
    """An API with a proxy between it and the primary, and none before the replica."""

    api: Api
    primary: RedisServer
    replica: RedisServer
    proxy: Proxy

    async def row(self, **fields: Any) -> Any:
        [row] = await self.api.rows("flight_delay", {"origin": ["JFK"]}, **fields)
        return row

    async def save_up(self) -> None:
        """Reads until as many may be repeated as can be saved up."""
        for _ in range(round(HEDGE_BURST / HEDGE_SHARE) + 40):
            await self.row()
        await asyncio.sleep(LOOKED)
        await self.api.beat()


def hedges() -> dict[str, float]:
    names = ("won", "lost", "failed")
    return {n: telemetry.REGISTRY.get_sample_value("fs_store_hedges_total", {"outcome": n}) or 0.0 for n in names}


def reads() -> float:
    return telemetry.REGISTRY.get_sample_value("fs_store_duration_seconds_count", {"op": "read"}) or 0.0


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    with RedisServer() as primary, Proxy(primary.port) as proxy:
        options = {"replicaof": f"127.0.0.1 {primary.port}", "repl-diskless-sync-delay": "0"}
        with RedisServer(options=options) as replica:
            monkeypatch.setenv("FS_REDIS_REPLICA", replica.url)
            async with (
                OnlineStore.connect(primary.url, timeout_seconds=1.0) as direct,
                running(f"redis://127.0.0.1:{proxy.port}/0", tmp_path) as api,
            ):
                api.store = direct
                table = flights.departures([(api.clock.now() - MINUTE, "JFK", "UA", 1, 5.0)])
                await api.write(VIEW, flights.stored(VIEW, table))
                await api.beat()
                await api.status_becomes({"origin": ["JFK"]}, "ok")
                with redis_client.Redis(port=primary.port) as admin:
                    while admin.info("replication").get("slave0", {}).get("state") != "online":  # noqa: ASYNC110 - asks a server
                        await asyncio.sleep(0.05)
                    admin.wait(1, 5_000)
                yield Site(api, primary, replica, proxy)


async def test_a_read_that_the_primary_does_not_answer_is_answered_by_the_replica(site: Site) -> None:
    await site.save_up()
    true, before = await site.row(), hedges()
    site.proxy.black_hole()
    rows = [await site.row(budget_ms=150) for _ in range(int(HEDGE_BURST))]
    site.proxy.heal()

    assert [row["values"] for row in rows[:3]] == [true["values"]] * 3
    assert hedges()["won"] - before["won"] >= 3


async def test_no_more_reads_are_repeated_than_their_share(site: Site) -> None:
    await site.save_up()
    site.proxy.delay(0.02)  # each read is late now
    before, read_before = hedges(), reads()
    for _ in range(120):
        await site.row()
    site.proxy.heal()
    await asyncio.sleep(0.1)

    sent = sum(hedges().values()) - sum(before.values())
    asked = reads() - read_before - sent
    assert asked >= 100
    assert 1 <= sent <= HEDGE_SHARE * asked + HEDGE_BURST


async def test_a_replica_that_lags_is_not_asked(site: Site) -> None:
    await site.save_up()
    with redis_client.Redis(port=site.replica.port) as admin:
        admin.replicaof("NO", "ONE")
    now = site.api.clock.now()
    await site.api.store.put_fence(VIEW.id, 0, Fence(0, 10, {0: 10}, {}, now, now, now + MINUTE))
    await asyncio.sleep(LOOKED)
    before = hedges()
    site.proxy.black_hole()
    row = await site.row(budget_ms=100)
    site.proxy.heal()

    assert row["status"] == "deadline"
    assert hedges() == before


async def test_a_replica_that_is_away_costs_nothing(site: Site) -> None:
    await site.save_up()
    site.replica.kill()
    await asyncio.sleep(LOOKED)
    await site.api.beat()
    site.proxy.delay(0.02)
    rows = [await site.row() for _ in range(20)]
    site.proxy.heal()

    assert {row["values"][0] for row in rows} == {1}


async def test_a_failing_primary_and_a_failing_replica_are_one_outage(site: Site) -> None:
    await site.save_up()
    site.proxy.refuse()
    site.replica.kill()

    assert [(await site.row(budget_ms=200))["status"] for _ in range(5)] == ["unavailable"] * 5
