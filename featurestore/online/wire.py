"""One connection for the reads of many callers: commands go out as they come, answers return in their order.

A pool lends each caller a connection of its own. That costs a small read more than Redis needs for its answer, and a
caller that leaves early spoils the connection it was lent; here its answer is dropped when it comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from hiredis import Reader, pack_command
from redis import exceptions as redis_errors
from redis.asyncio import Redis

_pack: Any = pack_command  # declared as taking a tuple of one word
_PARTIAL = object()


class Wire:
    """Opens its connection on first use, and another one after the loss of it. For one event loop.

    Nothing is sent twice: who waits when the connection breaks hears of it.
    """

    def __init__(self, client: Redis, timeout_seconds: float) -> None:
        """Connects as `client` does: the same server, user, TLS and timeouts."""
        self._client, self._timeout = client, timeout_seconds
        self._replies: _Replies | None = None
        self._opening: asyncio.Task[_Replies] | None = None

    async def ask(self, *words: bytes) -> Any:
        """The reply to one command. Raises what the Redis client raises, and an error reply.

        Where no answer comes in time the connection is given up, with all who wait: answers come in order, so theirs
        would be later still.
        """
        replies = self._replies
        if replies is None or replies.lost:
            replies = await self._opened()
        answer = replies.send(_pack(words))
        timer = asyncio.get_running_loop().call_later(self._timeout, replies.give_up, self._timeout)
        try:
            return await answer
        finally:
            timer.cancel()

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._replies is not None:
            self._replies.end(redis_errors.ConnectionError("the connection was closed"))
            await self._replies.released

    async def _opened(self) -> _Replies:
        """All who come meanwhile wait for the same attempt, and one who leaves does not end it."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
            self._opening.add_done_callback(self._attempted)
        return await asyncio.shield(self._opening)

    async def _open(self) -> _Replies:
        connection = self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        self._replies = _Replies(connection)
        return self._replies

    def _attempted(self, attempt: asyncio.Task[_Replies]) -> None:
        self._opening = None
        if not attempt.cancelled():
            attempt.exception()  # whoever asked has heard of it, unless all have left


class _Replies(asyncio.Protocol):
    """Hands each reply to the one who asked first. Takes over a connection once the client library has opened it."""

    def __init__(self, connection: Any) -> None:
        self.lost = False
        self.released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the socket is closed."""
        self._connection = connection  # it would close the transport when it is collected
        self._transport = connection._writer.transport
        self._reader = Reader(
            protocolError=redis_errors.InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_PARTIAL,
        )
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._loop = asyncio.get_running_loop()
        self._transport.set_protocol(self)

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        answer = self._loop.create_future()
        self._waiting.append(answer)
        self._transport.write(packed)
        return answer

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _PARTIAL:
                self._hand_out(reply)
        except redis_errors.RedisError as error:  # after this, nothing tells whose a reply is
            self.end(error)

    def _hand_out(self, reply: Any) -> None:
        if not self._waiting:
            raise redis_errors.InvalidResponse("Protocol error: a reply that nobody asked for")
        answer = self._waiting.popleft()
        if answer.done():
            return  # whoever asked has left
        if isinstance(reply, redis_errors.RedisError):
            answer.set_exception(reply)
        else:
            answer.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(redis_errors.ConnectionError(str(error or "the server closed the connection")))
        self.released.set_result(None)

    def give_up(self, seconds: float) -> None:
        self.end(redis_errors.TimeoutError(f"no answer within {seconds:g} s"))

    def end(self, error: redis_errors.RedisError) -> None:
        if self.lost:
            return
        self.lost = True
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # as after a `disconnect`
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(error)
