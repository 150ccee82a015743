"""The online store: packed values by entity, and the records of how far the stages are."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from featurestore.errors import Corrupt, FeatureStoreError, InvalidRequest, StoreRefused, Unavailable
from featurestore.online.connection import CONNECTIONS, Endpoint, open_client, parse_endpoint, translated
from featurestore.online.fences import (
    Beat,
    Fence,
    IntakeMark,
    Positioned,
    Put,
    Rebuild,
    Record,
    decode,
    decode_all,
    encode,
    judge,
)
from featurestore.online.health import Finding, Info, Level, find, refuse_unsafe
from featurestore.online.keys import Keyspace, staged
from featurestore.online.names import Names, Wanted, mget
from featurestore.online.scripts import PROMOTE, SET_IF_NEWER, SWAP_FIELD, Call, evaluate
from featurestore.online.tracking import TrackedReads
from featurestore.online.wire import Wire
from featurestore.telemetry import STORE_DURATION

__all__ = ["Beat", "Fence", "Finding", "IntakeMark", "Level", "OnlineStore", "Put", "Rebuild", "Written"]

CHUNK_KEYS = 256
"""Keys of one atomic write. Redis serves nobody else meanwhile: about 1 ms with values of 1 kB."""
CHUNK_BYTES = 2 << 20
"""Bytes of values in one atomic write, unless a single value is larger."""
WINDOW_CHUNKS = 16
"""Chunks that are on their way at a time."""
WITNESSES = 1000
"""Values that are looked at in one atomic step: about 1 ms too."""
BEAT_TTL_MS = 24 * 3600 * 1000
HEADER_BYTES = 64
"""What every packed value starts with."""
POSITION = slice(16, 40)
"""Generation, offset and partition in it."""
_SCAN_COUNT = 1000
_READS, _WRITES = STORE_DURATION.labels("read"), STORE_DURATION.labels("write")


Witnesses = Sequence[tuple[bytes, bytes]]
Slot = tuple[bytes, int]
"""A hash in Redis, and the partition that is one of its fields."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch: `written + older + len(misrouted)` is its size."""

    written: int = 0
    older: int = 0
    """The store already had the same (generation, offset) or a greater one."""
    misrouted: list[str] = field(default_factory=list)
    """Keys whose stored value, of the same generation, comes from another partition. It still stands."""
    witnesses: Witnesses = field(default=(), compare=False, repr=False)
    """Of each atomic write the value that it stored last: its name in Redis, and its position. A server that lost
    writes lost the latest ones, so where these stand, all do. Where a write stored nothing, since others had stored the
    same before, nothing is known to be later than any of the values, and they all are witnesses."""


class OnlineStore:
    """One project's values and records in one Redis server, from one event loop.

    Every method raises Unavailable where the server does not answer in time or cannot take writes, StoreRefused where
    it must not be used as it is, and InvalidRequest for names and keys that cannot be stored. Nothing is retried.
    A command that was sent runs to its end even where the task that waits for it is cancelled: a connection abandoned
    halfway could hand its answer to someone else.
    """

    def __init__(self, client: Redis, wire: Wire, keyspace: Keyspace, address: str, keep_bytes: int = 0) -> None:
        self._client, self._wire = client, wire
        self._keys, self._names = keyspace, Names(keyspace)
        self._tracked = TrackedReads(wire, keyspace, self._names, keep_bytes) if keep_bytes else None
        self.address = address
        self._running: set[asyncio.Task[Any]] = set()
        self._last_put: dict[Slot, bytes] = {}
        self._unsafe: StoreRefused | None = None

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        project: str = "fs",
        timeout_seconds: float = 5.0,
        connections: int = CONNECTIONS,
        keep_bytes: int = 0,
    ) -> Self:
        """Opens no connection yet. `timeout_seconds` bounds each wait: for a connection, its opening, and an answer.
        With `keep_bytes` values that were read are not read again while the server says that they are the same.

        Raises ConfigError for what is no Redis URL.
        """
        endpoint: Endpoint = parse_endpoint(url)
        client = open_client(endpoint, timeout_seconds=timeout_seconds, connections=connections)
        return cls(client, Wire(client, timeout_seconds), Keyspace(project), endpoint.address, keep_bytes)

    def __repr__(self) -> str:
        return f"OnlineStore({self.address!r}, project={self._keys.project!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for commands under way, then closes the connections."""
        if self._running:
            await asyncio.wait(self._running)
        await self._wire.close()
        await self._client.aclose()

    async def read(self, view_id: str, keys: Sequence[str]) -> list[bytes | None]:
        """The stored bytes of each key, in order; None where there are none."""
        return await self.read_many([(view_id, keys)])

    async def read_many(self, wanted: Wanted) -> list[bytes | None]:
        """As `read`, for several views, in one round trip."""
        if not any(keys for _, keys in wanted):
            return []
        with _READS.time(), translated(self.address):
            if self._tracked is not None:
                return await self._tracked.read(wanted)
            values: list[bytes | None] = await self._wire.ask_packed(mget(self._names.of(wanted)))
        return values

    async def read_fenced(
        self, view_id: str, keys: Sequence[str], partition: int
    ) -> tuple[list[bytes | None], Fence | None]:
        """As `read`, and the partition's fence as it stood at the same instant. Raises Corrupt."""
        fences = self._keys.fences(view_id)
        commands = [(b"MGET", *self._keys.values(view_id, keys)), (b"HGET", fences, b"%d" % partition)]
        with _READS.time(), translated(self.address):
            values, fence = await self._wire.at_once(commands)
        return values, decode(Fence, fence, f"{fences.decode()}[{partition}]") if fence else None

    async def write(
        self, view_id: str, keys: Sequence[str], values: Sequence[bytes], *, ttl_ms: int | None = None
    ) -> Written:
        """Stores each value whose (generation, offset) is greater than the stored one's; atomic per key.

        After an error any part of the batch may be stored; writing it again is safe. `ttl_ms` counts from this write
        and leaves alone what is not written. A key may occur twice. Raises Corrupt where a stored value is too short
        to be one, after writing the others.
        """
        if ttl_ms is not None and ttl_ms <= 0:
            raise InvalidRequest(f"ttl_ms is {ttl_ms}; expected a positive number or None", field="ttl_ms")
        if self._unsafe is not None:
            raise Unavailable("redis", self._unsafe.message, hint=self._unsafe.hint)
        _check_values(keys, values)
        names = self._keys.values(view_id, keys)
        ttl = b"" if ttl_ms is None else b"%d" % ttl_ms
        step = _chunk(values)
        older, misrouted, unreadable, relied = 0, list[str](), list[str](), list[int]()
        chunks = range(0, len(names), step)
        for first in range(0, len(chunks), WINDOW_CHUNKS):
            starts = chunks[first : first + WINDOW_CHUNKS]
            calls = [Call(names[i : i + step], [ttl, *values[i : i + step]]) for i in starts]
            with _WRITES.time():
                replies = await self._answer(evaluate(self._wire, SET_IF_NEWER, calls))
            for start, (late, astray, foreign, last) in zip(starts, replies, strict=True):
                older += late
                relied += [start + last - 1] if last else range(start, min(start + step, len(names)))
                misrouted += [keys[start + i - 1] for i in astray]
                unreadable += [keys[start + i - 1] for i in foreign]
        if unreadable:
            raise _short_values(view_id, unreadable)
        witnesses = [(names[i], values[i][POSITION]) for i in relied]
        return Written(len(names) - older - len(misrouted), older, misrouted, witnesses)

    def witnesses(self, view_id: str, keys: Sequence[str], values: Sequence[bytes]) -> Witnesses:
        """Of values that were read, and that no fence vouches for yet: what `put_fence` takes."""
        return [(name, value[POSITION]) for name, value in zip(self._keys.values(view_id, keys), values, strict=True)]

    async def promote(self, view_id: str, keys: Sequence[str], *, ttl_ms: int | None) -> int:
        """Puts values that were written under `staged(view_id)` in the place of the view's own, each atomically, unless
        that is as new; returns how many. A key whose value is not there any more is passed over, so that it can be
        repeated."""
        live, waiting = self._keys.values(view_id, keys), self._keys.values(staged(view_id), keys)
        names = list(chain.from_iterable(zip(live, waiting, strict=True)))
        ttl = b"" if ttl_ms is None else b"%d" % ttl_ms
        step = 2 * CHUNK_KEYS
        moved = 0
        for first in range(0, len(names), step * WINDOW_CHUNKS):
            window = names[first : first + step * WINDOW_CHUNKS]
            calls = [Call(window[i : i + step], [ttl]) for i in range(0, len(window), step)]
            moved += sum(await self._answer(evaluate(self._wire, PROMOTE, calls)))
        return moved

    async def forget(self, view_id: str, keys: Sequence[str]) -> None:
        """Removes values."""
        if keys:
            await self._answer(self._client.delete(*self._keys.values(view_id, keys)))

    async def scan_view(self, view_id: str) -> AsyncIterator[str]:
        """Canonical keys of all stored entities of a view. One that is there throughout comes at least once."""
        cursor, pattern = 0, self._keys.pattern(view_id)
        while True:
            cursor, names = await self._answer(self._client.scan(cursor, match=pattern, count=_SCAN_COUNT))
            for name in names:
                yield self._keys.entity(view_id, name)
            if not cursor:
                return

    async def fences(self, view_id: str) -> dict[int, Fence]:
        """Partition → fence. Raises Corrupt."""
        return await self._records(Fence, self._keys.fences(view_id))

    async def put_fence(
        self,
        view_id: str,
        partition: int,
        fence: Fence,
        *,
        believed: Fence | None = None,
        witnesses: Witnesses = (),
    ) -> Put:
        """Stores a fence unless a greater (generation, offset) stands there.

        `believed` is the fence that the caller knows to be acknowledged, `witnesses` are of the values written since,
        by whomever: where the store holds less than that it has lost writes, or someone else wrote those values
        meanwhile, and the answer is `Put.LOST` without a new fence, lest it vouch for what is gone.
        """
        return await self._put(self._keys.fences(view_id), partition, fence, believed, witnesses)

    async def intake_marks(self, source: str) -> dict[int, IntakeMark]:
        """Source partition → mark. Raises Corrupt."""
        return await self._records(IntakeMark, self._keys.intake(source))

    async def put_intake_mark(
        self, source: str, partition: int, mark: IntakeMark, *, believed: IntakeMark | None = None
    ) -> Put:
        """As `put_fence`, ordered by the mark's offset."""
        return await self._put(self._keys.intake(source), partition, mark, believed)

    async def put_beats(self, stage: str, beats: Mapping[int, Beat]) -> None:
        """`stage` is `intake:<source>` or `fold:<view id>`. Beats are forgotten a day after a stage's last one."""
        if not beats:
            return
        name = self._keys.beats(stage)
        pipeline = self._client.pipeline(transaction=True)
        pipeline.hset(name, mapping={str(partition): encode(beat) for partition, beat in beats.items()})
        pipeline.pexpire(name, BEAT_TTL_MS)
        await self._answer(pipeline.execute())

    async def beats(self, stage: str) -> dict[int, Beat]:
        """Partition → latest beat, however old. Raises Corrupt."""
        return await self._records(Beat, self._keys.beats(stage))

    async def rebuilds(self) -> dict[str, Rebuild]:
        """View → the mark of its rebuild, for those that are under way or were left unfinished. Raises Corrupt."""
        name = self._keys.rebuilds()
        fields = await self._answer(self._client.hgetall(name))
        return {view.decode(): decode(Rebuild, data, f"{name.decode()}[{view!r}]") for view, data in fields.items()}

    async def rebuild_mark(self, view_id: str) -> bytes:
        """The stored bytes of a view's mark, empty where there is none: what `swap_rebuild` compares with."""
        return await self._answer(self._client.hget(self._keys.rebuilds(), view_id)) or b""

    async def swap_rebuild(self, view_id: str, mark: Rebuild | None, *, over: bytes) -> bytes | None:
        """Puts (None: removes) the mark where exactly `over` stands, and returns what stands there then; None where
        something else stood there, which is left as it is."""
        new = b"" if mark is None else encode(mark)
        call = Call([self._keys.rebuilds()], [view_id.encode(), over, new])
        [found] = await self._answer(evaluate(self._wire, SWAP_FIELD, [call]))
        return new if found is None else None

    async def check(self) -> list[Finding]:
        """What is right and wrong with the server; raises nothing where it cannot be reached."""
        try:
            await self._answer(self._client.ping())
            started = perf_counter()
            await self._answer(self._client.ping())
            spent_ms = (perf_counter() - started) * 1000
            return find(await self._info(), round_trip_ms=spent_ms, address=self.address)
        except FeatureStoreError as error:
            return [Finding("reachable", Level.FAULT, error.message, error.hint)]

    async def evicted(self) -> int:
        """Keys that the server threw away for lack of memory since it started; 0 where the user may not ask."""
        return int((await self._if_allowed(self._client.info("stats"))).get("evicted_keys", 0))

    async def require_safe(self) -> None:
        """Raises StoreRefused unless the server keeps what it is given until that expires.

        After a refusal `write` raises Unavailable, until the server was found to be safe again.
        """
        try:
            refuse_unsafe(await self._info(), self.address)
            self._unsafe = None
        except StoreRefused as refused:
            self._unsafe = refused
            raise

    async def _info(self) -> Info:
        """INFO, and the policy from CONFIG GET where INFO does not tell it; without what the user may not ask."""
        info = await self._if_allowed(self._client.info())
        if "maxmemory_policy" not in info:
            config = await self._if_allowed(self._client.config_get("maxmemory-policy"))
            return info | {name.replace("-", "_"): value for name, value in config.items()}
        return info

    async def _if_allowed(self, command: Awaitable[Any]) -> dict[str, Any]:
        try:
            return dict(await self._answer(command))
        except StoreRefused as refused:
            # The login itself may have failed, which is no ResponseError; that is for the caller.
            if isinstance(refused.__cause__, ResponseError):
                return {}
            raise

    async def _answer(self, command: Awaitable[Any]) -> Any:
        task = asyncio.ensure_future(command)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        with translated(self.address):
            return await asyncio.shield(task)

    async def _records(self, kind: type[Record], name: bytes) -> dict[int, Record]:
        fields = await self._answer(self._client.hgetall(name))
        return decode_all(kind, fields, name.decode())

    async def _put(
        self,
        name: bytes,
        partition: int,
        record: Positioned,
        believed: Positioned | None,
        witnesses: Witnesses = (),
    ) -> Put:
        """Compare and swap until the verdict on what stands there is the last word.

        One round trip where nobody else wrote the field since this store last did.
        """
        slot = (name, partition)

        def verdict(stored: bytes) -> Put:
            found = decode(type(record), stored, f"{name.decode()}[{partition}]").position if stored else None
            return judge(found, record.position, believed.position if believed else None)

        stored = self._last_put.get(slot)
        if stored is None or verdict(stored) is not Put.STORED:
            stored = await self._answer(self._client.hget(name, str(partition))) or b""
        while (outcome := verdict(stored)) is Put.STORED:
            found = await self._replace((name, partition), stored, record, witnesses)
            if found is None:
                self._last_put[slot] = encode(record)
                break
            if isinstance(found, int):
                return Put.LOST
            stored = found
        return outcome

    async def _replace(self, slot: Slot, stored: bytes, record: Positioned, witnesses: Witnesses) -> bytes | int | None:
        """As SWAP_FIELD answers. Many witnesses are looked at in several steps: each renews what is stored, and where
        that still stands at the next, nothing was lost that was older."""
        while stored and len(witnesses) > WITNESSES:
            renewed = encode(_renewed(decode(type(record), stored, slot[0].decode()), record))
            found = await self._swap(slot, stored, renewed, witnesses[:WITNESSES])
            if found is not None:
                return found
            stored, witnesses = renewed, witnesses[WITNESSES:]
        return await self._swap(slot, stored, encode(record), witnesses)

    async def _swap(self, slot: Slot, old: bytes, new: bytes, witnesses: Witnesses) -> bytes | int | None:
        name, partition = slot
        positions = [position for _, position in witnesses]
        call = Call([name, *(key for key, _ in witnesses)], [b"%d" % partition, old, new, *positions])
        found: bytes | int | None
        [found] = await self._answer(evaluate(self._wire, SWAP_FIELD, [call]))
        return found


def _renewed(stored: Positioned, by: Positioned) -> Positioned:
    """The same record with another time, unlike any that stood there before."""
    return msgspec.structs.replace(stored, written_at=max(stored.written_at + 1, by.written_at))


def _check_values(keys: Sequence[str], values: Sequence[bytes]) -> None:
    if len(keys) != len(values):
        raise InvalidRequest(f"{len(keys)} keys came with {len(values)} values; expected one value per key")
    shortest = min(map(len, values), default=HEADER_BYTES)
    if shortest < HEADER_BYTES:
        raise InvalidRequest(f"a value of {shortest} bytes has no header; expected at least {HEADER_BYTES} bytes")


def _short_values(view_id: str, keys: list[str]) -> Corrupt:
    return Corrupt(
        f"view {view_id!r} has {len(keys)} stored values shorter than a header, as that of {keys[0][:64]!r}",
        hint="something else writes under this project's prefix; delete those keys to have them replayed",
    )


def _chunk(values: Sequence[bytes]) -> int:
    """How many of the values go into one atomic write."""
    return max(1, min(CHUNK_KEYS, CHUNK_BYTES // max(map(len, values), default=1)))
