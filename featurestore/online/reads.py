"""Reads of stored values that do not wait for one slow connection: others stand by, and a replica may be asked too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import numpy as np

from featurestore.online.names import Values, Wanted
from featurestore.online.store import OnlineStore
from featurestore.telemetry import STORE_HEDGES

CONNECTIONS = 8
"""To the primary. All but the first lie idle until answers are overdue."""
OVERDUE_SECONDS = 0.005
"""A connection whose oldest answer is later than this is passed over: answers come in order, so what is asked on it
waits for that one too."""
HEDGE_SHARE = 0.025
"""Reads that may be repeated on the replica, of all."""
HEDGE_BURST = 5.0
"""Of those, how many may be saved up."""
HEDGE_FLOOR_SECONDS = 0.002
HEDGE_QUANTILE = 0.95
_SAMPLES, _EVERY = 512, 64


class _Lane:
    """A connection, and when what is unanswered on it was asked."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self._count = 0
        self.asked: dict[int, float] = {}

    def overdue(self, now: float) -> bool:
        return bool(self.asked) and now - next(iter(self.asked.values())) > OVERDUE_SECONDS

    async def read(self, wanted: Wanted) -> Values:
        self._count += 1
        number = self._count
        self.asked[number] = asyncio.get_running_loop().time()
        try:
            return await self._store.read_many(wanted)
        finally:
            del self.asked[number]


class Reads:
    """For one event loop. Nothing is retried: a read that fails on the primary fails, unless the replica has it."""

    def __init__(
        self,
        stores: Sequence[OnlineStore],
        replica: OnlineStore | None = None,
        may_hedge: Callable[[str], bool] = lambda view_id: True,
    ) -> None:
        """`stores` lead to the primary. `may_hedge` says of a view whether the replica has its values in time."""
        self._lanes = [_Lane(store) for store in stores]
        self._replica = _Lane(replica) if replica is not None else None
        self._may_hedge = may_hedge
        self._tokens = 0.0
        self._reads = 0
        self._took = np.zeros(_SAMPLES)
        self._patience = HEDGE_FLOOR_SECONDS

    async def read(self, wanted: Wanted) -> Values:
        """The stored bytes of each key, view after view; None where there are none. Raises as `OnlineStore` does."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        lane = self._lane(started)
        if self._replica is None:
            return await lane.read(wanted)
        self._tokens = min(HEDGE_BURST, self._tokens + HEDGE_SHARE)
        race = _Race(loop.create_future())
        race.enter(lane.read(wanted)).add_done_callback(partial(self._timed, loop, started))
        timer = loop.call_later(self._patience, self._hedge, loop, wanted, race)
        try:
            return await race.answer
        finally:
            timer.cancel()

    async def probe(self) -> None:
        """Reads nothing in particular from the primary."""
        await self._lane(asyncio.get_running_loop().time()).read([("probe@1", ["-"])])

    def _lane(self, now: float) -> _Lane:
        for lane in self._lanes:
            if not lane.overdue(now):
                return lane
        return min(self._lanes, key=lambda lane: len(lane.asked))

    def _hedge(self, loop: asyncio.AbstractEventLoop, wanted: Wanted, race: _Race) -> None:
        """Repeats a read that is late; where too many were repeated it looks again after as long."""
        replica = self._replica
        if race.answer.done() or replica is None or not all(self._may_hedge(view) for view, _ in wanted):
            return
        if self._tokens < 1 or replica.overdue(loop.time()):
            loop.call_later(self._patience, self._hedge, loop, wanted, race)
            return
        self._tokens -= 1
        race.enter(replica.read(wanted)).add_done_callback(race.count)

    def _timed(self, loop: asyncio.AbstractEventLoop, started: float, _: asyncio.Task[Values]) -> None:
        """Keeps the delay after which a read is late: what 95 % of the latest reads stayed below."""
        self._took[self._reads % _SAMPLES] = loop.time() - started
        self._reads += 1
        if self._reads % _EVERY == 0:
            latest = self._took[: min(self._reads, _SAMPLES)]
            self._patience = max(HEDGE_FLOOR_SECONDS, float(np.quantile(latest, HEDGE_QUANTILE)))


class _Race:
    """One read on its way to one server or two: the first answer counts, and an error only where nothing else runs."""

    def __init__(self, answer: asyncio.Future[Values]) -> None:
        self.answer = answer
        self._running: set[asyncio.Task[Values]] = set()
        self._winner: asyncio.Task[Values] | None = None

    def enter(self, read: Coroutine[Any, Any, Values]) -> asyncio.Task[Values]:
        task = asyncio.ensure_future(read)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def count(self, hedge: asyncio.Task[Values]) -> None:
        """For the end of the second entrant."""
        failed = hedge.cancelled() or hedge.exception() is not None
        STORE_HEDGES.labels("failed" if failed else "won" if self._winner is hedge else "lost").inc()

    def _ended(self, task: asyncio.Task[Values]) -> None:
        self._running.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self.answer.done():
            return
        if error is None:
            self._winner = task
            self.answer.set_result(task.result())
        elif not self._running:
            self.answer.set_exception(error)
