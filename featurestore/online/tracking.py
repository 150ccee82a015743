"""Values that were read before and need not come again: the server says which of them have changed.

Redis calls it tracking: a connection that has read a key is told when that is written, removed, evicted or expires.
Such a message can be on its way while a lookup is answered, so that none has come proves nothing by itself. But what
one connection gets is in the order in which things happened on the server: so every read asks something, if only
whether the server is there, and what was not announced before the reply had not changed when the server replied. An
answer is thus as new as if all of its values had been read.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any, cast

from redis import exceptions as redis_errors

from featurestore.online.keys import Keyspace
from featurestore.online.names import Names, Values, Wanted, mget
from featurestore.online.wire import Replies, Wire, pack, required
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

_GREETING = pack((b"HELLO", b"3")) + pack((b"CLIENT", b"TRACKING", b"ON", b"OPTIN"))
_TRACK_NEXT = pack((b"CLIENT", b"CACHING", b"YES"))
_PING = pack((b"PING",))
_read, _kept = (STORE_VALUES.labels(how).inc for how in ("read", "kept"))
_log = get_logger(__name__)


class KeptValues:
    """What one connection has read and the server has not taken back. Its methods are called in the order in which the
    server's replies and messages come in, else a value could be put back after it was taken."""

    def __init__(self, keyspace: Keyspace, max_bytes: int) -> None:
        self.changes = 0
        """Messages so far. Where there was none between two moments, all that was kept at the first was so then."""
        self._keyspace, self._max = keyspace, max_bytes
        self._on = False
        self._values: dict[str, dict[str, bytes]] = {}
        """View → canonical key → value."""
        self._batches: deque[tuple[float, Wanted, int]] = deque()
        """What came together, oldest first: when, which keys, and the bytes that they may take."""
        self._taken = 0
        self._credit, self._reads = CREDIT, 0

    def of(self, wanted: Wanted) -> Values:
        """In order; None for what is not kept."""
        nothing: dict[str, bytes] = {}
        each = (map(self._values.get(view_id, nothing).get, keys, repeat(None)) for view_id, keys in wanted)
        return list(chain.from_iterable(each))

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

    def put(self, wanted: Wanted, now: float, replies: Sequence[Any]) -> None:
        """The replies to reading values that are tracked."""
        tracked, values = replies
        if not isinstance(values, list) or isinstance(tracked, redis_errors.RedisError):
            return
        following = iter(values)
        for view_id, keys in wanted:
            found = zip(keys, following, strict=False)
            self._values.setdefault(view_id, {}).update((key, value) for key, value in found if value)
        size = sum(map(len, filter(None, values))) + ENTRY_BYTES * len(values)
        self._batches.append((now, wanted, size))
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
        for view_id, key in map(self._keyspace.owner, names):
            self._values.get(view_id, {}).pop(key, None)

    def _drop(self) -> None:
        _, wanted, size = self._batches.popleft()
        self._taken -= size
        for view_id, keys in wanted:
            deque(map(self._values[view_id].pop, keys, repeat(None)), maxlen=0)


class TrackedReads:
    """Reads values over a wire's connection. For one event loop.

    A new connection begins with nothing: what the server had to say meanwhile, nobody heard.
    """

    def __init__(self, wire: Wire, keyspace: Keyspace, names: Names, max_bytes: int) -> None:
        self._wire, self._keyspace, self._names, self._max = wire, keyspace, names, max_bytes
        self._replies: Replies | None = None
        self._kept = KeptValues(keyspace, 0)

    async def read(self, wanted: Wanted) -> Values:
        """The value of each key, as the server had it when it replied. Raises as `Wire.ask` does."""
        replies = await self._wire.connected()
        kept = self._of(replies)
        kept.age(asyncio.get_running_loop().time())
        values, changes = kept.of(wanted), kept.changes
        absent = [] if all(values) else [place for place, value in enumerate(values) if value is None]
        if len(absent) == len(values):
            _read(len(values))
            return await self._ask(replies, kept, wanted)
        if absent:
            await self._fill(values, absent, replies, kept, wanted)
        else:
            [pong] = await replies.send(_PING, 1)
            required(pong)
        if kept.changes != changes:
            absent += await self._renew(values, set(absent), replies, kept, wanted)
        kept.spared(len(values) - len(absent))
        _read(len(absent))
        _kept(len(values) - len(absent))
        return values

    def _of(self, replies: Replies) -> KeptValues:
        if replies is not self._replies:
            self._replies, self._kept = replies, KeptValues(self._keyspace, self._max)
            replies.pushed = self._kept.pushed
            replies.send(_GREETING, 2, self._kept.greeted).add_done_callback(_heard)
        return self._kept

    async def _ask(self, replies: Replies, kept: KeptValues, wanted: Wanted) -> Values:
        command = mget(self._names.of(wanted))
        count = sum(len(keys) for _, keys in wanted)
        if not kept.worth(count):
            [found] = await replies.send(command, 1)
            return cast(Values, required(found))
        arrived = partial(kept.put, wanted, asyncio.get_running_loop().time())
        _, found = await replies.send(_TRACK_NEXT + command, 2, arrived)
        return cast(Values, required(found))

    async def _fill(
        self, values: Values, places: Sequence[int], replies: Replies, kept: KeptValues, wanted: Wanted
    ) -> None:
        found = await self._ask(replies, kept, _part(wanted, places))
        for place, value in zip(places, found, strict=True):
            values[place] = value

    async def _renew(
        self, values: Values, asked: set[int], replies: Replies, kept: KeptValues, wanted: Wanted
    ) -> list[int]:
        """Something changed while a reply was awaited: takes what is kept now, and reads what is not. Returns the
        places of that."""
        gone = []
        for place, value in enumerate(kept.of(wanted)):
            if place in asked:
                continue
            values[place] = value
            if value is None:
                gone.append(place)
        if gone:
            await self._fill(values, gone, replies, kept, wanted)
        return gone


def _part(wanted: Wanted, places: Sequence[int]) -> Wanted:
    """Of all keys, one after the other, those at ascending places."""
    if len(wanted) == 1:
        [(view_id, keys)] = wanted
        return [(view_id, [keys[place] for place in places])]
    chosen, first = [], 0
    for view_id, keys in wanted:
        start, stop = bisect_left(places, first), bisect_left(places, first + len(keys))
        if start < stop:
            chosen.append((view_id, [keys[place - first] for place in places[start:stop]]))
        first += len(keys)
    return chosen


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
