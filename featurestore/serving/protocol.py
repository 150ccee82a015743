"""uvicorn's HTTP protocol with bounds: on connections, on the size of a head, and on how long either side may dawdle.

By itself it waits for a head, for the rest of a body, and for a reader, as long as the connection stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from featurestore import telemetry
from featurestore.serving.admission import overloaded
from featurestore.serving.arrival import BODY_SECONDS, LATE_BODY
from featurestore.serving.problems import MEDIA_TYPE, Problem

HEAD_SECONDS = 5.0
"""From the connection, or the first byte of a later request, to the end of the request's head."""
MESSAGE_SECONDS = BODY_SECONDS + 5.0
"""From there to the end of the body. Whoever reads a body that has begun to arrive gives up before this."""
UNREAD_SECONDS = 30.0
"""For the client to read anything of an answer that fills the buffers."""
MAX_HEAD = 64 << 10
"""Bytes."""
SPARE_CONNECTIONS = 64
"""Beyond the limit, for probes to be answered and for refusals to be told; more are closed without a word."""
PROBES = {"/healthz", "/readyz", "/metrics"}

_LATE = Problem(408, "head_timeout", f"the request's head did not arrive within {HEAD_SECONDS:g} seconds")
_LARGE = Problem(431, "head_too_large", f"the request's head is larger than {MAX_HEAD} bytes")

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A usual request pays for the bounds with a few attributes: timers are set for slow ones only."""

    def __init__(self, *args: Any, limit: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self._limit = limit
        self._partial = self._in_head = False
        self._head_size = 0
        self._patience: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Together(transport, self.loop))  # type: ignore[arg-type]
        telemetry.CONNECTIONS.inc()
        beyond = len(self.connections) - self._limit
        if beyond > SPARE_CONNECTIONS:
            transport.abort()
            return
        if beyond > 0:
            self.app = _ProbesOnly(self.app)
        self._in_head = True
        self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        telemetry.CONNECTIONS.dec()
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._partial:
            return
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._end_with(_LARGE)
                return
        if self._patience is None:
            seconds = HEAD_SECONDS if self._in_head else MESSAGE_SECONDS
            self._patience = self.loop.call_later(seconds, self._give_up)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._partial = self._in_head = True
        self._head_size = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._partial = False
        self._stop_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self.flow.read_paused:  # it is we who read no more, until an earlier request is answered
            self._patience = self.loop.call_later(MESSAGE_SECONDS, self._give_up)
        elif self._partial:
            self._end_with(_LATE if self._in_head else LATE_BODY)
        else:
            self.transport.close()

    def _end_with(self, problem: Problem) -> None:
        """Closes the connection, with an answer where the application has not begun one."""
        if self.transport.is_closing():
            return
        # While a head is read, `cycle` is still the request before.
        last = self.cycle
        if (last is None or last.response_complete) if self._in_head else not last.response_started:
            body = problem.encode()
            head = f"HTTP/1.1 {problem.status} {problem.code}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()


class _Together:
    """A transport that sends what is written in one turn of the event loop in one go: uvicorn writes the head of an
    answer and its body apart, and each costs a call of the system, a tenth of a small lookup."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.writelines(parts)


class _ProbesOnly:
    """In front of the application for a connection beyond the limit."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        if scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        telemetry.LOOKUPS_SHED.labels("unknown", "connections").inc()
        problem = overloaded("connections")
        body = problem.encode()
        headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        encoded = [(name.encode(), value.encode()) for name, value in (*headers, *problem.headers)]
        await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})
