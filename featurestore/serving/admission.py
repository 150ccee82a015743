"""Which lookups run now, which wait, and which are refused: decided before a body is parsed.

Under overload the newest goes first: whoever waited longest is the likeliest to have given up, and first come, first
served would answer everyone too late. A refusal costs the event loop half as much as a small lookup, and who is refused
at once asks again at once: so refusals are told at a bounded rate, and whoever is refused is held until then.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from featurestore import telemetry
from featurestore.errors import near_matches
from featurestore.serving.pace import limit_of, wanted_seconds
from featurestore.serving.problems import Problem, Refused, invalid

CLASSES = ("critical", "normal", "batch")
"""From the one that is shed last to the one that is shed first."""
SHARES = (1.0, 0.9, 0.5)
"""Of the capacity, what each class may fill: the rest is kept free for those before it."""
COST_BYTES = 256
"""A lookup costs 1, and 1 more for every so many bytes of its body: measured, that is proportional to its CPU time."""
LEAST_AT_ONCE = 4
DONE_SECONDS, MEASURE_SECONDS = 0.025, 0.2
"""While lookups wait, only so many run as are done within the first; how many that is, is measured over the second."""
REFUSED_PER_TURN, MOST_REFUSED_PER_TURN, TURN_SECONDS = 0.05, 5, 0.01
"""Refusals that are told at a time, as a share of the limit and at most: some hundredths of what lookups take."""
TURNS_HELD = 100
"""About: where more are held than that many turns take at this rate, more are told at a time."""
READING_BYTES = 64 << 20
"""Of bodies that arrive in pieces, all together."""
RETRY_AFTER_SECONDS = 1

CLASS_HEADER, BUDGET_HEADER = "X-Request-Class", "X-Budget-Ms"
_RANKS = {name.encode(): rank for rank, name in enumerate(CLASSES)}
NORMAL = _RANKS[b"normal"]

_ADMITTED = ""

_Queue = OrderedDict[asyncio.Future[str], tuple[int, float]]
"""Who waits, oldest first, with what each costs and until when (the loop's time) it may wait."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one process. `at_once` and `waiting` are sums of costs."""

    at_once: int = 300
    """At most; fewer where the processor is slower, busy with others, or lookups are dearer than most."""
    waiting: int = 1_000
    wait_seconds: float = 0.05
    per_caller: int = 0
    """Lookups of one caller that run or wait at a time; 0 for as many as there is room for."""


def cost_of(size: int) -> int:
    """What a lookup with a body of `size` bytes takes of the capacity."""
    return 1 + size // COST_BYTES


def rank_of(value: bytes) -> int:
    """The class that a request names → its place in CLASSES. Raises Refused."""
    rank = _RANKS.get(value.strip().lower())
    if rank is None:
        text = value.decode("latin-1")[:64]
        hint = f"expected {', '.join(CLASSES)}"
        near = near_matches(text, CLASSES)
        raise invalid(f"there is no request class {text!r}", field=CLASS_HEADER, hint=hint, near=near)
    return rank


def patience_of(value: bytes) -> float:
    """The budget that a request's header names → seconds. Raises Refused."""
    try:
        budget = float(value)
    except ValueError:
        budget = 0.0
    if not 0 < budget < float("inf"):
        raise invalid(f"{BUDGET_HEADER} is no number of milliseconds above 0", field=BUDGET_HEADER)
    return budget / 1e3


class Admission:
    """One per process and event loop. On an idle server `takes` and `leave` are all there is: two additions.

    Whoever was let in by `takes` or `turn` must `leave` with the same cost, whatever happens meanwhile.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._used = self._running = self._queued = self._reading = self._done = 0
        self._queues: tuple[_Queue, ...] = tuple(OrderedDict() for _ in CLASSES)
        self._refused: deque[tuple[asyncio.Future[str], str]] = deque()
        self._telling: asyncio.TimerHandle | None = None
        self._callers: Counter[str] = Counter()
        self._measuring = self._sweeping = False
        self._set_limit(limits.at_once)
        telemetry.LOOKUPS_RUNNING.set_function(lambda: self.running)
        telemetry.LOOKUPS_WAITING.set_function(lambda: self.waiting)

    @property
    def running(self) -> int:
        """Lookups that were let in and have not left."""
        return self._running

    @property
    def limit(self) -> int:
        """The sum of costs that may run now."""
        return self._limit

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues))

    def takes(self, rank: int, cost: int) -> bool:
        """Lets a lookup in where its class has room; what is larger than the room that is left may overdraw it once."""
        if self._used >= self._ceilings[rank]:
            return False
        self._used += cost
        self._running += 1
        return True

    def leave(self, cost: int) -> None:
        self._used -= cost
        self._running -= 1
        self._done += cost
        if self._queued:
            self._let_in()

    async def turn(self, rank: int, cost: int, patience: float | None = None) -> None:
        """Waits until a lookup that `takes` did not let in may run. Raises Refused, with 503, where that takes longer
        than its caller's `patience` (seconds) or than anyone may wait, or where too many wait who matter more."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[str] = loop.create_future()
        limit = self._limits.wait_seconds
        hurry = loop.call_later(patience, self._expire, rank, waiter) if patience and patience < limit else None
        if not self._measuring:
            self._measuring = True
            loop.call_later(MEASURE_SECONDS, self._adapt, self._done, wanted_seconds(), loop.time())
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(TURN_SECONDS, self._sweep)
        self._enqueue(rank, waiter, cost, loop.time() + limit)
        try:
            answer = await waiter
        except asyncio.CancelledError:
            self._forget(rank, waiter, cost)
            raise
        finally:
            if hurry is not None:
                hurry.cancel()
        if answer != _ADMITTED:
            raise Refused(_refusal(rank, answer, self._limits))

    @property
    def has_quota(self) -> bool:
        return self._limits.per_caller > 0

    @contextmanager
    def counted(self, caller: str) -> Iterator[bool]:
        """One lookup of a caller, from arrival to answer; false where its quota is spent."""
        quota_left = self._callers[caller] < self._limits.per_caller
        self._callers[caller] += quota_left
        try:
            yield quota_left
        finally:
            self._callers[caller] -= quota_left
            if not self._callers[caller]:
                del self._callers[caller]  # callers come and go, and addresses are many

    @contextmanager
    def reading(self, size: int) -> Iterator[bool]:
        """Room for a body of at most `size` bytes while it arrives in pieces; false where there is none."""
        size *= self._reading + size <= READING_BYTES
        self._reading += size
        try:
            yield size > 0
        finally:
            self._reading -= size

    async def refuse(self, rank: int, reason: str) -> NoReturn:
        """Raises Refused for one of REASONS when that may be told."""
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._turn_away(waiter, reason)
        raise Refused(_refusal(rank, await waiter, self._limits))

    def _adapt(self, done: int, wanted: float, began: float) -> None:
        """Half of the way from the limit that is to the one that was measured, as one measurement is noisy."""
        self._measuring = False
        passed = asyncio.get_running_loop().time() - began
        measured = limit_of(self._done - done, wanted_seconds() - wanted, passed, DONE_SECONDS)
        self._set_limit(round((self._limit + min(measured, self._limits.at_once)) / 2))

    def _set_limit(self, limit: int) -> None:
        self._limit = min(self._limits.at_once, max(LEAST_AT_ONCE, limit))
        self._ceilings = [max(1, round(share * self._limit)) for share in SHARES]
        telemetry.LOOKUPS_LIMIT.set(self._limit)
        if self._queued:
            self._let_in()

    def _enqueue(self, rank: int, waiter: asyncio.Future[str], cost: int, until: float) -> None:
        """At the cost of who has waited longest, in the class that matters least, where there is no room."""
        while self._queued and self._queued + cost > self._limits.waiting:
            last = max(i for i, queue in enumerate(self._queues) if queue)
            if last < rank:
                self._turn_away(waiter, "queue_full")
                return
            oldest, (its_cost, _) = self._queues[last].popitem(last=False)
            self._queued -= its_cost
            self._turn_away(oldest, "queue_full")
        self._queues[rank][waiter] = cost, until
        self._queued += cost

    def _let_in(self) -> None:
        for queue, ceiling in zip(self._queues, self._ceilings, strict=True):
            while queue and self._used < ceiling:
                newest, (cost, _) = queue.popitem()
                self._queued -= cost
                if not newest.done():  # its task may have been cancelled a moment ago
                    self._used += cost
                    self._running += 1
                    newest.set_result(_ADMITTED)

    def _sweep(self) -> None:
        """Ends the wait of those who may wait no longer. A timer for each would cost more than all else about them."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for queue in self._queues:
            while queue and next(iter(queue.values()))[1] <= now:
                oldest, (cost, _) = queue.popitem(last=False)
                self._queued -= cost
                self._turn_away(oldest, "waited")
        self._sweeping = self._queued > 0
        if self._sweeping:
            loop.call_later(TURN_SECONDS, self._sweep)

    def _expire(self, rank: int, waiter: asyncio.Future[str]) -> None:
        found = self._queues[rank].pop(waiter, None)
        if found is not None:
            self._queued -= found[0]
            self._turn_away(waiter, "budget")

    def _forget(self, rank: int, waiter: asyncio.Future[str], cost: int) -> None:
        """The request was cancelled: while it waited, or just when it had been let in."""
        if self._queues[rank].pop(waiter, None) is not None:
            self._queued -= cost
        elif not waiter.cancelled() and waiter.done() and waiter.result() == _ADMITTED:
            self.leave(cost)

    def _turn_away(self, waiter: asyncio.Future[str], reason: str) -> None:
        self._refused.append((waiter, reason))
        if self._telling is None:
            self._tell()

    def _tell(self) -> None:
        """Ends some of the refused requests, oldest first. They are as many as there are connections at most."""
        if not self._refused:
            self._telling = None
            return
        usual = min(MOST_REFUSED_PER_TURN, round(REFUSED_PER_TURN * self._limit))
        told = max(1, usual, len(self._refused) // TURNS_HELD)
        for _ in range(min(told, len(self._refused))):
            waiter, reason = self._refused.popleft()
            if not waiter.done():
                waiter.set_result(reason)
        self._telling = asyncio.get_running_loop().call_later(TURN_SECONDS, self._tell)


REASONS = {
    "waited": "other lookups were served first until this one had waited too long",
    "budget": f"other lookups were served first until the time in {BUDGET_HEADER} was over",
    "queue_full": "too many lookups wait already",
    "memory": "too many large bodies are arriving already",
    "connections": "too many connections are open already",
    "quota": "this caller has as many lookups under way or waiting as it may have",
}
"""Why a lookup is refused, by its label in `fs_lookups_shed_total`."""


def overloaded(reason: str) -> Problem:
    """A 503 that tells when to come back."""
    hint = f"wait for {RETRY_AFTER_SECONDS} s; mark what can wait with {CLASS_HEADER}: batch"
    return Problem(503, "overloaded", REASONS[reason], hint=hint, headers=_RETRY)


def _refusal(rank: int, reason: str, limits: Limits) -> Problem:
    telemetry.LOOKUPS_SHED.labels(CLASSES[rank], reason).inc()
    if reason != "quota":
        return overloaded(reason)
    hint = f"send at most {limits.per_caller} at a time, with more entities each"
    return Problem(429, "quota_spent", REASONS[reason], hint=hint, headers=_RETRY)


_RETRY = (("retry-after", str(RETRY_AFTER_SECONDS)),)
