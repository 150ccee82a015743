"""What lookups are answered while Redis is frozen, slow, refusing or away, by the policy of the view; and after."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from featurestore import telemetry
from featurestore.errors import FeatureStoreError
from featurestore.online.store import OnlineStore
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer, tracks
from tests.unit.serving import policies
from tests.unit.serving.api import Api, running

TRUE = [2, 6.0, 7.0, 4]
DECLARED = [None, 0.0, None, None]
BUDGET_MS = 30.0
PASSWORD = "changed"  # noqa: S105 - of a server that lives for one test


@dataclass
class Site:
    """An API that reaches Redis through a proxy, and heartbeats that do not."""

    api: Api
    redis: RedisServer
    proxy: Proxy

    async def ask(self, policy: str, budget_ms: float | None = BUDGET_MS, **fields: Any) -> Any:
        body = {"service": f"of_{policy}", "entities": {"origin": ["JFK"]}, "budget_ms": budget_ms, **fields}
        response = await self.api.lookup(body)
        assert response.status_code == 200, response.text
        return response.json()

    async def row(self, policy: str, budget_ms: float | None = BUDGET_MS) -> Any:
        return (await self.ask(policy, budget_ms))["rows"][0]


class Impatient(RedisServer):
    """Counts as started as soon as it says anything."""

    def answers(self) -> bool:
        return self.command("PING") != b""


def breaker_state() -> float:
    return telemetry.REGISTRY.get_sample_value("fs_store_breaker_state") or 0.0


async def until(true: Callable[[], bool], seconds: float) -> float:
    """Waits; how long it took."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - started


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with Impatient(persist=True) as redis, Proxy(redis.port) as proxy:
        async with (
            OnlineStore.connect(redis.url, timeout_seconds=1.0) as direct,
            running(f"redis://127.0.0.1:{proxy.port}/0", tmp_path, applied=False) as api,
        ):
            api.store = direct
            await policies.publish(api)
            beating = asyncio.ensure_future(_beat(api))
            yield Site(api, redis, proxy)
            beating.cancel()


async def _beat(api: Api) -> None:
    while True:
        with suppress(FeatureStoreError):
            await policies.beat(api)
        await asyncio.sleep(0.5)


def require_password(site: Site) -> None:
    with redis_client.Redis(port=site.redis.port) as admin:
        admin.config_set("requirepass", PASSWORD)
        admin.client_kill_filter(_type="normal", skipme=True)


def require_none(site: Site) -> None:
    with redis_client.Redis(port=site.redis.port, password=PASSWORD) as admin:
        admin.config_set("requirepass", "")


def restart_slowly(site: Site) -> None:
    """A server that has to read its data first says `-LOADING` for some seconds."""
    with redis_client.Redis(port=site.redis.port) as admin:
        admin.mset({f"ballast:{i}": random.Random(i).randbytes(4_000) for i in range(60)})
        admin.execute_command("BGREWRITEAOF")
        while (
            admin.info("persistence")["aof_rewrite_in_progress"] or admin.info("persistence")["aof_rewrite_scheduled"]
        ):
            time.sleep(0.02)
    slowly = {"key-load-delay": "100000", "loading-process-events-interval-bytes": "1024"}
    site.redis.options |= slowly
    site.redis.restart()
    assert site.redis.command("GET ballast:1").startswith(b"-LOADING")


def end_loading(site: Site) -> None:
    for option in ("key-load-delay", "loading-process-events-interval-bytes"):
        site.redis.options.pop(option)
    site.redis.restart()


def lose_the_master(site: Site) -> None:
    with redis_client.Redis(port=site.redis.port) as admin:
        admin.config_set("replica-serve-stale-data", "no")
        admin.replicaof("127.0.0.1", 1)


def be_the_master(site: Site) -> None:
    with redis_client.Redis(port=site.redis.port) as admin:
        admin.replicaof("NO", "ONE")


FAULTS: dict[str, tuple[Callable[[Site], object], Callable[[Site], object]]] = {
    "frozen": (lambda site: site.redis.freeze(), lambda site: site.redis.thaw()),
    "black hole": (lambda site: site.proxy.black_hole(), lambda site: site.proxy.heal()),
    "half a second late, every reply": (lambda site: site.proxy.delay(0.5), lambda site: site.proxy.heal()),
    "connections refused": (lambda site: site.proxy.refuse(), lambda site: site.proxy.heal()),
    "killed": (lambda site: site.redis.kill(), lambda site: site.redis.start()),
    "another password": (require_password, require_none),
    "loading": (restart_slowly, end_loading),
    "a replica without its master": (lose_the_master, be_the_master),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_answered_by_policy_within_the_budget_until_it_is_over(site: Site, fault: str) -> None:
    begin, end = FAULTS[fault]
    begin(site)
    try:
        started = time.monotonic()
        served, remembered, late = [], [], []
        while time.monotonic() - started < 1.5:
            answers = await asyncio.gather(site.ask("served"), site.ask("remembered"))
            served.append(answers[0]["rows"][0])
            remembered.append(answers[1]["rows"][0])
            late += [answer["spent_ms"] - BUDGET_MS for answer in answers]
            if time.monotonic() - started > 1.0:
                assert breaker_state() > 0, "a second is enough to see that it is away"
            await asyncio.sleep(0.01)
        unbounded = await site.row("served", None)
        ready = await site.api.http.get("/readyz")
    finally:
        end(site)
    took = await until(lambda: breaker_state() == 0, 2.0)
    row = await site.row("served", 1_000)

    assert {row["status"] for row in served} <= {"deadline", "unavailable"}
    assert served[-1] == {"values": DECLARED, "status": "unavailable"}
    assert all(row["values"] == DECLARED for row in served)
    assert all(row == {"values": TRUE, "status": "last_known"} for row in remembered)
    assert sorted(late)[len(late) // 2] < 5
    assert unbounded == {"values": DECLARED, "status": "unavailable"}
    assert ready.status_code == 503
    assert (row["values"], took < 2.0) == (TRUE, True)


@pytest.mark.parametrize("share", [0.01, 0.5])
@pytest.mark.parametrize("delay", [0.05, 0.2, 0.5])
async def test_where_some_replies_are_late_each_answer_is_true_or_says_what_it_is(
    site: Site, delay: float, share: float
) -> None:
    site.proxy.delay(delay, share)
    rows = []
    for _ in range(60):
        rows += [(await site.ask(policy))["rows"][0] for policy in ("served", "remembered")]
    site.proxy.heal()
    await until(lambda: breaker_state() == 0, 2.0)

    worth = {"ok": TRUE, "stale": TRUE, "last_known": TRUE, "deadline": DECLARED, "unavailable": DECLARED}
    assert {row["status"] for row in rows} <= set(worth)
    assert all(row["values"] == worth[row["status"]] for row in rows)
    assert (await site.row("served", 1_000))["values"] == TRUE


async def test_nobody_waits_behind_a_reply_that_is_late(site: Site) -> None:
    """One connection is held up; the next read goes out on another."""
    site.proxy.delay(0.2)
    held_up = asyncio.ensure_future(site.row("served", 5_000))
    await asyncio.sleep(0.02)
    site.proxy.delay(0.0)
    started = time.monotonic()
    row = await site.row("served", 5_000)
    took = time.monotonic() - started

    assert row["values"] == TRUE
    assert not held_up.done()
    assert took < 0.15
    assert (await held_up)["values"] == TRUE


async def test_a_server_without_memory_still_answers(site: Site) -> None:
    """It refuses writes only, so the values are right; nobody vouches for them once heartbeats cannot be stored."""
    with redis_client.Redis(port=site.redis.port) as admin:
        admin.config_set("maxmemory", "1mb")
        assert [(await site.row("served"))["status"] for _ in range(5)] == ["ok"] * 5
        assert (await site.row("remembered"))["values"] == TRUE


async def test_views_whose_values_came_are_answered_when_another_did_not(site: Site) -> None:
    rows = ["JFK"] + [f"X{i}" for i in range(599)]
    body = {"service": "of_two", "entities": {"origin": rows}, "budget_ms": 5_000}
    assert (await site.api.lookup(body)).json()["rows"][0]["status"] == "ok"
    nothing = b"_\r\n" if tracks(site.redis) else b"$-1\r\n"
    size = len(f"*{len(rows)}\r\n") + len(nothing) * 599 + 1_000
    site.proxy.cut_after(size)  # the first view's values pass, the second's do not
    answer = (await site.api.lookup(body)).json()
    site.proxy.heal()

    first, second = answer["rows"][:2]
    assert first == {"values": TRUE + TRUE, "status": ["ok"] * 4 + ["last_known"] * 4}
    assert second["values"] == [0, 0.0, None, 0, *DECLARED]
    assert second["status"] == ["not_found"] * 4 + ["unavailable"] * 4
