"""How far the workers are, and what became of every event: read from the marks and fences that they store in Redis."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from featurestore.config import Settings
from featurestore.definitions.compiled import CompiledView
from featurestore.errors import Unavailable
from featurestore.online.fences import LEDGER, Fence, IntakeMark
from featurestore.online.store import OnlineStore

PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1
_NO_COUNTS = (0,) * len(LEDGER)


@dataclass(frozen=True, slots=True)
class Account:
    """One source partition as one view sees it: what was published to it, and where each event went."""

    view: str
    partition: int
    published: int
    applied: int
    duplicate: int
    late: int
    dead_lettered: int
    filtered: int

    @property
    def consumed(self) -> int:
        """Deliveries: an event that a restarted worker shuffled again is there twice, and dropped once."""
        return self.published + self.duplicate

    @property
    def balanced(self) -> bool:
        return self.published == self.applied + self.late + self.dead_lettered + self.filtered


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What Redis said at one moment. `marks` are by source partition, `fences` by view id and fold partition."""

    marks: Mapping[int, IntakeMark]
    fences: Mapping[str, Mapping[int, Fence]]

    @property
    def taken(self) -> int:
        """Records of the topic that are in the lake or among the dead letters; offsets have no holes here."""
        return sum(mark.offset + 1 for mark in self.marks.values())

    @property
    def refused(self) -> Mapping[str, int]:
        """Dead letters by reason."""
        reasons: Counter[str] = Counter()
        for mark in self.marks.values():
            reasons.update({name: n for name, n in mark.ledger.items() if name not in _INTAKE_COUNTS})
        return dict(sorted(reasons.items()))

    def folded(self, view: str) -> int:
        """Events that the view has decided about, each counted once."""
        counts = self._counts(view).values()
        return sum(consumed - duplicate for consumed, _, duplicate, *_ in counts)

    def accounts(self) -> Iterator[Account]:
        """One for each view and source partition."""
        for view in self.fences:
            counts = self._counts(view)
            for partition, mark in sorted(self.marks.items()):
                _, applied, duplicate, late, dead, filtered = counts.get(partition, _NO_COUNTS)
                dead += mark.ledger.get("dead_lettered", 0)
                yield Account(view, partition, mark.offset + 1, applied, duplicate, late, dead, filtered)

    def settled(self, published: int) -> bool:
        """Whether all that was published is stored, folded and readable."""
        valid = published - sum(mark.ledger.get("dead_lettered", 0) for mark in self.marks.values())
        return self.taken == published and all(self.folded(view) == valid for view in self.fences)

    def _counts(self, view: str) -> dict[int, tuple[int, ...]]:
        totals: dict[int, tuple[int, ...]] = {}
        for fence in self.fences[view].values():
            for partition, counts in fence.ledger.items():
                before = totals.get(partition, _NO_COUNTS)
                totals[partition] = tuple(a + b for a, b in zip(before, counts, strict=True))
        return totals


_INTAKE_COUNTS = frozenset({"consumed", "forwarded", "dead_lettered"})


def read_standing(settings: Settings, source: str, views: Mapping[str, CompiledView]) -> Standing:
    return asyncio.run(_read(settings, source, tuple(views)))


async def _read(settings: Settings, source: str, views: tuple[str, ...]) -> Standing:
    store = OnlineStore.connect(settings.redis, project=settings.project)
    try:
        marks = await store.intake_marks(source)
        return Standing(marks, {view: await store.fences(view) for view in views})
    finally:
        await store.close()


def wait_until_settled(look: Callable[[], Standing], published: int, check: Callable[[], None]) -> Standing:
    """Returns when nothing is on its way any more. `check` raises where a part has ended.

    Raises Unavailable when nothing moves for a minute.
    """
    moved, last = time.monotonic(), -1
    while True:
        standing = look()
        if standing.settled(published):
            return standing
        check()
        at = standing.taken + sum(standing.folded(view) for view in standing.fences)
        if at != last:
            moved, last = time.monotonic(), at
        elif time.monotonic() - moved > PATIENCE_SECONDS:
            folded = ", ".join(f"{view} {standing.folded(view):,}" for view in standing.fences)
            raise Unavailable(
                "worker",
                f"nothing has moved for {PATIENCE_SECONDS:.0f} s: of {published:,} events {standing.taken:,} are "
                f"stored, and folded are {folded}",
                hint="the end of the worker's log is above",
            )
        time.sleep(_POLL_SECONDS)
