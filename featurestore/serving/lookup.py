"""Lookups against the online store: requests that wait in the same turn of the event loop are answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from featurestore.clock import Clock
from featurestore.engine.read import Reading, ViewReader
from featurestore.errors import Corrupt, StoreRefused, Unavailable
from featurestore.monitor.freshness import FreshnessBoard, ViewFreshness
from featurestore.online.keys import MAX_KEY_BYTES, encode_keys
from featurestore.online.store import OnlineStore
from featurestore.serving.answers import Answer, Block, overlaid, placeholder
from featurestore.serving.past import PastLookups
from featurestore.serving.plan import LookupPlan, ViewPart
from featurestore.serving.requests import KeyValue
from featurestore.telemetry import get_logger
from featurestore.types import STATUS_CODES, Status

BATCH_PAIRS = 768
"""Most (view, entity) pairs in one MGET, unless one request has more. A larger batch lets small lookups wait longer
for large ones, and leaves nothing to compute while Redis answers."""
MAX_BATCHES = 4
"""Batches under way at a time: one, and others only where they are full."""
TURNS = 3
"""Turns of the event loop before a batch starts: requests that have arrived already need as many to get here."""
MAX_BUDGET_MS = 60_000.0

_OK = STATUS_CODES[Status.OK]
_UNAVAILABLE = STATUS_CODES[Status.UNAVAILABLE]

_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request, from its arrival until its answer."""

    plan: LookupPlan
    keys: list[list[str | None]]
    """Canonical keys by view, then row."""
    rows: int
    at: int | None
    done: asyncio.Future[Answer]
    missing: np.ndarray | None = field(default=None)
    """`bool[rows]`: rows that online state cannot answer exactly."""

    def answer(self, block: Block, start: int, at: int) -> None:
        if not self.done.done():  # its budget may have run out meanwhile
            self.done.set_result(Answer(block, start, start + self.rows, at))

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class LookupEngine:
    """Answers lookups. One per process and event loop."""

    def __init__(self, store: OnlineStore, board: FreshnessBoard, past: PastLookups, clock: Clock) -> None:
        self._store, self._board, self._past, self._clock = store, board, past, clock
        self._away = self._scheduled = False
        self._pending: list[_Waiting] = []
        self._running: set[asyncio.Task[None]] = set()

    async def lookup(
        self, plan: LookupPlan, entities: Sequence[list[KeyValue]], at: int | None, budget_ms: float | None
    ) -> Answer:
        """Row i of the answer is row i of `entities`, the columns of the plan's keys.

        Raises AtOutOfRange where an explicit `at` can be answered neither from online state nor from the lake. A store
        that does not answer makes rows `unavailable`, a spent budget makes them `deadline`; neither is an error.
        """
        loop = asyncio.get_running_loop()
        keys = [part.canonical(entities) for part in plan.parts]
        _check_lengths(keys)
        waiting = _Waiting(plan, keys, len(entities[0]), at, loop.create_future())
        self._pending.append(waiting)
        self._schedule()
        if budget_ms is None:
            answer = await waiting.done
        else:
            budget_ms = min(budget_ms, MAX_BUDGET_MS)
            started = loop.time()
            timer = loop.call_later(budget_ms / 1e3, self._expire, waiting)
            answer = await waiting.done
            timer.cancel()
            budget_ms -= (loop.time() - started) * 1e3
        if waiting.missing is None:
            return answer
        return await self._past.complete(plan, entities, keys, answer, waiting.missing, budget_ms)

    async def close(self) -> None:
        """Waits for lookups under way."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _expire(self, waiting: _Waiting) -> None:
        now = waiting.at if waiting.at is not None else self._clock.now()
        waiting.answer(placeholder(waiting.plan, waiting.rows, now, Status.DEADLINE), 0, now)

    def _schedule(self) -> None:
        """Starts what is pending at the end of this turn, or when a batch under way is done.

        Were each request sent off as it comes, clients that ask again once they are answered would settle into many
        small batches, each at the fixed cost of a large one.
        """
        if self._pending and not self._scheduled and len(self._running) < MAX_BATCHES:
            if self._running and not self._away and _pairs(self._pending) < BATCH_PAIRS:
                return
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start_after, TURNS)

    def _start_after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._start_after, turns - 1)
        else:
            self._start()

    def _start(self) -> None:
        self._scheduled = False
        if self._away and self._running:
            # One batch at a time finds out whether the store is back; the others need not wait for that.
            batch, self._pending = self._pending, []
            self._give_up(batch, self._clock.now())
            return
        batch, self._pending = _cut([w for w in self._pending if not w.done.done()])
        if batch:
            task = asyncio.ensure_future(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._finished)
        self._schedule()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._schedule()

    def _give_up(self, batch: list[_Waiting], now: int) -> None:
        for waiting in batch:
            at = waiting.at if waiting.at is not None else now
            waiting.answer(placeholder(waiting.plan, waiting.rows, at, Status.UNAVAILABLE), 0, at)

    async def _run(self, batch: list[_Waiting]) -> None:
        try:
            now = self._clock.now()
            groups = _grouped(batch)
            wanted = [_wanted(plan, group) for (plan, _), group in groups]
            values = await self._stored(list(chain.from_iterable(wanted)))
            if values is None:
                self._give_up(batch, now)
                return
            start = 0
            for ((plan, explicit), group), views in zip(groups, wanted, strict=True):
                stop = start + sum(len(keys) for _, keys in views)
                self._evaluate(plan, group, explicit, values[start:stop], now)
                start = stop
        except Exception as error:  # noqa: BLE001 every waiting request has to hear of it
            for waiting in batch:
                waiting.fail(error)

    async def _stored(self, wanted: list[tuple[str, list[str]]]) -> list[bytes | None] | None:
        """None where the store does not answer."""
        try:
            values = await self._store.read_many(wanted)
        except (Unavailable, StoreRefused) as error:
            if not self._away:
                _log.error("lookups are answered without the online store", reason=error.message)
            self._away = True
            return None
        if self._away:
            _log.info("the online store is back")
            self._away = False
        return values

    def _evaluate(
        self, plan: LookupPlan, group: list[_Waiting], explicit: bool, values: list[bytes | None], now: int
    ) -> None:
        rows = sum(waiting.rows for waiting in group)
        at = np.repeat([w.at or 0 for w in group], [w.rows for w in group]) if explicit else None
        width, none = len(plan.dtypes), np.empty(0, np.int64)
        block = Block([[]] * width, np.empty((width, rows), np.uint8), [none] * width, [none] * width)
        missing = np.zeros(rows, np.bool_)
        start = 0
        for i, part in enumerate(plan.parts):
            keys = _concatenated(waiting.keys[i] for waiting in group)
            present = rows - keys.count(None)
            stored = values[start : start + present]
            start += present
            missing |= self._fill(block, part, keys, _scattered(keys, stored, present), at, now)
        _hand_out(block, group, missing if explicit else None, now)

    def _fill(
        self,
        block: Block,
        part: ViewPart,
        keys: list[str | None],
        values: list[bytes | None],
        at: np.ndarray | None,
        now: int,
    ) -> np.ndarray:
        """Writes the view's columns into the block; returns the rows that only the lake can answer."""
        fresh = self._board.of(part.view.id)
        if fresh.unavailable:
            values = [None] * len(values)
        reading, corrupt = _read(part.reader, values, at, now)
        overlay = _overlay(fresh, keys, reading, corrupt)
        for column, feature in part.picks:
            read = reading.columns[feature]
            block.columns[column] = read.to_list()
            block.status[column] = read.status if overlay is None else overlaid(read.status, overlay)
            block.as_of[column], block.at[column] = read.as_of, reading.at
        if at is None:
            return np.zeros(len(keys), np.bool_)
        # A key that left the store when it went idle still has a past.
        missing: np.ndarray = ~reading.answerable | (~reading.found & (reading.at < now))
        missing &= _present(keys)
        return missing


def _overlay(fresh: ViewFreshness, keys: list[str | None], reading: Reading, corrupt: list[int]) -> np.ndarray | None:
    if fresh.uniform == _OK and not corrupt:
        return None
    overlay = np.where(_present(keys), fresh.of(keys, reading.partition, reading.found), np.uint8(_OK))
    overlay[corrupt] = _UNAVAILABLE
    return overlay


def _check_lengths(keys: list[list[str | None]]) -> None:
    """One key that cannot be looked up must not spoil the batch that it would be part of. Raises InvalidRequest."""
    for of_view in keys:
        present = [key for key in of_view if key is not None]
        if max(map(len, present), default=0) > MAX_KEY_BYTES // 4:
            encode_keys(present)


def _pairs(pending: list[_Waiting]) -> int:
    return sum(waiting.rows * len(waiting.keys) for waiting in pending)


def _cut(pending: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
    """The next batch, and what has to wait for another."""
    pairs = 0
    for i, waiting in enumerate(pending):
        pairs += waiting.rows * len(waiting.keys)
        if i and pairs > BATCH_PAIRS:
            return pending[:i], pending[i:]
    return pending, []


def _grouped(batch: list[_Waiting]) -> list[tuple[tuple[LookupPlan, bool], list[_Waiting]]]:
    groups: dict[tuple[LookupPlan, bool], list[_Waiting]] = {}
    for waiting in batch:
        groups.setdefault((waiting.plan, waiting.at is not None), []).append(waiting)
    return list(groups.items())


def _wanted(plan: LookupPlan, group: list[_Waiting]) -> list[tuple[str, list[str]]]:
    """View after view: its id, and the key of every row that has one."""
    columns = ((part.view.id, chain.from_iterable(w.keys[i] for w in group)) for i, part in enumerate(plan.parts))
    return [(view_id, [key for key in keys if key is not None]) for view_id, keys in columns]


def _concatenated(lists: Iterable[list[str | None]]) -> list[str | None]:
    return list(chain.from_iterable(lists))


def _scattered(keys: list[str | None], stored: list[bytes | None], present: int) -> list[bytes | None]:
    """Stored values at the rows of their keys."""
    if present == len(keys):
        return stored
    following = iter(stored)
    return [None if key is None else next(following) for key in keys]


def _present(keys: list[str | None]) -> np.ndarray:
    return np.fromiter((key is not None for key in keys), np.bool_, len(keys))


def _read(reader: ViewReader, values: list[bytes | None], at: np.ndarray | None, now: int) -> tuple[Reading, list[int]]:
    """The reading, with rows whose bytes are damaged read as absent, and those rows."""
    try:
        return reader.read(values, at, now), []
    except Corrupt as error:
        _log.error("stored values are damaged", reason=error.message)
    corrupt = _damaged(reader, values, 0, now)
    sound = list(values)
    for row in corrupt:
        sound[row] = None
    return reader.read(sound, at, now), corrupt


def _damaged(reader: ViewReader, values: list[bytes | None], first: int, now: int) -> list[int]:
    """Rows (counted from `first`) that cannot be read, by halving."""
    try:
        reader.read(values, None, now)
    except Corrupt:
        if len(values) == 1:
            return [first]
        middle = len(values) // 2
        left = _damaged(reader, values[:middle], first, now)
        return left + _damaged(reader, values[middle:], first + middle, now)
    return []


def _hand_out(block: Block, group: list[_Waiting], missing: np.ndarray | None, now: int) -> None:
    start = 0
    for waiting in group:
        stop = start + waiting.rows
        if missing is not None and missing[start:stop].any():
            waiting.missing = missing[start:stop]
        waiting.answer(block, start, waiting.at if waiting.at is not None else now)
        start = stop
