"""Commands of many callers over one connection. What they ask is real; a server that breaks the protocol is made."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from redis.exceptions import ResponseError, TimeoutError

from featurestore.errors import Unavailable
from featurestore.online.connection import open_client, parse_endpoint
from featurestore.online.store import OnlineStore
from featurestore.online.wire import Wire
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer
from tests.unit.online.values import packed

VIEW = "airport_delay@1"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis for a test that breaks it."""
    with RedisServer() as started:
        yield started


def connections_of(server: RedisServer) -> int:
    """Opened since the server started, with the one that asks."""
    return int(server.command("INFO stats").split(b"total_connections_received:")[1].split(b"\r\n")[0])


def value(key: str) -> bytes:
    return packed(1, 1, body=key.encode() * random.Random(key).randrange(1, 4000))


async def fill(server: RedisServer, keys: list[str]) -> None:
    async with OnlineStore.connect(server.url) as store:
        await store.write(VIEW, keys, [value(key) for key in keys])


async def test_readers_share_a_connection_and_each_gets_what_it_asked_for(server: RedisServer) -> None:
    keys = [f"k{i}" for i in range(50)]
    await fill(server, keys)
    before, dice = connections_of(server), random.Random(7)
    async with OnlineStore.connect(server.url) as store:

        async def reader(number: int) -> int:
            left = 0
            for _ in range(40):
                wanted = dice.choices(keys, k=dice.randrange(1, 20))
                reading = asyncio.ensure_future(store.read(VIEW, wanted))
                if dice.random() < 0.3:
                    for _ in range(dice.randrange(6)):
                        await asyncio.sleep(0)
                    left += reading.cancel()
                    continue
                assert [value(key) for key in wanted] == await reading
            return left

        left = await asyncio.gather(*map(reader, range(16)))
    assert sum(left) > 100
    assert before + 2 == connections_of(server), "one for all readers, one that asks"


async def test_one_who_leaves_while_the_connection_opens_leaves_it_to_the_others(server: RedisServer) -> None:
    await fill(server, ["k"])
    async with OnlineStore.connect(server.url) as store:
        first = asyncio.ensure_future(store.read(VIEW, ["k"]))
        second = asyncio.ensure_future(store.read(VIEW, ["k"]))
        await asyncio.sleep(0)
        first.cancel()
        assert [value("k")] == await second


async def test_all_who_wait_hear_of_a_lost_connection_and_the_next_opens_another(server: RedisServer) -> None:
    await fill(server, ["k"])
    with Proxy(server.port) as proxy:
        async with OnlineStore.connect(f"redis://127.0.0.1:{proxy.port}") as store:
            await store.read(VIEW, ["k"])
            proxy.black_hole(requests=False)
            waiting = [asyncio.ensure_future(store.read(VIEW, ["k"])) for _ in range(5)]
            await asyncio.sleep(0.05)
            proxy.reset()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [Unavailable] * 5 == [type(outcome) for outcome in outcomes]
            proxy.heal()
            assert [value("k")] == await store.read(VIEW, ["k"])


async def test_a_reply_that_is_cut_in_two_by_the_network_is_one_reply(server: RedisServer) -> None:
    keys = [f"k{i}" for i in range(200)]
    await fill(server, keys)
    async with OnlineStore.connect(server.url) as store:
        answers = await asyncio.gather(*(store.read(VIEW, keys) for _ in range(8)))
    assert [[value(key) for key in keys]] * 8 == answers


@asynccontextmanager
async def wire(server: RedisServer, timeout_seconds: float = 5.0) -> AsyncIterator[Wire]:
    client = open_client(parse_endpoint(server.url), timeout_seconds=timeout_seconds)
    opened = Wire(client, timeout_seconds)
    yield opened
    await opened.close()
    await client.aclose()


async def test_replies_of_one_go_are_in_order_and_an_error_stands_in_its_place(server: RedisServer) -> None:
    async with wire(server) as ours:
        found = await ours.exchange([("SET", "k", b"v"), ("HGET", "k", "field"), ("STRLEN", b"k"), ("GET", "none")])
        assert [b"OK", 1, None] == [found[0], *found[2:]]
        assert isinstance(found[1], ResponseError)
        assert [] == await ours.exchange([])
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await ours.ask("HGET", "k", "field")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await ours.at_once([("HGET", "k", "field")])
        assert [b"v", 1] == await ours.at_once([("GET", "k"), ("STRLEN", "k")])


async def test_whoever_leaves_takes_no_reply_of_others_along(server: RedisServer) -> None:
    dice = random.Random(11)
    async with wire(server) as ours:
        await ours.exchange([("SET", f"k{i}", str(i)) for i in range(50)])

        async def asker() -> int:
            left = 0
            for _ in range(60):
                wanted = dice.choices(range(50), k=dice.randrange(1, 8))
                asking = asyncio.ensure_future(ours.exchange([("GET", f"k{i}") for i in wanted]))
                if dice.random() < 0.3:
                    for _ in range(dice.randrange(5)):
                        await asyncio.sleep(0)
                    left += asking.cancel()
                    continue
                assert [b"%d" % i for i in wanted] == await asking
            return left

        assert sum(await asyncio.gather(*(asker() for _ in range(12)))) > 100


async def test_a_server_that_is_slow_is_waited_for_and_one_that_says_nothing_is_given_up(server: RedisServer) -> None:
    async with wire(server, timeout_seconds=0.4) as ours:
        slowly = [("BLPOP", "nothing", "0.15")] * 6
        assert [None] * 6 == await ours.exchange(slowly)
        waiting = [asyncio.ensure_future(ours.exchange([words])) for words in (("BLPOP", "nothing", 3), ("PING",))]
        assert [TimeoutError] * 2 == [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)]
        assert b"PONG" == await ours.ask("PING")


@asynccontextmanager
async def speaking(reply: bytes) -> AsyncIterator[str]:
    """The address of a server that agrees to whatever opens a connection, and then answers each read like this."""
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(reply if b"MGET" in data else b"+OK\r\n" * data.count(b"*"))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.ensure_future(serve(reader, writer)))

    started = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{started.sockets[0].getsockname()[1]}"
    started.close()
    await asyncio.gather(*serving)


@pytest.mark.parametrize("reply", [b"hello\r\n", b"*2\r\n$-1\r\n?\r\n"])
async def test_bytes_that_are_no_reply_end_the_connection_and_not_the_reader(reply: bytes) -> None:
    async with speaking(reply) as url, OnlineStore.connect(url) as store:
        for _ in range(2):
            with pytest.raises(Unavailable, match="Protocol error"):
                await store.read(VIEW, ["k"])


async def test_more_replies_than_questions_end_the_connection() -> None:
    async with speaking(b"*1\r\n$-1\r\n*1\r\n$1\r\nx\r\n") as url, OnlineStore.connect(url) as store:
        assert [None] == await store.read(VIEW, ["k"])
        assert [None] == await store.read(VIEW, ["k"]), "not what came unasked"
