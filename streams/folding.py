"""The decisions of one view in one partition: what is a duplicate, what to read, what to write, where to resume.

No I/O and no clock, so that the same object runs in a worker and in a simulation. The order of calls for one delivery:
`accept`, then `missing` and `load` until nothing is missing, then `apply`; when the writes are acknowledged, `confirm`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import compress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import DAY
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import SEQ_BITS, EventBatch
from featurestore.engine.packing import headers
from featurestore.engine.sections import GENERATION, HEADER_WORDS, OFFSET
from featurestore.engine.state import Folded, Outcome, ViewState
from featurestore.online.fences import Fence
from featurestore.online.keys import MAX_KEY_BYTES
from streams.stopping import PartitionStopped, StopReason

NOTHING = -1
"""The offset before the first."""
_NO_ROWS = np.empty(0, np.int64)

MISROUTED, KEY_TOO_LONG = "misrouted", "key_too_long"
_ERRORS = {
    MISROUTED: "the entity's value was written from another partition: its events must all have the same message key",
    KEY_TOO_LONG: f"the entity key is longer than {MAX_KEY_BYTES} bytes",
}


class Count(IntEnum):
    """Places in a ledger: `CONSUMED` is the sum of the others."""

    CONSUMED = 0
    APPLIED = 1
    DUPLICATE = 2
    LATE = 3
    DEAD_LETTERED = 4
    FILTERED = 5


_COUNT_OF = np.full(max(Outcome) + 1, Count.APPLIED, np.int64)
_COUNT_OF[Outcome.LATE] = Count.LATE
_COUNT_OF[Outcome.FILTERED] = Count.FILTERED
# A replay after a crash: the entity's stored value has the event already, and no fence has counted it yet.
_COUNT_OF[Outcome.DUPLICATE] = Count.APPLIED


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows of one source partition, as one record of the log delivers them."""

    source_partition: int
    source_offsets: np.ndarray
    """`int64[n]`, ascending."""
    log_offsets: np.ndarray
    """`int64[n]`, ascending: of the record that carries each row."""


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """What a batch of log records holds, for every view of a lane."""

    pieces: tuple[Piece, ...]
    events: EventBatch
    """The rows of all pieces, in order."""
    appended: np.ndarray
    """`int64[n]` µs: when the broker got the source record of each row."""
    first: int
    last: int
    """Log offsets that the delivery covers, both inclusive; also where it holds no rows."""

    def __len__(self) -> int:
        return len(self.appended)


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """The rows of a delivery that are new to a view."""

    events: EventBatch
    log_offsets: np.ndarray
    appended: np.ndarray
    rows: np.ndarray
    """`int64[n]`: their places in the delivery."""
    last: int
    vector: dict[int, int]
    ledger: dict[int, list[int]]
    begins: dict[int, int]
    first: int
    """Both as in a fence."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Canonical keys that cannot be folded here, and the reason code of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """What must be acknowledged before the fence may pass `fence.offset`."""

    keys: list[str]
    values: list[bytes]
    folded: Folded
    fence: Fence
    outcomes: np.ndarray
    """`int64[6]`: how many rows were counted as what, in the order of `Count`."""
    refused: tuple[tuple[str, str, np.ndarray], ...]
    """(reason code, error text, places in the delivery `int64[k]`) of rows that become dead letters."""


def retention_ms(view: CompiledView) -> int | None:
    """How long a stored value may lie idle; None where it never loses its meaning.

    Longer than any window, by as much again and a day at least: an expired value answers as if never seen.
    """
    if view.reach is None:
        return None
    return (view.reach + max(view.reach, DAY)) // 1000


class ViewFold:
    """One view in one partition of its log, from a fence on."""

    def __init__(self, view: CompiledView, partition: int, state: ViewState, fence: Fence | None) -> None:
        self.view, self.partition, self.state = view, partition, state
        self.ttl_ms = retention_ms(view)
        self._replaced: set[str] = set()
        """Entities whose values a backfill has replaced while this generation goes on. What they hold ends elsewhere
        than the fence, so that nothing may be written that was folded on it."""
        self.fence = fence or Fence(
            generation=0, offset=NOTHING, vector={}, ledger={}, event_time=0, broker_time=0, written_at=0
        )

    @property
    def resume(self) -> int:
        """The log offset to read from."""
        return self.fence.offset + 1

    def accept(self, delivery: Delivery) -> Accepted | None:
        """The part of a delivery that the view has not had; None where it had all of it. Raises PartitionStopped where
        log offsets between the fence and the delivery are missing.

        Rows of a source partition arrive in offset order, without holes and from at or before what was delivered, so
        whatever is at or below the highest offset delivered is a second delivery.
        """
        if delivery.last <= self.fence.offset:
            return None
        if self.fence.offset != NOTHING and delivery.first > self.resume:
            raise PartitionStopped(
                StopReason.GAP,
                f"{self.view.id} has had offset {self.fence.offset}, and the next one there is {delivery.first}",
            )
        vector = dict(self.fence.vector)
        ledger = {p: list(counts) for p, counts in self.fence.ledger.items()}
        begins, kept, start, whole = dict(self.fence.begins), [], 0, True
        for piece in delivery.pieces:
            size = len(piece.source_offsets)
            if not self.fence.generation and piece.source_partition not in vector:
                begins[piece.source_partition] = int(piece.source_offsets[0])
            had = vector.get(piece.source_partition, NOTHING)
            seen = 0
            if piece.source_offsets[0] <= had:
                counted = int(np.searchsorted(piece.log_offsets, self.fence.offset, "right"))
                seen = int(np.searchsorted(piece.source_offsets, had, "right"))
                # What is at or below the fence is in the vector too, and was counted then: only the rest is a
                # duplicate.
                _count(ledger, piece.source_partition, Count.DUPLICATE, seen - counted)
                whole = False
            vector[piece.source_partition] = max(had, int(piece.source_offsets[-1]))
            kept.append((start + seen, start + size))
            start += size
        rows = np.arange(start) if whole else np.concatenate([np.arange(a, b) for a, b in kept])
        log = np.concatenate([_NO_ROWS, *(p.log_offsets for p in delivery.pieces)])
        events = delivery.events if whole else delivery.events.take(rows)
        return Accepted(
            events=events,
            log_offsets=log if whole else log[rows],
            appended=delivery.appended if whole else delivery.appended[rows],
            rows=rows,
            last=delivery.last,
            vector=vector,
            ledger=ledger,
            begins=begins,
            first=delivery.first if self.fence.position == (0, NOTHING) else self.fence.first,
            refused=dict.fromkeys(_too_long(events), KEY_TOO_LONG),
        )

    def missing(self, accepted: Accepted) -> list[str]:
        """Keys whose stored values must be read before `apply`."""
        return [key for key in self.state.unknown(accepted.events) if key not in accepted.refused]

    def make_room(self) -> None:
        """Called when a load pushed out entities of the same batch: the cache is too small for both."""
        self.state.clear()
        self._replaced.clear()

    def load(self, accepted: Accepted, keys: Sequence[str], values: Sequence[bytes | None]) -> Accepted:
        """Takes in what was read. Entities that belong to another partition are set aside.

        A generation begins with the values of all entities that have events at or below its vector. So a value of an
        older one is of an entity that comes wholly from the log, and is computed anew from there.
        """
        generations = _generations(values)
        if self.fence.generation:
            older = (generations < self.fence.generation).tolist()
            values = [None if old else value for value, old in zip(values, older, strict=True)]
        self._replaced.difference_update(keys)
        self._replaced.update(compress(keys, (generations > self.fence.generation).tolist()))
        strangers = self.state.load(keys, values, self.partition)
        return replace(accepted, refused={**accepted.refused, **dict.fromkeys(strangers, MISROUTED)})

    def unfenced(self, keys: Sequence[str], values: Sequence[bytes | None]) -> dict[str, bytes]:
        """Which of the values that were read hold more than the fence says."""
        present = [(k, v) for k, v in zip(keys, values, strict=True) if v is not None and len(v) >= HEADER_WORDS * 8]
        found = headers([value for _, value in present])
        # A higher generation is its rebuild's to vouch for.
        ahead = (found[:, GENERATION] == self.fence.generation) & (found[:, OFFSET] > self.fence.offset)
        return dict(compress(present, ahead.tolist()))

    def apply(self, accepted: Accepted) -> Effects:
        """Folds the rows and says what to write."""
        events, log_offsets, appended = accepted.events, accepted.log_offsets, accepted.appended
        ledger = {p: list(counts) for p, counts in accepted.ledger.items()}
        reasons = _reasons(events.keys, accepted.refused)
        if accepted.refused:
            mine = np.nonzero(reasons < 0)[0]
            strange = reasons >= 0
            count_rows(ledger, events.seq[strange] >> SEQ_BITS, np.full(int(strange.sum()), Count.DEAD_LETTERED))
            events, log_offsets, appended = events.take(mine), log_offsets[mine], appended[mine]
        folded = self.state.fold(events, log_offsets)
        counts = counts_of(folded.outcome)
        count_rows(ledger, events.seq >> SEQ_BITS, counts)
        fence = Fence(
            generation=self.fence.generation,
            offset=accepted.last,
            vector=accepted.vector,
            ledger=ledger,
            event_time=max(self.fence.event_time, int(folded.latest.max(initial=0))),
            broker_time=max(self.fence.broker_time, int(appended.max(initial=0))),
            written_at=self.fence.written_at,
            loads=self.fence.loads,
            readable=self.fence.readable and self._replaced.isdisjoint(folded.keys),
            begins=accepted.begins,
            first=accepted.first,
        )
        values = self.state.encode(
            folded.slots, generation=fence.generation, partition=self.partition, offset=accepted.last
        )
        keys = folded.keys
        if self._replaced:
            stand = [key not in self._replaced for key in keys]
            keys, values = list(compress(keys, stand)), list(compress(values, stand))
        refused = tuple(
            (reason, _ERRORS[reason], accepted.rows[reasons == code])
            for code, reason in enumerate(_ERRORS)
            if (reasons == code).any()
        )
        return Effects(keys, values, folded, fence, totals(ledger) - totals(self.fence.ledger), refused)

    def confirm(self, effects: Effects) -> None:
        """Every effect is acknowledged: the view stands at the new fence."""
        self.fence = effects.fence


def _generations(values: Sequence[bytes | None]) -> np.ndarray:
    """`int64[n]`: of each value, `NOTHING` where there is none."""
    present = np.array([value is not None and len(value) >= HEADER_WORDS * 8 for value in values], np.bool_)
    found = np.full(present.size, NOTHING)
    found[present] = headers(values)[:, GENERATION]
    return found


def counts_of(outcomes: np.ndarray) -> np.ndarray:
    """`int64[n]`: the `Count` of each row, given the engine's `Outcome`."""
    counts: np.ndarray = _COUNT_OF[outcomes]
    return counts


def totals(ledger: Mapping[int, Sequence[int]]) -> np.ndarray:
    """`int64[6]`: a ledger summed over source partitions."""
    sums: np.ndarray = np.array(list(ledger.values()), np.int64).reshape(-1, len(Count)).sum(axis=0)
    return sums


def count_rows(ledger: dict[int, list[int]], partitions: np.ndarray, counts: np.ndarray) -> None:
    """Adds rows, given the source partition and the `Count` of each."""
    number = np.bincount(partitions * len(Count) + counts)
    for cell in np.flatnonzero(number).tolist():
        _count(ledger, cell // len(Count), Count(cell % len(Count)), int(number[cell]))


def _count(ledger: dict[int, list[int]], partition: int, kind: Count, rows: int) -> None:
    if rows:
        counts = ledger.setdefault(partition, [0] * len(Count))
        counts[kind] += rows
        counts[Count.CONSUMED] += rows


def _too_long(events: EventBatch) -> list[str]:
    keys, names = events.entities.keys, events.entities.names
    if 4 * max(map(len, names), default=0) <= MAX_KEY_BYTES:  # no character has more bytes
        return []
    found: list[str] = keys.filter(pc.greater(pc.binary_length(keys), MAX_KEY_BYTES)).to_pylist()
    return found


def _reasons(keys: pa.Array, refused: Mapping[str, str]) -> np.ndarray:
    """`int64[n]`: the place in `_ERRORS` of why each row is refused, -1 where it is not."""
    if not refused:
        return np.full(len(keys), -1)
    codes = {reason: code for code, reason in enumerate(_ERRORS)}
    table = np.array([*(codes[reason] for reason in refused.values()), -1])
    place = pc.index_in(keys, value_set=pa.array(list(refused), pa.string())).fill_null(len(refused))
    codes_of_rows: np.ndarray = table[place.to_numpy(zero_copy_only=False)]
    return codes_of_rows
