"""The outermost ASGI application: answers lookups itself and passes everything else on.

A FastAPI route costs more than twice what a bare ASGI handler does, which shows where lookups are small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from featurestore.serving.endpoint import LookupEndpoint, Response, logged, problem_response
from featurestore.serving.problems import Problem, Refused
from featurestore.serving.requests import MAX_BODY, too_large

LOOKUP_PATH = "/v1/lookup"
BODY_SECONDS = 10.0
DRAINED_BYTES = 64 * MAX_BODY
"""Read and dropped of a body that is too large, so that its sender gets to read the refusal."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Front:
    """`POST /v1/lookup` before `app`; also the last resort for errors that `app` lets through.

    `running` is what an ASGI server does at start and end, for those who embed the application without one.
    """

    def __init__(
        self, app: ASGIApp, endpoint: LookupEndpoint, running: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self.running = running
        self._app, self._endpoint = app, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == LOOKUP_PATH and scope["method"] == "POST":
            try:
                body = await _body(scope, receive)
            except Refused as refused:
                await _respond(send, problem_response(refused.problem), close=True)
                return
            if body is not None:
                await _respond(send, await self._endpoint.respond(body, scope["query_string"]))
            return
        await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            problem = logged(error)
            if not started:
                await _respond(send, problem_response(problem), close=True)


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body, None where the client left. Raises Refused for one that is too large, encoded or slow."""
    length = _declared_length(scope)
    if length > MAX_BODY:
        await _drain(receive, length)
        raise Refused(too_large(MAX_BODY))
    try:
        async with asyncio.timeout(BODY_SECONDS):
            message = await receive()
            if message["type"] != "http.request":
                return None
            if not message.get("more_body", False):
                body: bytes = message.get("body", b"")
                return body
            return await _rest(receive, message)
    except TimeoutError:
        detail = f"the body did not arrive within {BODY_SECONDS:g} seconds"
        raise Refused(Problem(408, "body_timeout", detail)) from None


def _declared_length(scope: Scope) -> int:
    length = 0
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            length = int(value)
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            detail = "the body is compressed; lookups are read as they are"
            hint = "send it without Content-Encoding"
            raise Refused(Problem(415, "unsupported_encoding", detail, "Content-Encoding", hint))
    return length


async def _rest(receive: Receive, message: MutableMapping[str, Any]) -> bytes | None:
    parts = [message.get("body", b"")]
    size = len(parts[0])
    while message.get("more_body", False):
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            await _drain(receive, DRAINED_BYTES)
            raise Refused(too_large(MAX_BODY))
    return b"".join(parts)


async def _drain(receive: Receive, length: int) -> None:
    """Drops what is still coming, up to a bound."""
    remaining = min(length, DRAINED_BYTES)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while remaining > 0:
                message = await receive()
                remaining -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _respond(send: Send, response: Response, *, close: bool = False) -> None:
    headers = [
        (b"content-type", response.media_type.encode()),
        (b"content-length", b"%d" % len(response.body)),
        *((name.encode(), value.encode()) for name, value in response.headers),
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
