"""Lookups against the online store: requests that wait in the same turn of the event loop are answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from featurestore.clock import Clock
from featurestore.errors import StoreRefused, Unavailable
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.online.keys import MAX_KEY_BYTES, encode_keys
from featurestore.online.names import Values
from featurestore.online.reads import OVERDUE_SECONDS, Reads
from featurestore.serving.answers import Answer, Block
from featurestore.serving.batches import Slice, Waiting, grouped, scattered, shared_reads, slices_of, without_nulls
from featurestore.serving.breaker import SLOW_SECONDS, Breaker
from featurestore.serving.fallback import Fallbacks
from featurestore.serving.past import PastLookups
from featurestore.serving.plan import LookupPlan
from featurestore.serving.requests import KeyValue
from featurestore.types import Status

BATCH_PAIRS = 2_048
"""Most (view, entity) pairs in one batch, unless one request has more. A larger batch lets small lookups wait longer
for large ones, and leaves nothing to compute while Redis answers; in a smaller one large lookups are alone."""
SHARED_PAIRS = 768
"""Most of them that several views are read together for."""
MAX_BATCHES = 4
"""Batches under way at a time: one, and others only where they are full."""
MAX_UNANSWERED = 16
"""The same with those whose answer is overdue: nobody waits behind them, until there are too many."""
TURNS = 3
"""Turns of the event loop before a batch starts: requests that have arrived already need as many to get here."""
STEP_SECONDS = 0.002
"""After so much work on a batch the event loop gets its turn: an answer that is due is late by no more than that."""
TURNS_DECAY = 0.97
"""By how much the slowest turns of late count for less with each batch."""
ANSWER_SECONDS, ENCODE_SECONDS = 1e-3, 0.4e-6
"""What an answer takes from here to its last byte, and each value in it."""
MOST_RESERVED = 0.25
"""Of a budget, for what comes after the wait."""
MAX_BUDGET_MS = 60_000.0


class LookupEngine:
    """Answers lookups. One per process and event loop."""

    def __init__(
        self, reads: Reads, board: FreshnessBoard, past: PastLookups, fallbacks: Fallbacks, clock: Clock
    ) -> None:
        self._reads, self._board, self._past, self._fallbacks, self._clock = reads, board, past, fallbacks, clock
        self.breaker = Breaker(reads.probe)
        self._scheduled = False
        self._waking: asyncio.TimerHandle | None = None
        self._pending: list[Waiting] = []
        self._running: dict[asyncio.Task[None], float] = {}
        self._evaluating = asyncio.Lock()
        """Of several batches one goes a step in each turn of the event loop, since a turn is what an answer can be
        late by."""
        self._turns = 0.0
        """Seconds that `TURNS` of them took of late, at worst."""

    async def lookup(
        self, plan: LookupPlan, entities: Sequence[list[KeyValue]], at: int | None, budget_ms: float | None
    ) -> Answer:
        """Row i of the answer is row i of `entities`, the columns of the plan's keys.

        Raises AtOutOfRange where an explicit `at` can be answered neither from online state nor from the lake, and
        Refused where a view's policy wants it so. A store that does not answer makes rows `unavailable`, a spent budget
        makes them `deadline`; neither is an error.
        """
        loop = asyncio.get_running_loop()
        keys = [part.canonical(entities) for part in plan.parts]
        _check_lengths(keys)
        waiting = Waiting(plan, keys, len(entities[0]), at, loop.create_future())
        self._pending.append(waiting)
        self._schedule()
        if budget_ms is None:
            answer = await waiting.done
        else:
            started = loop.time()
            seconds = self._patience(min(budget_ms, MAX_BUDGET_MS) / 1e3, waiting.rows * len(plan.dtypes))
            timer = loop.call_later(seconds, self._expire, waiting)
            try:
                answer = await waiting.done
            finally:
                timer.cancel()
            budget_ms = (seconds - (loop.time() - started)) * 1e3
        if waiting.missing is None:
            return answer
        return await self._past.complete(plan, entities, keys, answer, waiting.missing, budget_ms)

    async def close(self) -> None:
        """Waits for lookups under way."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.breaker.close()

    def _patience(self, seconds: float, values: int) -> float:
        """How much of a budget there is to wait. The rest is for the answer to be written, after what the event loop
        has in hand when the time is over."""
        return seconds - min(seconds * MOST_RESERVED, ANSWER_SECONDS + self._turns + values * ENCODE_SECONDS)

    def _expire(self, waiting: Waiting) -> None:
        waiting.expire(self._fallbacks, self._clock.now(), Status.DEADLINE)

    def _schedule(self) -> None:
        """Starts what is pending at the end of this turn, or when a batch under way is done.

        Were each request sent off as it comes, clients that ask again once they are answered would settle into many
        small batches, each at the fixed cost of a large one.
        """
        if not self._pending or self._scheduled:
            return
        if self._running and self.breaker.closed and self._must_wait():
            return
        self._scheduled = True
        loop = asyncio.get_running_loop()
        loop.call_soon(self._start_after, TURNS, loop.time())

    def _must_wait(self) -> bool:
        """For a batch under way; but not for one whose answer is overdue."""
        loop = asyncio.get_running_loop()
        since = loop.time() - OVERDUE_SECONDS
        timely = sum(started >= since for started in self._running.values())
        if timely == 0 and len(self._running) < MAX_UNANSWERED:
            return False
        if timely < MAX_BATCHES and len(self._running) < MAX_UNANSWERED and _pairs(self._pending) >= BATCH_PAIRS:
            return False
        if self._waking is None:
            self._waking = loop.call_later(OVERDUE_SECONDS, self._wake)
        return True

    def _wake(self) -> None:
        self._waking = None
        self._schedule()

    def _start_after(self, turns: int, since: float) -> None:
        loop = asyncio.get_running_loop()
        if turns:
            loop.call_soon(self._start_after, turns - 1, since)
            return
        self._turns = max(loop.time() - since, TURNS_DECAY * self._turns)
        self._start()

    def _start(self) -> None:
        self._scheduled = False
        if not self.breaker.closed:
            batch, self._pending = self._pending, []
            now = self._clock.now()
            for waiting in batch:
                waiting.expire(self._fallbacks, now, Status.UNAVAILABLE)
            return
        batch, self._pending = _cut([w for w in self._pending if not w.done.done()])
        if batch:
            task = asyncio.ensure_future(self._run(batch))
            self._running[task] = asyncio.get_running_loop().time()
            task.add_done_callback(self._finished)
        self._schedule()

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._schedule()

    async def _run(self, batch: list[Waiting]) -> None:
        try:
            now = self._clock.now()
            shared = shared_reads(slices_of(grouped(batch, now)), SHARED_PAIRS)
            if len(shared) == 1:
                await self._evaluate(shared[0], await self._stored(shared[0]))
                return
            reads = [asyncio.ensure_future(self._stored(slices)) for slices in shared]
            for slices, read in zip(shared, reads, strict=True):
                await self._evaluate(slices, await read)
        except Exception as error:  # noqa: BLE001 every waiting request has to hear of it
            for waiting in batch:
                waiting.fail(error)

    async def _stored(self, slices: list[Slice]) -> Values | None:
        """None where the store does not answer."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        slow = loop.call_later(SLOW_SECONDS, self._failed, f"no answer within {SLOW_SECONDS:g} s")
        try:
            values = await self._reads.read([one.wanted for one in slices])
        except (Unavailable, StoreRefused) as error:
            if loop.time() - started < SLOW_SECONDS:
                self._failed(error.message)
            return None
        finally:
            slow.cancel()
        if loop.time() - started < SLOW_SECONDS:
            self.breaker.succeeded(loop.time())
        return values

    def _failed(self, reason: str) -> None:
        self.breaker.failed(asyncio.get_running_loop().time(), reason)
        self._schedule()  # nobody has to wait for the others once the breaker is open

    async def _evaluate(self, slices: list[Slice], values: Values | None) -> None:
        pace, start = _Pace(), 0
        for one in slices:
            stop = start + len(one.present)
            if values is None:
                one.group.put_unread(one.view, self._fallbacks)
            else:
                await self._fill(one, scattered(one.keys, values[start:stop]), pace)
            start = stop
            if not any(one.group.unread):
                one.group.hand_out()

    async def _fill(self, one: Slice, stored: Values, pace: _Pace) -> None:
        group, view_id = one.group, one.wanted[0]
        blocks: list[Block] = []
        for rows in one.steps():
            await pace.keep()
            fresh = self._board.of(view_id)
            if group.left:  # too late for everyone, but not for the next time
                group.remember(one.view, one.keys, stored, fresh, self._fallbacks)
                return
            async with self._evaluating:
                blocks.append(group.evaluate(one.view, rows, one.keys[rows], stored[rows], fresh, self._fallbacks))
        group.put(one.view, blocks)


class _Pace:
    """Gives the event loop its turn now and then, so that whoever's budget ends meanwhile is answered."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._since = self._now()

    async def keep(self) -> None:
        if self._now() - self._since > STEP_SECONDS:
            await asyncio.sleep(0)
            self._since = self._now()


def _check_lengths(keys: list[list[str | None]]) -> None:
    """One key that cannot be looked up must not spoil the batch that it would be part of. Raises InvalidRequest."""
    for of_view in keys:
        present = without_nulls(of_view)
        if max(map(len, present), default=0) > MAX_KEY_BYTES // 4:
            encode_keys(present)


def _pairs(pending: list[Waiting]) -> int:
    return sum(waiting.rows * len(waiting.keys) for waiting in pending)


def _cut(pending: list[Waiting]) -> tuple[list[Waiting], list[Waiting]]:
    """The next batch, and what has to wait for another."""
    pairs = 0
    for i, waiting in enumerate(pending):
        pairs += waiting.rows * len(waiting.keys)
        if i and pairs > BATCH_PAIRS:
            return pending[:i], pending[i:]
    return pending, []
