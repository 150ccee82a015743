"""One view in one partition, with its effects: reads before it folds, writes, and moves the fence when all is said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec
import numpy as np

from featurestore.clock import SECOND, Clock
from featurestore.engine.packing import headers
from featurestore.engine.sections import GENERATION
from featurestore.online.fences import Fence, Put
from featurestore.online.store import OnlineStore, Witnesses, Written
from featurestore.telemetry import EVENTS, VISIBLE_DELAY, get_logger
from streams.folding import NOTHING, Accepted, Count, Delivery, Effects, ViewFold
from streams.materialising import Changes
from streams.patience import Patience
from streams.visibility import Readable

Refuse = Callable[[np.ndarray, str, str], Awaitable[None]]
"""Dead-letters rows of a delivery (`int64[k]`, their places), with reason and error."""

_log = get_logger(__name__)


class StoreLostWrites(Exception):
    """The online store holds less than was acknowledged: the log must be read again from what it still knows."""


class ViewLane:
    """Applies deliveries of one partition to the online store, each exactly once."""

    def __init__(
        self,
        fold: ViewFold,
        store: OnlineStore,
        clock: Clock,
        patience: Patience,
        changes: Changes,
        readable: Readable,
        *,
        lost: bool = False,
    ) -> None:
        """`changes` is told which entities have new values, and `readable` from when on they were there. `lost`: the
        store had a fence here, and lost it."""
        self.fold, self.lost = fold, lost
        self._store, self._clock, self._patience = store, clock, patience
        self._changes, self._readable_from = changes, readable
        # A generation may begin before the first offset.
        self._stored: Fence | None = fold.fence if fold.fence.position > (0, NOTHING) else None
        # From the start on and at 0: an alert on a rate misses a counter's first step from nothing.
        view = fold.view
        self._counters = {kind: EVENTS.labels(view.source.name, view.id, kind.name.lower()) for kind in list(Count)[1:]}

    @property
    def stored(self) -> Fence | None:
        """The last fence that the store acknowledged."""
        return self._stored

    async def take(self, delivery: Delivery, refuse: Refuse) -> None:
        """Returns when the delivery's effects can be read and its fence is stored.

        Raises StoreLostWrites; waits out a store that does not answer.
        """
        accepted = self.fold.accept(delivery)
        if accepted is None:
            return
        effects, witnesses = await self._write(accepted)
        visible_time = self._readable(accepted)
        before = self.fold.fence.vector
        for reason, error, rows in effects.refused:
            await refuse(rows, reason, error)
        await self._put_fence(effects, witnesses)
        self._count(effects)
        self._changes.note(accepted.events, effects.keys, effects.fence.offset)
        if effects.fence.readable:
            self._readable_from.note(before, effects.fence.vector, effects.fence.offset, visible_time)

    async def _write(self, accepted: Accepted) -> tuple[Effects, Witnesses]:
        while True:
            accepted, unfenced = await self._load(accepted)
            effects = self.fold.apply(accepted)
            relied = self._relied(unfenced, effects)
            if not effects.keys:
                return effects, relied
            written = await self._store_values(effects)
            if not written.misrouted:
                if written.older and await self._replaced(effects.keys):
                    effects = replace(effects, fence=msgspec.structs.replace(effects.fence, readable=False))
                return effects, [*written.witnesses, *relied]
            # Between our read and our write another partition wrote the entity first. Without the cache the same
            # rows find its value, and are refused.
            self.fold.make_room()

    async def _store_values(self, effects: Effects) -> Written:
        view, ttl = self.fold.view.id, self.fold.ttl_ms
        return await self._patience.until_done(
            lambda: self._store.write(view, effects.keys, effects.values, ttl_ms=ttl)
        )

    async def _replaced(self, keys: list[str]) -> bool:
        """Whether a backfill put values of a later generation in the place of some, which end before these events."""
        values = await self._patience.until_done(lambda: self._store.read(self.fold.view.id, keys))
        return bool((headers(values)[:, GENERATION] > self.fold.fence.generation).any())

    async def _load(self, accepted: Accepted) -> tuple[Accepted, dict[str, bytes]]:
        """Also the values that no fence vouches for yet: of a worker that ended, or was cut off, before it put one."""
        unfenced: dict[str, bytes] = {}
        rounds = 0
        while keys := self.fold.missing(accepted):
            if rounds:
                self.fold.make_room()
                keys, unfenced = self.fold.missing(accepted), {}
            values = await self._read(keys)
            accepted = self.fold.load(accepted, keys, values)
            unfenced |= self.fold.unfenced(keys, values)
            rounds += 1
        return accepted, unfenced

    def _relied(self, unfenced: Mapping[str, bytes], effects: Effects) -> Witnesses:
        """Their events are duplicates, and the fence is to vouch for values that this lane did not write."""
        if not unfenced:
            return ()
        left = dict(unfenced)
        for key in effects.keys:
            left.pop(key, None)
        return self._store.witnesses(self.fold.view.id, list(left), list(left.values()))

    async def _read(self, keys: list[str]) -> list[bytes | None]:
        """Values from before a loss, folded on, would be written as whole at a newer offset: no replay mends that."""
        view, partition, believed = self.fold.view.id, self.fold.partition, self._stored
        values, fence = await self._patience.until_done(lambda: self._store.read_fenced(view, keys, partition))
        if believed is not None and (fence is None or fence.position < believed.position):
            raise StoreLostWrites(f"{view}, partition {partition}")
        return values

    async def _put_fence(self, effects: Effects, witnesses: Witnesses) -> None:
        view, partition = self.fold.view, self.fold.partition
        fence = msgspec.structs.replace(effects.fence, written_at=self._clock.now())
        put = await self._patience.until_done(
            lambda: self._store.put_fence(view.id, partition, fence, believed=self._stored, witnesses=witnesses)
        )
        if put is Put.LOST:
            raise StoreLostWrites(f"{view.id}, partition {partition}")
        if put is Put.AHEAD:
            _log.info("another worker is ahead of this one", view=view.id, partition=partition, offset=fence.offset)
        self.fold.confirm(effects)
        self._stored = fence

    def _readable(self, accepted: Accepted) -> int:
        """The values are there: readers need not wait for the fence. Returns the instant (µs)."""
        now = self._clock.now()
        if len(accepted.appended):
            # One sample for the batch, of its oldest event: a worker under load must not count itself fast.
            oldest = int(accepted.appended.min())
            VISIBLE_DELAY.labels(self.fold.view.id).observe(max(0, now - oldest) / SECOND)
        return now

    def _count(self, effects: Effects) -> None:
        for kind, counter in self._counters.items():
            counter.inc(int(effects.outcomes[kind]))
