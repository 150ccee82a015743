"""The outermost ASGI application: answers lookups itself and passes everything else on.

A FastAPI route costs more than twice what a bare ASGI handler does, which shows where lookups are small.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from time import perf_counter
from typing import Any

from featurestore.serving.access import Access
from featurestore.serving.admission import Admission, cost_of
from featurestore.serving.arrival import Head, Receive, head_of, read_body
from featurestore.serving.callers import ANYONE, CALLER, Caller
from featurestore.serving.endpoint import LookupEndpoint, Response, logged, problem_response
from featurestore.serving.negotiation import wishes_of
from featurestore.serving.problems import Refused

LOOKUP_PATH = "/v1/lookup"
_CLOSING = {408, 413, 415}
"""Refusals of a body that may still be on its way. After the others the connection is of use."""

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Front:
    """`POST /v1/lookup` before `app`; also the last resort for errors that `app` lets through.

    `running` is what an ASGI server does at start and end, for those who embed the application without one.
    """

    def __init__(
        self,
        app: ASGIApp,
        endpoint: LookupEndpoint,
        access: Access,
        admission: Admission,
        running: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self.running = running
        self._app, self._endpoint, self._access, self._admission = app, endpoint, access, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            # Before the body: what nobody is known to have sent is not worth reading.
            caller = self._access.admit(scope["path"], scope["headers"])
        except Refused as refused:
            await _respond(send, problem_response(refused.problem))
            return
        if scope["path"] == LOOKUP_PATH and scope["method"] == "POST":
            try:
                response = await self._lookup(scope, receive, caller)
            except Refused as refused:
                problem = refused.problem
                await _respond(send, problem_response(problem), close=problem.status in _CLOSING)
                return
            if response is not None:
                await _respond(send, response)
            return
        scope[CALLER] = caller
        await self._pass_on(scope, receive, send)

    async def _lookup(self, scope: Scope, receive: Receive, caller: Caller) -> Response | None:
        """None where the client left. Raises Refused."""
        head = head_of(scope["headers"])
        admission = self._admission
        if not admission.has_quota:
            return await self._answer(scope, head, receive, caller)
        with admission.counted(_account(scope, caller)) as quota_left:
            if not quota_left:
                await admission.refuse(head.rank, "quota")
            return await self._answer(scope, head, receive, caller)

    async def _answer(self, scope: Scope, head: Head, receive: Receive, caller: Caller) -> Response | None:
        body = await read_body(head, receive, self._admission)
        if body is None:
            return None
        arrived = perf_counter()
        cost = cost_of(len(body))
        if not self._admission.takes(head.rank, cost):
            await self._admission.turn(head.rank, cost, head.patience)
        try:
            wishes = wishes_of(scope["headers"])
            return await self._endpoint.respond(body, scope["query_string"], caller, wishes, arrived)
        finally:
            self._admission.leave(cost)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 — nothing about it may reach the client
            problem = logged(error)
            if not started:
                await _respond(send, problem_response(problem), close=True)


def _account(scope: Scope, caller: Caller) -> str:
    """Whose quota a request is on: the caller's, or the address's where callers are not known."""
    if caller is not ANYONE:
        return caller.name
    return str(scope["client"][0]) if scope.get("client") else ""


@lru_cache(maxsize=256)
def _encoded(media_type: str, headers: tuple[tuple[str, str], ...]) -> tuple[tuple[bytes, bytes], ...]:
    """Headers as ASGI has them: the same few again and again."""
    return ((b"content-type", media_type.encode()), *((name.encode(), value.encode()) for name, value in headers))


async def _respond(send: Send, response: Response, *, close: bool = False) -> None:
    headers = [*_encoded(response.media_type, response.headers), (b"content-length", b"%d" % len(response.body))]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
