"""When events became readable online: `visible/<view>@<v>`, and the instant it gives each event.

A row says that at its instant every event of a source partition up to an offset was readable, as far as its entity
belongs to an entity partition. So an event was readable at the earliest instant of the rows at or beyond its offset:
what a replay or a rebuild adds later changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import SEQ_BITS, EventBatch
from featurestore.engine.placement import partitions_of
from featurestore.errors import Unavailable
from featurestore.offline.events import VISIBLE_TIME
from featurestore.offline.files import OFFSET, PARTITION, READ
from featurestore.offline.lake import Lake

SOURCE_PARTITION, AFTER, UP_TO, PARTITIONS = "source_partition", "after", "up_to", "partitions"

ROWS = pa.schema(
    {
        PARTITION: pa.int32(),
        OFFSET: pa.int64(),
        SOURCE_PARTITION: pa.int32(),
        AFTER: pa.int64(),
        UP_TO: pa.int64(),
        PARTITIONS: pa.int32(),
        VISIBLE_TIME: pa.timestamp("us", "UTC"),
    }
)
"""Of `visible/<view>@<v>`. `_partition` is the entity partition, of `partitions` (0: they are the source's own), and
`_offset` a place in the log that fold reads. Of the source partition, what is in `(after, up_to]` was new."""

NOT_YET = int(np.iinfo(np.int64).max)
"""Of an event that was not readable when the lake was read."""

_OFFSETS = (1 << SEQ_BITS) - 1
_SOURCES_OWN = 0
_BEGINNING = -1


def visible_table(view: CompiledView) -> str:
    return f"visible/{view.id}"


@dataclass(frozen=True, slots=True)
class Known:
    """How many of a view's events have which kind of instant."""

    recorded: int = 0
    """Fold recorded when they became readable."""
    from_intake: int = 0
    """They are older than what fold recorded, or were loaded: the `visible_time` of their own row stands in."""
    not_yet: int = 0
    """They are in the lake, and were not readable."""

    def __add__(self, other: Known) -> Known:
        return Known(self.recorded + other.recorded, self.from_intake + other.from_intake, self.not_yet + other.not_yet)


class Visibility:
    """When the events of one view became readable."""

    def __init__(self, rows: pa.Table) -> None:
        """`rows` as in `ROWS`, in any order."""
        columns = {name: rows[name].cast(pa.int64()).to_numpy() for name in ROWS.names}
        order = np.lexsort([columns[name] for name in (UP_TO, SOURCE_PARTITION, PARTITION, PARTITIONS)])
        columns = {name: values[order] for name, values in columns.items()}
        self._placings = np.unique(columns[PARTITIONS]).tolist()
        self._offsets, rank = np.unique(columns[UP_TO], return_inverse=True)
        place = np.stack([columns[PARTITIONS], columns[PARTITION], columns[SOURCE_PARTITION]], axis=1)
        self._pairs, starts, pair = np.unique(place, axis=0, return_index=True, return_inverse=True)
        self._codes = pair.reshape(-1) * (self._offsets.size + 1) + rank.reshape(-1)
        ends = np.append(starts, len(order))
        self._instants, self._since = columns[VISIBLE_TIME].copy(), np.full(len(starts), _BEGINNING)
        self._ends = ends[1:]
        began: dict[tuple[int, ...], int] = {}
        for i, (start, end) in enumerate(pairwise(ends.tolist())):
            home = tuple(self._pairs[i, :2].tolist())
            began[home] = min(began.get(home, NOT_YET), int(self._instants[start:end].min()))
        for i, (start, end) in enumerate(pairwise(ends.tolist())):
            instants = self._instants[start:end]
            first = int(instants.argmin())
            # A pair that came later began from nothing: all that it had before the record began, the first row says.
            if instants[first] == began[tuple(self._pairs[i, :2].tolist())]:
                self._since[i] = columns[AFTER][start:end][instants == instants[first]].max()
            instants[:] = np.minimum.accumulate(instants[::-1])[::-1]

    @classmethod
    def read(cls, lake: Lake, view: CompiledView, version: int | None = None) -> Visibility:
        """A view without such a table has recorded nothing. Raises Unavailable."""
        snapshot = lake.snapshot(visible_table(view), version)
        pieces = [ROWS.empty_table()]
        try:
            for fragments in () if snapshot is None else snapshot.place.fragments(sorted(_paths(snapshot.files))):
                pieces.append(pads.FileSystemDataset(fragments, ROWS, READ).to_table())
        except (OSError, pa.ArrowException) as error:
            text = " ".join(str(error).split())[:300]
            hint = "a file of the lake is damaged or gone: restore it"
            raise Unavailable("lake", f"cannot read {visible_table(view)} in {lake.url}: {text}", hint=hint) from error
        return cls(pa.concat_tables(pieces))

    def of(self, events: EventBatch) -> tuple[np.ndarray, Known]:
        """`int64[n]` µs: when each event became readable, `NOT_YET` where it had not.

        The events' own `visible_time`, when intake took them or what the load said, counts where fold recorded
        nothing: for what was loaded, and for what is older than the record.
        """
        taken = events.columns[VISIBLE_TIME].cast(pa.int64()).to_numpy()
        return self.of_rows(events.seq, taken, lambda count: partitions_of(events.keys, count, _BEGINNING))

    @property
    def placings(self) -> Sequence[int]:
        """How many entity partitions there have been: one number, as long as nobody changes it."""
        return [count for count in self._placings if count != _SOURCES_OWN]

    def of_rows(
        self, seq: np.ndarray, taken: np.ndarray, homes: Callable[[int], np.ndarray]
    ) -> tuple[np.ndarray, Known]:
        """As `of`; `homes` gives each event's entity partition, of so many, -1 where it has no key."""
        partition, offset = seq >> SEQ_BITS, seq & _OFFSETS
        result, older = np.full(offset.size, NOT_YET), (partition < 0) | (not self._placings)
        rank = np.searchsorted(self._offsets, offset)
        for count in self._placings:
            home = partition if count == _SOURCES_OWN else _homes(homes(count), count, partition)
            pair, there = self._find(count, home, partition)
            row = np.searchsorted(self._codes, pair * (self._offsets.size + 1) + rank)
            seen = there & (row < self._ends[pair])
            older |= there & (offset <= self._since[pair])
            instants = self._instants[np.minimum(row, self._instants.size - 1)]
            result = np.where(seen, np.minimum(result, instants), result)
        result = np.where(older, taken, result)
        waiting = int((result == NOT_YET).sum())
        return result, Known(offset.size - int(older.sum()) - waiting, int(older.sum()), waiting)

    def _find(self, count: int, home: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pair of each event, and whether it has one."""
        mine = np.flatnonzero(self._pairs[:, 0] == count)
        width = int(max(self._pairs[:, 2].max(), origin.max(initial=0))) + 2
        known = self._pairs[mine, 1] * width + self._pairs[mine, 2]
        wanted = home * width + np.maximum(origin, -1)
        place = np.minimum(np.searchsorted(known, wanted), mine.size - 1)
        return mine[place], known[place] == wanted


def _homes(homes: np.ndarray, count: int, partition: np.ndarray) -> np.ndarray:
    """An event without a key goes where its source partition says."""
    return np.where(homes == _BEGINNING, partition % count, homes)


def _paths(files: pa.Table) -> list[str]:
    paths: list[str] = files["path"].to_pylist()
    return paths
