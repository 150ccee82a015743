"""More lookups than a served API can answer: what is refused, in which order, and what stays answerable."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from featurestore.clock import SystemClock
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer
from tests.unit.serving import flights
from tests.unit.serving.process import ApiProcess

JFK = {"service": "flight_delay", "entities": {"origin": ["JFK"]}}
SETTINGS = {"FS_LOOKUPS_AT_ONCE": "4", "FS_LOOKUPS_WAITING": "8", "FS_LOOKUP_WAIT_MS": "5000", "FS_CALLER_LOOKUPS": "0"}


@pytest.fixture
def redis() -> Iterator[tuple[RedisServer, Proxy]]:
    with RedisServer() as server, Proxy(server.port) as proxy:
        yield server, proxy


def served(proxy: Proxy, lake: Path, monkeypatch: pytest.MonkeyPatch, **changed: str) -> ApiProcess:
    """With little room, so that a handful of lookups fills it."""
    for name, value in (SETTINGS | changed).items():
        monkeypatch.setenv(name, value)
    apply(Registry(str(lake)), flights.definitions(), now=SystemClock().now())
    return ApiProcess(f"redis://127.0.0.1:{proxy.port}/0", lake)


def refusals(answers: list[httpx.Response]) -> list[dict[str, Any]]:
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    documents: list[dict[str, Any]] = [answer.json() for answer in answers if answer.status_code != 200]
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code != 200)
    return documents


async def ask(http: httpx.AsyncClient, kind: str, budget_ms: float = 10_000) -> httpx.Response:
    return await http.post("/v1/lookup", json=JFK | {"budget_ms": budget_ms}, headers={"X-Request-Class": kind})


async def samples(http: httpx.AsyncClient) -> dict[str, float]:
    lines = (await http.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def test_who_matters_less_is_refused_first_and_probes_are_answered_meanwhile(
    redis: tuple[RedisServer, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = redis
    with served(proxy, tmp_path, monkeypatch) as api:
        await asyncio.to_thread(api.until_ready)
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=api.url, timeout=30, limits=limits) as http:
            proxy.delay(0.05)
            kinds = ["batch", "normal", "critical"] * 20
            asking = asyncio.gather(*(ask(http, kind) for kind in kinds))
            health = [await http.get("/healthz") for _ in range(10)]
            answers = await asking
            proxy.heal()
            afterwards = await ask(http, "batch")
            after = await samples(http)

    refused = Counter(kind for kind, answer in zip(kinds, answers, strict=True) if answer.status_code == 503)
    assert refused["critical"] < refused["batch"]
    assert {"overloaded"} == {problem["code"] for problem in refusals(answers)}
    assert [{"status": "ok"}] * 10 == [answer.json() for answer in health]
    assert 200 == afterwards.status_code
    assert (0, 0) == (after["fs_lookups_running"], after["fs_lookups_waiting"])
    counted = {kind: sum(n for name, n in after.items() if f'shed_total{{class="{kind}"' in name) for kind in refused}
    assert counted == dict(refused)


async def test_a_caller_that_has_its_quota_under_way_is_refused_with_429(
    redis: tuple[RedisServer, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = redis
    with served(proxy, tmp_path, monkeypatch, FS_CALLER_LOOKUPS="2") as api:
        await asyncio.to_thread(api.until_ready)
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
            proxy.delay(0.2)
            answers = await asyncio.gather(*(ask(http, "critical") for _ in range(12)))
            proxy.heal()
            afterwards = await ask(http, "normal")

    assert {"quota_spent"} == {problem["code"] for problem in refusals(answers)}
    assert 200 in {answer.status_code for answer in answers}
    assert 200 == afterwards.status_code


async def test_a_class_or_a_budget_that_is_none_is_refused_by_name(
    redis: tuple[RedisServer, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = redis
    with served(proxy, tmp_path, monkeypatch) as api:
        await asyncio.to_thread(api.until_ready)
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
            wrong_class = await http.post("/v1/lookup", json=JFK, headers={"X-Request-Class": "critcal"})
            wrong_budget = await http.post("/v1/lookup", json=JFK, headers={"X-Budget-Ms": "soon"})

    assert (422, "X-Request-Class", ["critical"]) == _named(wrong_class)
    assert (422, "X-Budget-Ms", None) == _named(wrong_budget)


def _named(answer: httpx.Response) -> tuple[int, str, list[str] | None]:
    return answer.status_code, answer.json()["field"], answer.json().get("near")


async def test_time_that_was_spent_waiting_counts_against_the_budget(
    redis: tuple[RedisServer, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = redis
    with served(proxy, tmp_path, monkeypatch, FS_LOOKUPS_AT_ONCE="1") as api:
        await asyncio.to_thread(api.until_ready)
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
            proxy.black_hole()
            first = asyncio.ensure_future(ask(http, "critical"))
            await until(http, "fs_lookups_running")
            second = asyncio.ensure_future(ask(http, "critical", budget_ms=100))
            await until(http, "fs_lookups_waiting")
            await asyncio.sleep(0.1)
            proxy.heal()
            statuses = [(await answer).json()["rows"][0]["status"] for answer in (first, second)]

    assert "deadline" != statuses[0]
    assert "deadline" == statuses[1]


async def until(http: httpx.AsyncClient, gauge: str) -> None:
    async with asyncio.timeout(10):
        while not (await samples(http))[gauge]:  # noqa: ASYNC110 - polls HTTP
            await asyncio.sleep(0.01)


async def test_connections_are_bounded_and_probes_are_answered_beyond(
    redis: tuple[RedisServer, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = redis
    with served(proxy, tmp_path, monkeypatch, FS_CONNECTIONS="2") as api:
        async with (
            httpx.AsyncClient(base_url=api.url) as first,
            httpx.AsyncClient(base_url=api.url) as second,
            httpx.AsyncClient(base_url=api.url) as third,
        ):
            answers = [await ask(http, "normal") for http in (first, second, third)]
            probe = await third.get("/healthz")

    assert [200, 200, 503] == [answer.status_code for answer in answers]
    assert ("overloaded", "close") == (answers[2].json()["code"], answers[2].headers["connection"])
    assert {"status": "ok"} == probe.json()
