"""One connection for the commands of many callers: they go out as they come, answers return in their order.

A pool lends each caller a connection of its own. That costs a small read more than Redis needs for its answer, and a
caller that leaves early spoils the connection it was lent; here its answer is dropped when it comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hiredis import PushNotification, Reader, pack_command
from redis import exceptions as redis_errors
from redis.asyncio import Redis

Command = Sequence[bytes | str | int]

Arrived = Callable[[Sequence[Any]], None]
"""Called with replies before anything that the server sent after them is looked at."""

pack: Any = pack_command  # declared as taking a tuple of one word
_PARTIAL = object()
ROOM_BYTES = 1 << 18
"""Read at a time, at most."""
READER_BYTES = 1 << 21
"""The parser keeps a buffer of so much. By itself it lets go of one above 16 KiB, and grows it anew for each reply."""


def required(reply: Any) -> Any:
    """Raises an error reply."""
    if isinstance(reply, redis_errors.RedisError):
        raise reply
    return reply


class Wire:
    """Opens its connection on first use, and another one after the loss of it. For one event loop.

    Nothing is sent twice: who waits when the connection breaks hears of it.
    """

    def __init__(self, client: Redis, timeout_seconds: float) -> None:
        """Connects as `client` does: the same server, user, TLS and timeouts. `timeout_seconds` is how long the server
        may say nothing while somebody waits."""
        self._client, self._timeout = client, timeout_seconds
        self._replies: Replies | None = None
        self._opening: asyncio.Task[Replies] | None = None

    async def ask(self, *words: bytes | str | int) -> Any:
        """The reply to one command. Raises what the Redis client raises, and an error reply."""
        return await self.ask_packed(pack(words))

    async def ask_packed(self, command: bytes) -> Any:
        """As `ask`, for a command in the form in which it is sent."""
        [reply] = await self._send(command, 1)
        return required(reply)

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands, sent in one go, in order. An error reply stands in its place.

        Where the server says nothing for too long the connection is given up, with all who wait: answers come in
        order, so theirs would be later still.
        """
        return await self._send(b"".join(map(pack, commands)), len(commands)) if commands else []

    async def at_once(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands between which the server serves nobody else. Raises an error reply."""
        *_, replies = await self.exchange([("MULTI",), *commands, ("EXEC",)])
        return list(map(required, replies if isinstance(replies, list) else [replies]))

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._replies is not None:
            self._replies.end(redis_errors.ConnectionError("the connection was closed"))
            await self._replies.released

    async def connected(self) -> Replies:
        """The connection that commands go out on now."""
        replies = self._replies
        return await self._opened() if replies is None or replies.lost else replies

    async def _send(self, packed: bytes, count: int) -> list[Any]:
        return await (await self.connected()).send(packed, count)

    async def _opened(self) -> Replies:
        """All who come meanwhile wait for the same attempt, and one who leaves does not end it."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
            self._opening.add_done_callback(self._attempted)
        return await asyncio.shield(self._opening)

    async def _open(self) -> Replies:
        connection = self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        self._replies = Replies(connection, self._timeout)
        return self._replies

    def _attempted(self, attempt: asyncio.Task[Replies]) -> None:
        self._opening = None
        if not attempt.cancelled():
            attempt.exception()  # whoever asked has heard of it, unless all have left


@dataclass(slots=True, eq=False)
class _Expected:
    """Replies that somebody waits for, together."""

    count: int
    answer: asyncio.Future[list[Any]]
    arrived: Arrived | None
    found: list[Any] = field(default_factory=list)


class Replies(asyncio.BufferedProtocol):
    """Hands replies to the one who asked first. Takes over a connection once the client library has opened it.

    What comes is read into one buffer, over and over: the values of a large lookup are a megabyte, and each copy less
    is felt.
    """

    def __init__(self, connection: Any, timeout_seconds: float) -> None:
        self.lost = False
        self.pushed: Arrived | None = None
        """Called with each message that is no reply, in its place among the replies."""
        self.released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the socket is closed."""
        self._connection = connection  # it would close the transport when it is collected
        self._transport = connection._writer.transport
        self._reader = Reader(
            protocolError=redis_errors.InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_PARTIAL,
        )
        self._reader.setmaxbuf(READER_BYTES)
        self._room = bytearray(ROOM_BYTES)
        self._waiting: deque[_Expected] = deque()
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout_seconds
        self._heard = 0.0
        """When the last reply came, or somebody began to wait where nobody did."""
        self._watch: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    def send(self, packed: bytes, count: int, arrived: Arrived | None = None) -> asyncio.Future[list[Any]]:
        """`count` replies are to come, one or more. An error among them stands in its place. `arrived` is called also
        where nobody waits for them any more."""
        answer = self._loop.create_future()
        if not self._waiting:
            self._heard = self._loop.time()
        self._waiting.append(_Expected(count, answer, arrived))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look)
        self._transport.write(packed)
        return answer

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = self._loop.time()
        try:
            self._reader.feed(self._room, 0, nbytes)  # type: ignore[arg-type]  # it takes any buffer
            while (reply := self._reader.gets()) is not _PARTIAL:
                self._hand_out(reply)
        except redis_errors.RedisError as error:  # after this, nothing tells whose a reply is
            self.end(error)

    def _hand_out(self, reply: Any) -> None:
        if type(reply) is PushNotification and self.pushed is not None:
            self.pushed(reply)
            return
        if not self._waiting:
            raise redis_errors.InvalidResponse("Protocol error: a reply that nobody asked for")
        first = self._waiting[0]
        first.found.append(reply)
        if len(first.found) == first.count:
            self._waiting.popleft()
            if first.arrived is not None:
                first.arrived(first.found)
            if not first.answer.done():  # else whoever asked has left
                first.answer.set_result(first.found)

    def _look(self) -> None:
        """Gives the connection up where somebody waits and nothing was heard for too long."""
        self._watch = None
        if self.lost or not self._waiting:
            return
        left = self._heard + self._timeout - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._look)
        else:
            self.end(redis_errors.TimeoutError(f"no answer within {self._timeout:g} s"))

    def connection_lost(self, error: Exception | None) -> None:
        self.end(redis_errors.ConnectionError(str(error or "the server closed the connection")))
        self.released.set_result(None)

    def end(self, error: redis_errors.RedisError) -> None:
        if self.lost:
            return
        self.lost = True
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # as after a `disconnect`
        if self._watch is not None:
            self._watch.cancel()
        while self._waiting:
            answer = self._waiting.popleft().answer
            if not answer.done():
                answer.set_exception(error)
