"""Whether a replica of the online store has what the primary has, view by view, soon enough to answer for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from featurestore.clock import SECOND
from featurestore.definitions.compiled import CompiledView
from featurestore.errors import FeatureStoreError
from featurestore.online.store import Fence, OnlineStore
from featurestore.telemetry import get_logger

POLL_SECONDS = 0.5
TRUSTED_SECONDS = 3 * POLL_SECONDS
"""A comparison is good for so long."""
DEFAULT_LAG = SECOND
"""µs that a replica may be behind where the view has no `freshness`."""

_log = get_logger(__name__)


class ReplicaWatch:
    """Compares fences in the background. Until it has, and while a server does not answer, nothing is `in_step`."""

    def __init__(self, primary: OnlineStore, replica: OnlineStore, views: Callable[[], Iterable[CompiledView]]) -> None:
        self._primary, self._replica, self._views = primary, replica, views
        self._in_step: frozenset[str] = frozenset()
        self._compared = float("-inf")
        self._trouble = ""

    def in_step(self, view_id: str) -> bool:
        if asyncio.get_running_loop().time() - self._compared > TRUSTED_SECONDS:
            return False
        return view_id in self._in_step

    async def run(self) -> None:
        """Compares until cancelled; trouble is logged once and then waited out."""
        while True:
            try:
                await self.compare()
                self._trouble = ""
            except FeatureStoreError as error:
                if self._trouble != error.code:
                    _log.warning("the replica is not asked", reason=error.message)
                self._trouble = error.code
            await asyncio.sleep(POLL_SECONDS)

    async def compare(self) -> None:
        """Raises Unavailable."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        found = set()
        for view in list(self._views()):
            primary, replica = await self._primary.fences(view.id), await self._replica.fences(view.id)
            lag = DEFAULT_LAG if view.freshness is None else view.freshness
            if _behind(primary, replica) <= lag:
                found.add(view.id)
        self._in_step, self._compared = frozenset(found), started


def _behind(primary: Mapping[int, Fence], replica: Mapping[int, Fence]) -> float:
    """µs between what the primary has and what the replica has; infinite where they cannot be compared."""
    worst = 0.0
    for partition, fence in primary.items():
        copy = replica.get(partition)
        if copy is None or copy.generation != fence.generation:
            return float("inf")
        if copy.position < fence.position:
            worst = max(worst, fence.written_at - copy.written_at)
    return worst
