"""The read API while its parts are away: it starts, it answers, and it says what the values are worth."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from featurestore.clock import SystemClock
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.parts.redis import RedisServer
from tests.unit.serving import flights
from tests.unit.serving.api import Api, running
from tests.unit.serving.process import ApiProcess

VIEW = flights.view("airport_delay")
JFK = {"service": "flight_delay", "entities": {"origin": ["JFK"]}}
UNREAD = [None, None, None, 0.0, None, None, None, None, None, None]


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    with RedisServer(persist=True) as server:
        yield server


async def fill(api: Api) -> None:
    table = flights.departures([(api.clock.now() - 1_000_000, "JFK", "UA", 1, 5.0)])
    await api.write(VIEW, flights.stored(VIEW, table))
    await api.beat()
    await api.status_becomes({"origin": ["JFK"]}, "ok")


async def one_row(api: Api) -> dict[str, Any]:
    response = await api.lookup(JFK)
    assert response.status_code == 200, response.text
    row: dict[str, Any] = response.json()["rows"][0]
    return row


async def until_ok(api: Api) -> None:
    """Values come back with Redis; `ok` comes with the next heartbeat."""
    async with asyncio.timeout(10):
        while (await one_row(api))["status"] != "ok":
            await asyncio.sleep(0.05)
            try:
                await api.beat()
            except Exception:  # noqa: BLE001, S112 - the test's own connection is coming back too
                continue


async def test_a_killed_redis_makes_rows_unavailable_and_they_recover(redis: RedisServer, tmp_path: Path) -> None:
    async with running(redis.url, tmp_path) as api:
        await fill(api)
        redis.kill()
        rows = [await one_row(api) for _ in range(5)]
        ready = await api.http.get("/readyz")
        redis.start()
        await until_ok(api)

        assert rows == [{"values": UNREAD, "status": "unavailable"}] * 5
        assert ready.status_code == 503
        assert {c["name"]: c["ok"] for c in ready.json()["checks"]} == {"registry": True, "redis": False}
        assert (await one_row(api))["values"][0] == 1


async def test_a_redis_that_is_killed_under_load_costs_no_request(redis: RedisServer, tmp_path: Path) -> None:
    async with running(redis.url, tmp_path) as api:
        await fill(api)
        seen: set[str] = set()
        ended = False

        async def ask() -> None:
            while not ended:
                status = (await one_row(api))["status"]
                seen.add(status if isinstance(status, str) else status[0])

        asking = [asyncio.ensure_future(ask()) for _ in range(8)]
        for _ in range(3):
            await asyncio.sleep(0.2)
            redis.kill()
            await asyncio.sleep(0.2)
            redis.start()
        await until_ok(api)
        ended = True
        await asyncio.gather(*asking)

        assert {"ok", "unavailable"} <= seen <= {"ok", "unavailable", "stale"}


async def test_a_frozen_redis_is_answered_within_the_budget(redis: RedisServer, tmp_path: Path) -> None:
    async with running(redis.url, tmp_path) as api:
        await fill(api)
        redis.freeze()
        try:
            started = time.monotonic()
            response = await api.lookup(JFK | {"budget_ms": 50})
            spent = time.monotonic() - started
            unbounded = await one_row(api)
        finally:
            redis.thaw()
        await until_ok(api)

        assert response.json()["rows"] == [{"values": UNREAD, "status": "deadline"}]
        assert spent < 0.5
        assert unbounded["status"] == "unavailable"


async def test_a_redis_that_lost_everything_is_never_served_as_fresh(tmp_path: Path) -> None:
    with RedisServer() as forgetful:
        async with running(forgetful.url, tmp_path) as api:
            await fill(api)
            forgetful.restart()
            await asyncio.sleep(1.0)
            row = await one_row(api)

            assert row["status"] == "stale"


def test_the_server_starts_without_redis_and_without_a_registry_and_finds_both(tmp_path: Path) -> None:
    redis, lake = RedisServer(), tmp_path / "not yet"
    with ApiProcess(redis.url, lake) as process:
        first = httpx.get(f"{process.url}/readyz", timeout=5)
        refused = httpx.post(f"{process.url}/v1/lookup", json=JFK, timeout=5)
        with redis:
            apply(Registry(str(lake)), flights.definitions(), now=SystemClock().now())
            process.until_ready()
            answer = httpx.post(f"{process.url}/v1/lookup", json=JFK, timeout=5)

        assert (first.status_code, first.json()["ready"]) == (503, False)
        assert refused.status_code in (404, 503)
        assert answer.json()["rows"][0]["status"] == "stale"


async def test_a_new_revision_is_followed_within_a_second(redis: RedisServer, tmp_path: Path) -> None:
    async with running(redis.url, tmp_path, applied=False) as api:
        apply(Registry(str(tmp_path)), flights.definitions(), now=api.clock.now())
        started = time.monotonic()
        while (await api.lookup(JFK)).status_code != 200:
            assert time.monotonic() - started < 1.5
            await asyncio.sleep(0.02)
