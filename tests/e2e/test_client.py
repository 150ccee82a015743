"""The Python clients against a served API on a real Redis, with a network between them that fails on command."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurestore import AsyncClient, Client
from featurestore.clock import HOUR, MINUTE, SystemClock
from featurestore.errors import AccessDenied, AtOutOfRange, InvalidRequest, NotFound, Unavailable
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.serving.keys import new_key
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer
from tests.unit.serving import flights, kinds
from tests.unit.serving.process import ApiProcess

NOW = SystemClock().now()
SEEN = 300
"""Entities `(u<i>, i)` for i below this, each with i % 3 + 1 departures."""
ENTITIES = {"origin": ["u0", "u1", "u2", None, "nowhere"], "flight": [0, 1, 2, 3, 4]}
DEPARTURES = "leg_kinds.departures"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer(persist=True) as server:
        yield server


@pytest.fixture(scope="module")
def server(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    lake = tmp_path_factory.mktemp("lake")
    apply(Registry(str(lake)), kinds.definitions(), now=NOW)
    events = [
        (NOW - 10 * HOUR + (1 + turn) * MINUTE + 123, f"u{i}", f"C{turn}", i, 10.0 * turn)
        for turn in range(3)
        for i in range(SEEN)
        if turn <= i % 3
    ]
    values = flights.stored(kinds.view(), flights.departures(events))

    async def write() -> None:
        async with OnlineStore.connect(redis.url) as store:
            await store.write(kinds.view().id, list(values), list(values.values()))

    asyncio.run(write())
    with ApiProcess(redis.url, lake) as process:
        process.until_ready()
        yield process


@pytest.fixture
def proxy(server: ApiProcess) -> Iterator[Proxy]:
    with Proxy(int(server.url.rsplit(":", 1)[1])) as between:
        yield between


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{proxy.port}", allowance_ms=500) as found:
        yield found


def departures(client: Client, **how: Any) -> list[int]:
    """What the service says of five entities: 1, 2 and 3 departures, none and none."""
    return [row[DEPARTURES] for row in client.lookup("leg_kinds", ENTITIES, **how).rows]


def test_rows_are_those_that_were_asked_for(client: Client) -> None:
    result = client.lookup("leg_kinds", ENTITIES)

    assert [1, 2, 3, 0, 0] == [row[DEPARTURES] for row in result.rows]
    # A null key is nobody's; of the others nobody knows without a worker's sign of life.
    assert ["not_found", "stale"] == [statuses["leg_kinds.carrier"] for statuses in result.statuses[3:]]
    assert ("leg_kinds", 1, 1, "online") == (result.service, result.version, result.revision, result.source)
    assert 0 <= result.at - NOW < HOUR


@pytest.mark.parametrize("rows", [0, 1, 5, SEEN])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_result_is_the_same_whichever_way_it_travelled(server: ApiProcess, rows: int, compressed: bool) -> None:
    entities = {"origin": [f"u{i}" for i in range(rows)], "flight": list(range(rows))}
    with Client(server.url, compressed=compressed) as client:
        at = client.lookup("leg_kinds", entities).at + HOUR
        lean, arrow = (client.lookup("leg_kinds", entities, at=at, arrow=way) for way in (False, True))

    assert [(lean.at, lean.features, lean.source)] == [(arrow.at, arrow.features, arrow.source)]
    assert lean.rows == arrow.rows
    assert lean.statuses == arrow.statuses
    assert lean.to_pyarrow().schema == arrow.to_pyarrow().schema
    assert lean.to_pyarrow().equals(arrow.to_pyarrow())
    assert lean.to_polars().equals(arrow.to_polars())
    assert lean.to_pandas().equals(arrow.to_pandas())
    assert [i % 3 + 1 for i in range(rows)] == [row[DEPARTURES] for row in arrow.rows]


async def test_many_calls_at_once_each_get_their_own_answer(server: ApiProcess) -> None:
    async with AsyncClient(server.url) as features:

        async def one(i: int) -> None:
            entities = {"origin": [f"u{i}", f"u{i + 1}"], "flight": [i, i + 1]}
            result = await features.lookup("leg_kinds", entities, arrow=i % 2 == 0)
            assert [i % 3 + 1, (i + 1) % 3 + 1] == [row[DEPARTURES] for row in result.rows]

        await asyncio.gather(*(one(i) for i in range(SEEN - 1)))


def test_mistakes_name_the_field_and_what_was_meant(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'origin'") as key:
        client.lookup("leg_kinds", {"orign": ["u1"], "flight": [1]})
    with pytest.raises(NotFound, match="did you mean 'leg_kinds'") as service:
        client.lookup("leg_kind", ENTITIES)
    with pytest.raises(InvalidRequest) as uneven:
        client.lookup("leg_kinds", {"origin": ["u1"], "flight": [1, 2]})
    with pytest.raises(InvalidRequest, match="request"):
        client.lookup("leg_kinds", ENTITIES, request={"amount": 1})

    assert ("entities.orign", "entities.flight") == (key.value.field, uneven.value.field)
    assert (("leg_kinds",), 404) == (service.value.near, service.value.status)


def test_an_instant_that_cannot_be_answered_is_told(client: Client) -> None:
    with pytest.raises(AtOutOfRange):
        client.lookup("leg_kinds", {"origin": ["u1"], "flight": [1]}, at=NOW - 20 * HOUR, budget_ms=2000)


def test_a_budget_of_a_millisecond_is_kept_with_honest_statuses(client: Client) -> None:
    for _ in range(20):
        result = client.lookup("leg_kinds", ENTITIES, budget_ms=1)
        seen = {status for statuses in result.statuses for status in statuses.values()}
        assert seen == {"deadline"} or [1, 2, 3, 0, 0] == [row[DEPARTURES] for row in result.rows]


def test_a_connection_that_is_reset_before_the_answer_costs_nothing(client: Client, proxy: Proxy) -> None:
    assert [1, 2, 3, 0, 0] == departures(client)
    proxy.black_hole(requests=False)

    def strike() -> None:
        time.sleep(0.2)
        proxy.reset()
        proxy.heal()

    striking = threading.Thread(target=strike)
    striking.start()
    answered = departures(client, budget_ms=5000)
    striking.join()

    assert [1, 2, 3, 0, 0] == answered


def test_connections_that_died_while_idle_cost_nothing(client: Client, proxy: Proxy) -> None:
    for _ in range(10):
        assert [1, 2, 3, 0, 0] == departures(client)
        proxy.reset()


def test_an_answer_that_is_cut_off_is_told_and_the_next_one_is_whole(client: Client, proxy: Proxy) -> None:
    many = {"origin": [f"u{i}" for i in range(SEEN)], "flight": list(range(SEEN))}
    proxy.cut_after(2_000)
    with pytest.raises(Unavailable, match="broke off"):
        client.lookup("leg_kinds", many)
    proxy.heal()

    assert SEEN == len(client.lookup("leg_kinds", many))


def test_a_network_that_swallows_everything_is_waited_for_no_longer_than_said(client: Client, proxy: Proxy) -> None:
    departures(client)
    proxy.black_hole()
    started = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer"):
        departures(client, budget_ms=100)
    spent = time.monotonic() - started
    proxy.heal()

    assert 0.6 <= spent < 1.5
    assert [1, 2, 3, 0, 0] == departures(client)


def test_an_api_that_is_gone_is_told_at_once_and_found_again(client: Client, proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(Unavailable, match="does not answer"):
        departures(client)
    proxy.heal()

    assert [1, 2, 3, 0, 0] == departures(client)


async def test_under_resets_every_answer_is_right_or_an_error(server: ApiProcess, proxy: Proxy) -> None:
    answered, failed, ended = 0, 0, False

    async def ask(i: int) -> None:
        nonlocal answered, failed
        while not ended:
            try:
                result = await features.lookup("leg_kinds", {"origin": [f"u{i}"], "flight": [i]})
            except Unavailable:
                failed += 1
                continue
            answered += 1
            assert [i % 3 + 1] == [row[DEPARTURES] for row in result.rows]

    async with AsyncClient(f"http://127.0.0.1:{proxy.port}") as features:
        asking = [asyncio.ensure_future(ask(i)) for i in range(8)]
        for _ in range(20):
            await asyncio.sleep(0.05)
            await asyncio.to_thread(proxy.reset)
        ended = True
        await asyncio.gather(*asking)

    assert answered > failed


def test_a_key_opens_the_service_that_it_is_for(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, entry = new_key("scoring", ["lookup:leg_kinds"])
    apply(Registry(str(tmp_path)), kinds.definitions(), now=NOW)
    monkeypatch.setenv("FS_AUTH", "required")
    monkeypatch.setenv("FS_API_KEYS", entry.line)
    with ApiProcess(redis.url, tmp_path) as process, Client(process.url, api_key=key) as known:
        process.until_ready()
        answered = departures(known)
        with Client(process.url) as nobody, pytest.raises(AccessDenied) as unknown:
            departures(nobody)
        with pytest.raises(AccessDenied) as forbidden:
            known.lookup("flight_delay", {"origin": ["JFK"]})

    assert [1, 2, 3, 0, 0] == answered
    assert ("unauthenticated", "forbidden") == (unknown.value.code, forbidden.value.code)


def test_a_killed_redis_is_told_by_statuses_and_not_by_errors(client: Client, redis: RedisServer) -> None:
    departures(client)
    redis.kill()
    try:
        killed = [client.lookup("leg_kinds", ENTITIES, budget_ms=500) for _ in range(5)]
    finally:
        redis.start()
    deadline = time.monotonic() + 10
    while departures(client) != [1, 2, 3, 0, 0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert {"unavailable"} == {status for result in killed for s in result.statuses[:3] for status in s.values()}
