"""Connections that dawdle, talk too much or are too many, against a real server on a real socket."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
from uvicorn import Config, Server

from featurestore import telemetry
from featurestore.serving import protocol
from featurestore.serving.protocol import MAX_HEAD, BoundedProtocol

SHORT = 0.2
GET = b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n"
POST = b"POST /v1/lookup HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n"
LARGE = b"x" * (16 << 20)


async def _app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Reads the body, except for `/early`, and says its size; `/large` has an answer that fills every buffer."""
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    body = LARGE if scope["path"] == "/large" else b"%d bytes" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(limit: int = 100) -> AsyncIterator[int]:
    """The port of a server with this limit of connections."""
    bounded = cast(Any, partial(BoundedProtocol, limit=limit))
    config = Config(_app, http=bounded, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - it has no event for it
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    for name in ("HEAD_SECONDS", "MESSAGE_SECONDS", "UNREAD_SECONDS"):
        monkeypatch.setattr(protocol, name, SHORT)
    async with served() as started:
        yield started


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head[9:12]), head, await self.reader.readexactly(length)

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        self.writer.write(request)
        return await self.answer()

    async def ends(self) -> bytes:
        """What is still to be read until the server closes."""
        async with asyncio.timeout(20):
            return await self.reader.read()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


def open_connections() -> float | None:
    return telemetry.REGISTRY.get_sample_value("fs_connections")


async def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    async with connected(port) as peer:
        assert await peer.ends() == b""


async def test_a_head_that_trickles_is_refused(port: int) -> None:
    async with connected(port) as peer:
        peer.writer.write(b"POST /v1/lookup HTTP/1.1\r\nhost:")
        status, _, body = await peer.answer()

        assert (408, "head_timeout") == (status, json.loads(body)["code"])
        assert await peer.ends() == b""


async def test_the_head_of_a_later_request_is_bounded_too(port: int) -> None:
    async with connected(port) as peer:
        assert (await peer.ask(GET))[0] == 200
        peer.writer.write(GET[:10])
        status, _, body = await peer.answer()

        assert (408, "head_timeout") == (status, json.loads(body)["code"])


async def test_a_connection_may_be_idle_between_requests(port: int) -> None:
    async with connected(port) as peer:
        first = await peer.ask(GET)
        await asyncio.sleep(2 * SHORT)

        assert (200, b"0 bytes") == (first[0], first[2])
        assert (await peer.ask(POST + b"0123456789"))[2] == b"10 bytes"


@pytest.mark.parametrize("sent", [b"", b"0123"])
async def test_a_body_that_does_not_arrive_ends_the_connection(port: int, sent: bytes) -> None:
    async with connected(port) as peer:
        peer.writer.write(POST + sent)
        status, _, body = await peer.answer()

        assert (408, "body_timeout") == (status, json.loads(body)["code"])
        assert await peer.ends() == b""


async def test_a_body_that_trickles_on_after_its_answer_ends_the_connection(port: int) -> None:
    """The server's own timer for idle connections begins anew with every byte."""
    async with connected(port) as peer:
        peer.writer.write(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\n")
        assert (await peer.answer())[0] == 200
        with contextlib.suppress(ConnectionError):
            while not peer.reader.at_eof():
                peer.writer.write(b"x")
                await asyncio.sleep(SHORT / 10)


async def test_a_request_in_pieces_is_answered_when_it_is_whole(port: int) -> None:
    async with connected(port) as peer:
        for piece in (POST[:20], POST[20:] + b"0123", b"456789"):
            peer.writer.write(piece)
            await asyncio.sleep(0.01)

        assert (await peer.answer())[2] == b"10 bytes"


async def test_a_head_without_end_is_refused(port: int) -> None:
    async with connected(port) as peer:
        peer.writer.write(b"GET / HTTP/1.1\r\n" + b"x-long: " + b"y" * MAX_HEAD)
        status, _, body = await peer.answer()

        assert (431, "head_too_large") == (status, json.loads(body)["code"])


async def test_a_client_that_does_not_read_its_answer_is_cut_off(port: int) -> None:
    before = open_connections()
    async with connected(port) as peer:
        peer.writer.write(b"GET /large HTTP/1.1\r\nhost: test\r\n\r\n")
        async with asyncio.timeout(20):
            while open_connections() == before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while open_connections() != before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_connections_beyond_the_limit_are_refused_but_for_probes() -> None:
    async with served(limit=1) as port, connected(port) as first:
        assert (await first.ask(GET))[0] == 200
        async with connected(port) as second, connected(port) as third:
            status, head, body = await second.ask(POST + b"0123456789")
            assert (503, "overloaded") == (status, json.loads(body)["code"])
            assert b"retry-after: 1\r\n" in head
            assert b"connection: close\r\n" in head
            assert await second.ends() == b""
            assert (await third.ask(GET))[0] == 200
        assert (await first.ask(POST + b"0123456789"))[0] == 200


async def test_far_more_connections_than_that_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SPARE_CONNECTIONS", 0)
    async with served(limit=1) as port, connected(port) as first:
        assert (await first.ask(GET))[0] == 200
        async with connected(port) as second:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await second.ask(GET)


async def test_there_is_room_again_when_a_connection_has_ended() -> None:
    before = open_connections()
    async with served(limit=1) as port:
        for _ in range(3):
            async with connected(port) as peer:
                assert (await peer.ask(POST + b"0123456789"))[0] == 200
            async with asyncio.timeout(20):
                while open_connections() != before:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
