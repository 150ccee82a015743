"""A lookup before it is understood: what its headers say of it, and its body as bytes, bounded in size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from featurestore.serving.admission import NORMAL, Admission, patience_of, rank_of
from featurestore.serving.problems import Problem, Refused
from featurestore.serving.requests import MAX_BODY, too_large

BODY_SECONDS = 10.0
DRAINED_BYTES = 64 * MAX_BODY
"""Read and dropped of a body that is too large, so that its sender gets to read the refusal."""

LATE_BODY = Problem(408, "body_timeout", f"the body did not arrive within {BODY_SECONDS:g} seconds")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(slots=True)
class Head:
    """What the headers say that matters before the body is read."""

    length: int = 0
    """Of the body, in bytes; 0 where it is not said."""
    rank: int = NORMAL
    patience: float | None = None
    """Seconds that the caller would wait to be let in; None: as long as anyone may."""

    def read_length(self, value: bytes) -> None:
        self.length = int(value) if value.isdigit() else 0

    def read_encoding(self, value: bytes) -> None:
        if value.strip().lower() not in (b"", b"identity"):
            detail = "the body is compressed; lookups are read as they are"
            hint = "send it without Content-Encoding"
            raise Refused(Problem(415, "unsupported_encoding", detail, "Content-Encoding", hint))

    def read_class(self, value: bytes) -> None:
        self.rank = rank_of(value)

    def read_budget(self, value: bytes) -> None:
        self.patience = patience_of(value)


_READERS: dict[bytes, Callable[[Head, bytes], None]] = {
    b"content-length": Head.read_length,
    b"content-encoding": Head.read_encoding,
    b"x-request-class": Head.read_class,
    b"x-budget-ms": Head.read_budget,
}


def head_of(headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """Raises Refused for a header that cannot be met."""
    head = Head()
    for name, value in headers:
        read = _READERS.get(name)
        if read is not None:
            read(head, value)
    return head


async def read_body(head: Head, receive: Receive, admission: Admission) -> bytes | None:
    """The whole body, None where the client left. Raises Refused for one that is too large or slow.

    A body of which nothing arrives is left to `protocol`, which ends the connection: a timeout here would cost each
    lookup as much as reading it does.
    """
    if head.length > MAX_BODY:
        await _drain(receive, head.length)
        raise Refused(too_large(MAX_BODY))
    message = await receive()
    if message["type"] != "http.request":
        return None
    if not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        return body
    with admission.reading(head.length or MAX_BODY) as has_room:
        if not has_room:
            await admission.refuse(head.rank, "memory")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await _rest(receive, message)
        except TimeoutError:
            raise Refused(LATE_BODY) from None


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
