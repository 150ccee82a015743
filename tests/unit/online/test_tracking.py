"""What is kept, for how long, and from which servers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError

from featurestore.online import tracking
from featurestore.online.keys import Keyspace
from featurestore.online.store import OnlineStore
from featurestore.online.tracking import KEPT_SECONDS, KeptValues
from tests.laws.test_tracking_law import kept
from tests.parts.redis import RedisServer, tracks
from tests.unit.online.values import packed

VIEW, OTHER = "airport_delay@1", "route_delay@2"
KEYSPACE = Keyspace("fs")
HELLO = {b"server": b"redis", b"version": b"7.0.15"}


def keeping() -> KeptValues:
    values = KeptValues(KEYSPACE, 1 << 20)
    values.greeted([HELLO, b"OK"])
    values.put([(VIEW, ["0", "1"]), (OTHER, ["2"])], 100.0, [b"OK", [b"a", None, b"c"]])
    return values


def found(values: KeptValues) -> list[bytes | None]:
    return values.of([(VIEW, ["0", "1"]), (OTHER, ["2", "3"])])


def test_what_was_read_is_kept_but_not_that_there_was_nothing() -> None:
    assert [b"a", None, b"c", None] == found(keeping())


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (KEYSPACE.values(VIEW, ["0", "2"]), [None, None, b"c", None]),
        (KEYSPACE.values(OTHER, ["0", "2", "77"]), [b"a", None, None, None]),
        (KEYSPACE.values("unheard@1", ["0"]), [b"a", None, b"c", None]),
        ([*Keyspace("another").values(VIEW, ["0"]), b"", b"fs:fence:airport_delay@1"], [b"a", None, b"c", None]),
        (None, [None] * 4),
    ],
)
def test_what_the_server_announces_is_kept_no_longer_and_counted(
    names: list[bytes] | None, left: list[bytes | None]
) -> None:
    values = keeping()
    values.pushed([b"invalidate", names])
    assert left == found(values)
    assert values.changes == 1


def test_other_messages_change_nothing() -> None:
    values = keeping()
    values.pushed([b"message", KEYSPACE.values(VIEW, ["0"])[0], b"text"])
    assert [b"a", None, b"c", None] == found(values)
    assert values.changes == 0


@pytest.mark.parametrize("replies", [[b"OK", ResponseError("LOADING")], [ResponseError("ERR"), [b"x", b"x", b"x"]]])
def test_replies_that_are_errors_are_not_kept(replies: list[Any]) -> None:
    values = keeping()
    values.put([(VIEW, ["0", "1"]), (OTHER, ["2"])], 100.0, replies)
    assert [b"a", None, b"c", None] == found(values)


def test_after_a_minute_a_value_is_read_again() -> None:
    values = keeping()
    values.put([(OTHER, ["3"])], 101.0, [b"OK", [b"d"]])
    values.age(100.0 + KEPT_SECONDS)
    assert [b"a", None, b"c", b"d"] == found(values)
    values.age(100.1 + KEPT_SECONDS)
    assert [None, None, None, b"d"] == found(values)


def test_there_is_room_for_so_much_and_the_oldest_go_first() -> None:
    values = KeptValues(KEYSPACE, 10 * (tracking.ENTRY_BYTES + 100))
    for i in range(30):
        values.put([(VIEW, [str(i)])], 0.0, [b"OK", [b"x" * 100]])
    assert [None] * 20 + [b"x" * 100] * 10 == values.of([(VIEW, [str(i) for i in range(30)])])


def test_where_all_changes_before_it_is_asked_for_again_few_are_tracked() -> None:
    values = KeptValues(KEYSPACE, 1 << 20)
    values.greeted([HELLO, b"OK"])
    tracked = [values.worth(500) for _ in range(tracking.CREDIT // 500 + 10 * tracking.SAMPLE_EVERY)]
    assert all(tracked[: tracking.CREDIT // 500])
    assert sum(tracked[tracking.CREDIT // 500 :]) == 10
    values.spared(500)
    assert values.worth(500)


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (HELLO | {b"version": b"6.2.14"}, b"OK"),
        (HELLO | {b"version": b""}, b"OK"),
        ([b"server", b"redis"], b"OK"),
        (ResponseError("unknown command 'HELLO'"), ResponseError("ERR Client tracking can be enabled only with RESP3")),
        (HELLO, NoPermissionError("this user has no permissions to run the 'client|tracking' command")),
    ],
)
def test_a_server_that_does_not_track_is_asked_for_everything(hello: Any, answer: Any) -> None:
    values = KeptValues(KEYSPACE, 1 << 20)
    values.greeted([hello, answer])
    assert not any(values.worth(1) for _ in range(2 * tracking.SAMPLE_EVERY))


def test_valkey_tracks() -> None:
    values = KeptValues(KEYSPACE, 1 << 20)
    values.greeted([{b"server": b"valkey", b"version": b"8.1.0"}, b"OK"])
    assert values.worth(1)


@asynccontextmanager
async def reading(server: RedisServer, user: str = "") -> AsyncIterator[OnlineStore]:
    url = server.url.replace("//", f"//{user}@" if user else "//")
    async with OnlineStore.connect(url, keep_bytes=1 << 20) as store:
        yield store


async def filled(server: RedisServer, ttl_ms: int | None = None) -> None:
    async with OnlineStore.connect(server.url) as store:
        await store.write(VIEW, ["a", "b"], [packed(1, 1), packed(1, 2)], ttl_ms=ttl_ms)


async def times_kept(store: OnlineStore, reads: int) -> float:
    before = kept()
    for _ in range(reads):
        assert [packed(1, 1), packed(1, 2)] == await store.read(VIEW, ["a", "b"])
    return kept() - before


async def test_from_the_third_time_on_nothing_is_read(own_redis: RedisServer) -> None:
    await filled(own_redis)
    async with reading(own_redis) as store:
        expected = 20 if tracks(own_redis) else 0
        assert expected == await times_kept(store, 12), "the first is on its way before the server agrees to track"


async def test_a_user_who_may_not_track_reads_all_the_same(own_redis: RedisServer) -> None:
    await filled(own_redis)
    for name, rights in (("poor", ""), ("able", " +hello +client|tracking +client|caching")):
        reply = own_redis.command(f"ACL SETUSER {name} on >pw ~fs:* resetchannels -@all +mget +ping +select{rights}")
        assert reply == b"+OK\r\n"
    async with reading(own_redis, "poor:pw") as store:
        assert await times_kept(store, 5) == 0
    if tracks(own_redis):
        async with reading(own_redis, "able:pw") as store:
            assert await times_kept(store, 5) == 6


async def test_a_key_that_expired_is_gone_once_the_server_removes_it(own_redis: RedisServer) -> None:
    await filled(own_redis, ttl_ms=150)
    async with reading(own_redis) as store, redis.asyncio.Redis.from_url(own_redis.url) as raw:
        await times_kept(store, 4)
        deadline = time.monotonic() + 10
        while await raw.dbsize():  # which does not look whether one is expired, as reading it would
            assert time.monotonic() < deadline, "it is there for ever"
            await asyncio.sleep(0.01)
        assert [None, None] == await store.read(VIEW, ["a", "b"])


async def test_a_server_that_lost_everything_keeps_nothing_alive_here(own_redis: RedisServer) -> None:
    await filled(own_redis)
    async with reading(own_redis) as store:
        await times_kept(store, 4)
        own_redis.kill()
        own_redis.restart()
        await asyncio.sleep(0.05)  # or the first to ask would hear that the connection is lost
        assert [None, None] == await store.read(VIEW, ["a", "b"])


async def test_a_value_that_was_evicted_is_not_kept() -> None:
    with RedisServer(options={"maxmemory-policy": "allkeys-lru"}) as server:
        await filled(server)
        async with reading(server) as store, redis.asyncio.Redis.from_url(server.url) as raw:
            await times_kept(store, 4)
            await raw.config_set("maxmemory", "1mb")
            names = Keyspace("fs").values(VIEW, ["a", "b"])
            for i in range(1_000):
                with suppress(redis.asyncio.ResponseError):  # nothing is left to evict
                    await raw.set(f"other{i}", b"x" * 10_000)
            expected = await raw.mget(names)
            assert None in expected
            assert expected == await store.read(VIEW, ["a", "b"])
