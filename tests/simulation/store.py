"""A Redis in memory, for the real `OnlineStore`: its scripts, hashes, and a journal that failures cut short."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import hiredis
from redis import exceptions as redis_errors

from featurestore.online.keys import Keyspace
from featurestore.online.scripts import PROMOTE, SET_IF_NEWER, SWAP_FIELD
from featurestore.online.store import OnlineStore
from featurestore.online.wire import Wire
from tests.simulation.world import Gone, Part, Violation, World

PROJECT = "sim"
_POSITION = struct.Struct("<3q")
_UNDO = tuple[bytes, bytes | None, bytes | None]
"""Key, field of a hash (None: a plain value), what was there before (None: nothing)."""


class SimulatedRedis:
    """Commands are atomic. `generation, offset` of values and fences may only grow, unless writes were lost."""

    def __init__(self, world: World) -> None:
        self.world, self.part = world, Part(world, "redis")
        self.values: dict[bytes, bytes] = {}
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self.readable: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        """By key, which offsets its values stood at, and from which instant (µs) on each could be read."""
        self._journal: list[tuple[_UNDO, ...]] = []
        self._scripts: set[str] = set()

    def client(self) -> OnlineStore:
        client = _Client(self)
        return OnlineStore(client, client, Keyspace(PROJECT), "simulated")  # type: ignore[arg-type]

    def lose(self, writes: int) -> None:
        """A failover to a replica that is so many `writes` behind."""
        kept = max(0, len(self._journal) - writes)
        lost = self._journal[kept:]
        del self._journal[kept:]
        for name, field, before in (undo for write in reversed(lost) for undo in reversed(write)):
            target, key = (self.values, name) if field is None else (self.hashes[name], field)
            if before is None:
                del target[key]
            else:
                target[key] = before
        self._scripts.clear()
        self.world.counts["losses"] += bool(lost)
        self.world.counts["writes lost"] += len(lost)
        self.world.note(f"redis loses {len(lost)} writes")

    def empty(self) -> None:
        """A restart without persistence."""
        self.lose(len(self._journal))
        self.world.counts["emptied"] += not self._journal

    def run(self, words: Sequence[bytes]) -> Any:
        """The reply, or the error that stands in its place."""
        command = getattr(self, f"_{words[0].decode().lower()}")
        return command(*words[1:])

    def at_once(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        return [self.run(words) for words in commands]

    def _script(self, action: bytes, body: bytes) -> bytes:
        known = {script.body.encode(): script.sha for script in (SET_IF_NEWER, SWAP_FIELD, PROMOTE)}
        assert action == b"LOAD"
        self._scripts.add(known[body])
        return known[body].encode()

    def _evalsha(self, sha: bytes, count: bytes, *words: bytes) -> Any:
        if sha.decode() not in self._scripts:
            return redis_errors.NoScriptError("NOSCRIPT No matching script")
        keys, arguments = words[: int(count)], words[int(count) :]
        return _SCRIPTS[sha.decode()](self, keys, arguments)

    def _mget(self, *names: bytes) -> list[bytes | None]:
        return [self.values.get(name) for name in names]

    def _hget(self, name: bytes, field: bytes) -> bytes | None:
        return self.hashes.get(name, {}).get(field)

    def _hgetall(self, name: bytes) -> dict[bytes, bytes]:
        return dict(self.hashes.get(name, {}))

    def _info(self) -> dict[str, Any]:
        return {
            "redis_version": "7.0.0",
            "maxmemory": 0,
            "maxmemory_policy": "noeviction",
            "used_memory": 1,
            "role": "master",
        }

    def set_if_newer(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        older, misrouted, last = 0, [], 0
        for i, (key, value) in enumerate(zip(keys, arguments[1:], strict=True), 1):
            stored, new = self.values.get(key), _POSITION.unpack_from(value, 16)
            old = _POSITION.unpack_from(stored, 16) if stored is not None else None
            if old is not None and old[0] == new[0] and old[2] >= 0 and old[2] != new[2]:
                # One of nobody's follows no other; one of another partition is refused.
                older += new[2] < 0
                misrouted += [i] * (new[2] >= 0)
            elif old is not None and new[:2] <= old[:2]:
                older += 1
            else:
                self._put(key, value)
                last = i
        self.world.counts["older values refused"] += older
        self.world.note(f"redis: {len(keys)} values, {older} older, up to {_POSITION.unpack_from(arguments[-1], 16)}")
        return [older, misrouted, [], last]

    def promote(self, keys: Sequence[bytes], _arguments: Sequence[bytes]) -> int:
        moved = 0
        for live, waiting in zip(keys[::2], keys[1::2], strict=True):
            value, stored = self.values.get(waiting), self.values.get(live)
            if value is None:
                continue
            if stored is None or _POSITION.unpack_from(value, 16)[:2] > _POSITION.unpack_from(stored, 16)[:2]:
                self._put(live, value, renamed=waiting)
                moved += 1
            else:
                self._del(waiting)
        self.world.note(f"redis: {moved} of {len(keys) // 2} values promoted")
        return moved

    def _put(self, key: bytes, value: bytes, renamed: bytes | None = None) -> None:
        undo: list[_UNDO] = [(key, None, self.values.get(key))]
        if renamed is not None:
            undo.append((renamed, None, self.values.pop(renamed)))
        self._journal.append(tuple(undo))
        self.values[key] = value
        self.readable[key].append((_POSITION.unpack_from(value, 16)[1], self.world.now()))

    def _del(self, *names: bytes) -> int:
        there = [name for name in names if name in self.values]
        for name in there:
            self._journal.append(((name, None, self.values.pop(name)),))
        return len(there)

    def _scan(self, _cursor: bytes, _match: bytes, pattern: bytes, _count: bytes, _at_once: bytes) -> list[Any]:
        """All at once, which a server may do."""
        prefix, _, _ = pattern.partition(b"{")
        return [b"0", sorted(name for name in self.values if name.startswith(prefix))]

    def swap_field(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes | int | None:
        (name, *witnesses), (field, expected, new, *positions) = keys, arguments
        stored = self.hashes.setdefault(name, {}).get(field)
        if (stored or b"") != expected:
            return stored or b""
        for number, (witness, position) in enumerate(zip(witnesses, positions, strict=True), 2):
            if self.values.get(witness, b"")[16:40] != position:
                self.world.counts["fences refused"] += 1
                return number
        self._journal.append(((name, field, stored),))
        if not new:
            del self.hashes[name][field]
            self.world.note(f"redis: {name.decode()}[{field.decode()}] is removed")
            return None
        if stored is not None and _position(new) < _position(stored):
            raise Violation(f"{name.decode()}[{field.decode()}] went back from {stored!r} to {new!r}")
        self.hashes[name][field] = new
        self.world.note(f"redis: {name.decode()}[{field.decode()}] = {_position(new)}")
        return None


_pack: Any = hiredis.pack_command  # declared as taking a tuple of one word
_SCRIPTS = {
    SET_IF_NEWER.sha: SimulatedRedis.set_if_newer,
    SWAP_FIELD.sha: SimulatedRedis.swap_field,
    PROMOTE.sha: SimulatedRedis.promote,
}


def _position(record: bytes) -> tuple[int, int]:
    fields: dict[str, Any] = json.loads(record)
    return int(fields.get("generation", 0)), int(fields.get("offset", 0))  # the mark of a backfill has no offset


class _Client:
    """As much of `redis.asyncio.Redis`, and of a `Wire`, as `OnlineStore` asks for."""

    def __init__(self, redis: SimulatedRedis) -> None:
        self._redis = redis

    async def exchange(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        """Commands arrive in order, and none after one that did not; those of others come in between."""
        words = [_sent(command) for command in commands]
        if words[0] == [b"MULTI"]:
            works: list[Callable[[], Any]] = [partial(str, "QUEUED")] * (len(words) - 1)
            works.append(partial(self._redis.at_once, words[1:-1]))
        else:
            works = [partial(self._redis.run, of_command) for of_command in words]
        delay = self._redis.world.latency()
        replies = []
        for work in works:
            replies.append(self._redis.part.ask(work, delay))
            delay += self._redis.world.rng.uniform(0, 0.01)
        found = []
        for reply in replies:
            said, came = await reply
            if not came:
                raise redis_errors.ConnectionError("connection lost")
            found.append(said)
        return found

    async def at_once(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        return await Wire.at_once(cast(Wire, self), commands)

    async def hget(self, name: bytes, field: str) -> Any:
        return await self.ask(b"HGET", name, field.encode())

    async def hgetall(self, name: bytes) -> Any:
        return await self.ask(b"HGETALL", name)

    async def info(self, _section: str = "") -> dict[str, Any]:
        return dict(await self.ask(b"INFO"))

    async def scan(self, cursor: int, *, match: bytes, count: int) -> tuple[int, list[bytes]]:
        found, names = await self.ask(b"SCAN", cursor, b"MATCH", match, b"COUNT", count)
        return int(found), names

    async def delete(self, *names: bytes) -> Any:
        return await self.ask(b"DEL", *names)

    def pipeline(self, *, transaction: bool) -> _Beats:
        assert transaction
        return _Beats()

    async def ask(self, *words: bytes | str | int) -> Any:
        return await self.ask_packed(_pack(words))

    async def ask_packed(self, command: bytes) -> Any:
        try:
            return await self._redis.part.done(lambda: self._redis.run(_words(command)))
        except Gone as error:
            raise redis_errors.ConnectionError(str(error)) from error


def _sent(command: Sequence[bytes | str | int]) -> list[bytes]:
    """The words of a command as a server reads them."""
    return _words(_pack(tuple(command)))


def _words(packed: bytes) -> list[bytes]:
    reader = hiredis.Reader()
    reader.feed(packed)
    words: list[bytes] = reader.gets()
    return words


class _Beats:
    """Beats are for people; nothing here reads them."""

    def hset(self, _name: bytes, *, mapping: Mapping[str, bytes]) -> None:
        assert mapping

    def pexpire(self, _name: bytes, _milliseconds: int) -> None:
        """Nothing lives that long here."""

    async def execute(self) -> None:
        """Costs nothing."""
