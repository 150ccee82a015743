"""Values that were read before and need not come again: the server says which of them have changed.

Redis calls it tracking: a connection that has read a key is told when that is written, removed, evicted or expires.
Such a message can be on its way while a lookup is answered, so that none has come proves nothing by itself. But what
one connection gets is in the order in which things happened on the server: so every read asks something, if only
whether the server is there, and what was not announced before the reply had not changed when the server replied. An
answer is thus as new as if all of its values had been read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import Any, cast

from hiredis import pack_command
from redis import exceptions as redis_errors

from featurestore.online.names import mget, packed_name
from featurestore.online.wire import Replies, Wire
from featurestore.telemetry import STORE_VALUES, get_logger

KEPT_SECONDS = 60.0
"""After so long a value is read again. An expired key is announced when the server removes it, which may be later; and
something between here and the server may swallow what it announces."""
ENTRY_BYTES = 150
"""What a kept value takes beside its own bytes."""
TRACKS_SINCE = 7
"""The server's version. Before that, what it announced of a key that expires could stand in the middle of a reply."""
CREDIT = 50_000
"""To have a value tracked, and to be told that it changed, costs the server what reading it costs, and each read that
is spared gives that back. When so many more were tracked than spared, few are tracked."""
SAMPLE_EVERY = 16
"""Of the reads then, to see whether that is still so."""

_pack: Any = pack_command
_GREETING = _pack((b"HELLO", b"3")) + _pack((b"CLIENT", b"TRACKING", b"ON", b"OPTIN"))
_TRACK_NEXT = _pack((b"CLIENT", b"CACHING", b"YES"))
_PING = _pack((b"PING",))
_read, _kept = (STORE_VALUES.labels(how).inc for how in ("read", "kept"))
_log = get_logger(__name__)

Found = list[bytes | None]


class KeptValues:
    """What one connection has read and the server has not taken back, by packed name. Its methods are called in the
    order in which the server's replies and messages come in, else a value could be put back after it was taken."""

    def __init__(self, max_bytes: int) -> None:
        self.changes = 0
        """Messages so far. Where there was none between two moments, all that was kept at the first was so then."""
        self._max = max_bytes
        self._on = False
        self._values: dict[bytes, bytes] = {}
        self._batches: deque[tuple[float, Sequence[bytes], int]] = deque()
        """Names that came together, oldest first: since when they are kept, and what they may take."""
        self._taken = 0
        self._credit, self._reads = CREDIT, 0

    def __len__(self) -> int:
        return len(self._values)

    def of(self, names: Sequence[bytes]) -> Found:
        return list(map(self._values.get, names, repeat(None)))

    def greeted(self, replies: Sequence[Any]) -> None:
        """The replies to what asks the server to track."""
        reason = _why_not(*replies)
        self._on = not reason
        if reason:
            _log.info("each lookup reads all of its values: the server does not track them", reason=reason)

    def spared(self, count: int) -> None:
        self._credit = min(CREDIT, self._credit + count)

    def worth(self, count: int) -> bool:
        """Whether the values of the next read should be tracked."""
        self._reads += 1
        if not self._on or (self._credit < count and self._reads % SAMPLE_EVERY):
            return False
        self._credit = max(0, self._credit - count)
        return True

    def put(self, names: Sequence[bytes], now: float, replies: Sequence[Any]) -> None:
        """The replies to reading values that are tracked."""
        tracked, values = replies
        if not isinstance(values, list) or isinstance(tracked, redis_errors.RedisError):
            return
        self._values.update((name, value) for name, value in zip(names, values, strict=True) if value)
        size = sum(map(len, filter(None, values))) + ENTRY_BYTES * len(values)
        self._batches.append((now, names, size))
        self._taken += size
        while self._taken > self._max:
            self._drop()

    def age(self, now: float) -> None:
        """Lets go of what is kept for too long."""
        while self._batches and self._batches[0][0] < now - KEPT_SECONDS:
            self._drop()

    def pushed(self, message: Sequence[Any]) -> None:
        """What the server says without being asked."""
        kind, names = message[0], message[1]
        if kind != b"invalidate":
            return
        self.changes += 1
        if names is None:  # all of them
            self._values.clear()
            self._batches.clear()
            self._taken = 0
            return
        for name in names:
            self._values.pop(packed_name(name), None)

    def _drop(self) -> None:
        _, names, size = self._batches.popleft()
        self._taken -= size
        deque(map(self._values.pop, names, repeat(None)), maxlen=0)


class TrackedReads:
    """Reads values over a wire's connection. For one event loop.

    A new connection begins with nothing: what the server had to say meanwhile, nobody heard.
    """

    def __init__(self, wire: Wire, max_bytes: int) -> None:
        self._wire, self._max = wire, max_bytes
        self._replies: Replies | None = None
        self._values = KeptValues(0)

    async def read(self, names: Sequence[bytes]) -> Found:
        """The value of each packed name, as the server had it when it replied. Raises as `Wire.ask` does."""
        replies = await self._wire.connected()
        kept = self._of(replies)
        kept.age(asyncio.get_running_loop().time())
        values, changes = kept.of(names), kept.changes
        absent = [] if all(values) else [i for i, value in enumerate(values) if value is None]
        if len(absent) == len(names):
            _read(len(names))
            return await _asked(replies, kept, names)
        if absent:
            await _fill(values, absent, replies, kept, names)
        else:
            _require(await replies.send(_PING, 1))
        if kept.changes != changes:
            absent += await _renew(values, set(absent), replies, kept, names)
        kept.spared(len(names) - len(absent))
        _read(len(absent))
        _kept(len(names) - len(absent))
        return values

    def _of(self, replies: Replies) -> KeptValues:
        if replies is not self._replies:
            self._replies, self._values = replies, KeptValues(self._max)
            replies.pushed = self._values.pushed
            replies.send(_GREETING, 2, self._values.greeted).add_done_callback(_heard)
        return self._values


async def _asked(replies: Replies, kept: KeptValues, names: Sequence[bytes]) -> Found:
    if kept.worth(len(names)):
        now = asyncio.get_running_loop().time()
        found = await replies.send(_TRACK_NEXT + mget(names), 2, partial(kept.put, names, now))
    else:
        found = await replies.send(mget(names), 1)
    return cast(Found, _require(found))


async def _fill(
    values: Found, places: Sequence[int], replies: Replies, kept: KeptValues, names: Sequence[bytes]
) -> None:
    found = await _asked(replies, kept, [names[i] for i in places])
    for i, value in zip(places, found, strict=True):
        values[i] = value


async def _renew(
    values: Found, asked: set[int], replies: Replies, kept: KeptValues, names: Sequence[bytes]
) -> list[int]:
    """Something changed while a reply was awaited: takes what is kept now, and reads what is not. Returns the places of
    that."""
    gone = []
    for i, value in enumerate(kept.of(names)):
        if i in asked:
            continue
        values[i] = value
        if value is None:
            gone.append(i)
    if gone:
        await _fill(values, gone, replies, kept, names)
    return gone


def _require(replies: Sequence[Any]) -> Any:
    """The last of them. Raises an error reply."""
    reply = replies[-1]
    if isinstance(reply, redis_errors.RedisError):
        raise reply
    return reply


def _why_not(hello: Any, tracking: Any) -> str:
    """Empty where the server will do."""
    for reply in (hello, tracking):
        if isinstance(reply, redis_errors.RedisError):
            return str(reply)[:200]
    version = hello.get(b"version", b"") if isinstance(hello, dict) else b""
    major = version.split(b".")[0] if isinstance(version, bytes) else b""
    if not major.isdigit() or int(major) < TRACKS_SINCE:
        return f"its version is {version!r}; expected {TRACKS_SINCE} or later"
    return ""


def _heard(greeting: asyncio.Future[list[Any]]) -> None:
    """Who reads next hears of a connection that was lost."""
    if not greeting.cancelled():
        greeting.exception()
