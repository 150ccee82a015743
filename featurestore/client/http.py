"""`Client` and `AsyncClient`: lookups from Python."""

from __future__ import annotations

import asyncio
import math
import re
import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import httpx

from featurestore.client.call import Call, Reply, question
from featurestore.client.result import LookupResult
from featurestore.clock import Instant
from featurestore.errors import UsageError

ALLOWANCE_MS = 50.0
CONNECTIONS = 16
KEEP_ALIVE_SECONDS = 60.0
"""Less than the API keeps idle connections for, so that it never closes one that is about to be used."""

_KEY = re.compile(r"[!-~]+", re.ASCII)

RequestClass = Literal["critical", "normal", "batch"]
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


class _ApiClient(Generic[Http]):
    _kind: type[Http]

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        budget_ms: float | None = None,
        allowance_ms: float = ALLOWANCE_MS,
        connections: int = CONNECTIONS,
        request_class: RequestClass | None = None,
        compressed: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`url` is where the API is, as `http://features:8000`, with a path where it has one.

        `budget_ms` is what the API may take for a lookup that does not say; a call gives up `allowance_ms` after that,
        which is for the way there and back. At most `connections` are open; further calls wait for one of them.
        `request_class` says which lookups the API serves first when there are too many: None is `normal`.
        `compressed` asks for compressed answers, which is worth it over long ways only. `tls` says which certificates
        are trusted. Nothing is sent before the first call. Raises UsageError.
        """
        address = _address(url)
        self._api = address.netloc.decode()
        self._budget_ms, self._allowance_ms = _checked_budget(budget_ms), allowance_ms
        headers = {"content-type": "application/json", **_authorization(api_key)}
        if request_class is not None:
            headers["x-request-class"] = request_class
        if not compressed:
            headers["accept-encoding"] = "identity"
        self._http: Http = self._kind(
            base_url=address,
            headers=headers,
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_ALIVE_SECONDS
            ),
            verify=True if tls is None else tls,
            trust_env=False,  # proxies and passwords of the environment are for the world outside
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._api}>"

    def _begin(
        self,
        service: str,
        entities: Mapping[str, Any],
        at: Instant | None,
        budget_ms: float | None,
        request: Mapping[str, Any] | None,
        arrow: bool | None,
    ) -> Call:
        asked = question(service, entities, at, request, arrow)
        budget = self._budget_ms if budget_ms is None else _checked_budget(budget_ms)
        return Call(asked, self._api, budget, self._allowance_ms)


class Client(_ApiClient[httpx.Client]):
    """Asks the read API. Threads may share one; close it, or use it in a `with`.

    with Client("http://features:8000", api_key=key, budget_ms=20) as features:
        result = features.lookup("flight_delay", {"origin": ["JFK", "LGA"]})
    """

    _kind = httpx.Client

    def lookup(
        self,
        service: str,
        entities: Mapping[str, Any],
        *,
        at: Instant | None = None,
        budget_ms: float | None = None,
        request: Mapping[str, Any] | None = None,
        arrow: bool | None = None,
    ) -> LookupResult:
        """Values of a service's features for up to 1,000 entities.

        `service` is `name`, `name@alias` or `name@version`; `entities` has a list, an array or a series for each key
        column, of equal lengths; `at` is the instant to look at, None for now; `request` has the fields of the request
        itself. `arrow` says whether the answer travels as Arrow, and None that it does where it has many rows; the
        result is the same.

        Values that the API cannot vouch for are in the result with their status. Raises InvalidRequest, NotFound,
        AtOutOfRange and AccessDenied for what it refuses, and Unavailable where it does not answer in time.
        """
        call = self._begin(service, entities, at, budget_ms, request, arrow)
        while True:
            try:
                reply = self._exchange(call)
            except httpx.TransportError as error:
                call.lost(error)
                continue
            pause = call.pause(reply)
            if pause is None:
                return call.result(reply)
            time.sleep(pause)

    def _exchange(self, call: Call) -> Reply:
        """TransportError only where no answer began."""
        response = self._http.send(call.request(self._http), stream=True)
        body = bytearray()
        try:
            for chunk in response.iter_bytes():
                body += chunk
                call.taken(len(body))
        except httpx.HTTPError as error:
            raise call.broken_off(error) from error
        finally:
            response.close()
        return Reply(response.status_code, response.headers, bytes(body))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncClient(_ApiClient[httpx.AsyncClient]):
    """As `Client`, for one event loop of asyncio; `aclose` it, or use it in an `async with`."""

    _kind = httpx.AsyncClient

    async def lookup(
        self,
        service: str,
        entities: Mapping[str, Any],
        *,
        at: Instant | None = None,
        budget_ms: float | None = None,
        request: Mapping[str, Any] | None = None,
        arrow: bool | None = None,
    ) -> LookupResult:
        """As `Client.lookup`."""
        call = self._begin(service, entities, at, budget_ms, request, arrow)
        while True:
            try:
                async with asyncio.timeout(call.seconds_left):
                    reply = await self._exchange(call)
            except TimeoutError:
                raise call.too_late() from None
            except httpx.TransportError as error:
                call.lost(error)
                continue
            pause = call.pause(reply)
            if pause is None:
                return call.result(reply)
            await asyncio.sleep(pause)

    async def _exchange(self, call: Call) -> Reply:
        """TransportError only where no answer began."""
        response = await self._http.send(call.request(self._http), stream=True)
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                call.taken(len(body))
        except httpx.HTTPError as error:
            raise call.broken_off(error) from error
        finally:
            await response.aclose()
        return Reply(response.status_code, response.headers, bytes(body))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()


def _address(url: str) -> httpx.URL:
    example = "as http://127.0.0.1:8000"
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        raise UsageError("this is no URL of the read API", hint=example, field="url") from None
    if address.userinfo:
        raise UsageError("the URL has a name and a password in it", hint="pass `api_key=`", field="url")
    if address.scheme not in ("http", "https") or not address.host:
        raise UsageError(f"{url!r} is no URL of the read API", hint=example, field="url")
    return address.copy_with(query=None, fragment=None)


def _authorization(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not _KEY.fullmatch(api_key):
        # Without the key: what is raised ends up in logs.
        hint = "visible ASCII, as the API's operator gave it to you; a line end at its end is not a part of it"
        raise UsageError("this is no API key", hint=hint, field="api_key")
    return {"authorization": f"Bearer {api_key}"}


def _checked_budget(budget_ms: float | None) -> float | None:
    if budget_ms is not None and not 0 < budget_ms < math.inf:
        raise UsageError(f"budget_ms is {budget_ms}, expected milliseconds above 0", field="budget_ms")
    return budget_ms
