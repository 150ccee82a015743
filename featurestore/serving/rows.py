"""Rows of one view that were evaluated, and those of before that still hold.

Values are a function of what is stored and of which tiles are inside their windows. So the row of some stored bytes
holds until a tile leaves a window: whoever reads the same bytes before that has the same row, and need not evaluate
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import msgspec
import numpy as np

from featurestore import telemetry
from featurestore.engine.array import every, some
from featurestore.engine.lasting import FOREVER
from featurestore.engine.read import Reading, ViewReader

_NEVER, _BLANK, _FIXED = 0, 1, 2
"""Places of a row that never holds, of that of an entity that was not found, and how many such places there are."""
_FACTS = 4
_LATEST, _PARTITION, _SINCE, _UNTIL = range(_FACTS)
"""What is known of each row: its entity's latest event and partition, and when it holds, all µs but the partition."""
_ENTRY_BYTES = 360
"""What a kept row takes beside its texts, in Python's objects and places in arrays."""

_encode_lines, _decode_lines = msgspec.json.Encoder().encode_lines, msgspec.json.Decoder().decode_lines
_evaluated, _remembered = (telemetry.LOOKUP_ROWS.labels(how).inc for how in ("evaluated", "remembered"))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """n rows of some features of a view."""

    found: np.ndarray
    at: np.ndarray
    partition: np.ndarray
    """As `Reading` has them."""
    answerable: np.ndarray
    columns: Callable[[], list[list[Any]]]
    """JSON-ready values by feature."""
    status: np.ndarray
    """`uint8[features, n]`"""
    as_of: list[np.ndarray]
    """`int64[n]` µs by feature. Features that stand on the same events share one."""
    lines: list[bytes] | None = None
    """Each row as a JSON array, where they are at hand."""


def rows_of(reading: Reading, features: Sequence[int]) -> Rows:
    chosen = [reading.columns[feature] for feature in features]
    status = np.array([column.status for column in chosen], np.uint8).reshape(len(chosen), reading.at.size)
    return Rows(
        reading.found,
        reading.at,
        reading.partition,
        reading.answerable,
        lambda: [column.to_list() for column in chosen],
        status,
        [column.as_of for column in chosen],
    )


def _decoded(lines: Sequence[bytes]) -> list[list[Any]]:
    found: list[list[Any]] = _decode_lines(b"\n".join(lines))
    return found


class Room:
    """Bounds what the rows of all views take together. One per process."""

    def __init__(self, max_bytes: int, least_rows: int = 2_000) -> None:
        """A view may keep `least_rows` whatever others take."""
        self.max_bytes, self.least_rows = max_bytes, least_rows
        self.taken = 0
        telemetry.REMEMBERED_BYTES.set_function(lambda: self.taken)

    @property
    def full(self) -> bool:
        return self.taken > self.max_bytes


class RememberedRows:
    """Evaluates stored values of one view for the present, or has done so before. For one thread.

    Rows stand in the order in which they were evaluated, also where an entity's row is another one now. When there is
    no more room the oldest are overwritten: nothing is looked for, and nothing is done at once for many.
    """

    def __init__(self, reader: ViewReader, features: Sequence[int], room: Room) -> None:
        self._reader, self._features, self._room = reader, tuple(features), room
        blank = reader.read([None], None, 0)
        arrays = [id(blank.columns[feature].as_of) for feature in self._features]
        shared = sorted(set(arrays), key=arrays.index)
        self._as_of_of = [shared.index(array) for array in arrays]
        """Of each feature, which of the arrays `as_of` it has: most have the same."""
        self._as_of_by = [self._features[arrays.index(array)] for array in shared]
        """Of each of those arrays, a feature that has it."""
        self._places: dict[bytes | None, int] = {}
        """By stored value."""
        self._values: list[bytes | None] = []
        self._lines: list[bytes] = []
        self._status = np.empty((0, len(self._features)), np.uint8)
        self._as_of = np.empty((0, len(shared)), np.int64)
        self._facts = np.empty((0, _FACTS), np.int64)
        self._oldest = _FIXED
        """Where the next row goes when there is no more room."""
        self._add(range(_FIXED), [None] * _FIXED, 0)
        self._places[None] = _BLANK
        self._facts[_NEVER, _UNTIL] = self._facts[_BLANK, _SINCE] = -FOREVER
        self._facts[_BLANK, _UNTIL] = FOREVER  # no tile leaves where there is none

    def leave(self) -> None:
        """Gives the room back. Nothing is read afterwards."""
        self._room.taken -= self._bytes_of(range(len(self._values)))

    def read(self, values: Sequence[bytes | None], now: int) -> Rows:
        """As `ViewReader.read` for `at` None. Raises Corrupt."""
        chosen = np.fromiter(map(self._places.get, values, repeat(_NEVER)), np.intp, len(values))
        facts = self._facts.take(chosen, axis=0)
        holds = (facts[:, _SINCE] <= now) & (now < facts[:, _UNTIL])
        evaluated = 0
        if not every(holds):
            rows, space = self._to_evaluate(holds, chosen)
            chosen[rows] = space
            self._add(space, [values[row] for row in rows.tolist()], now)
            facts = self._facts.take(chosen, axis=0)
            evaluated = rows.size
            _evaluated(evaluated)
        _remembered(len(values) - evaluated)
        return self._chosen(chosen, facts, now)

    def _to_evaluate(self, holds: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, range]:
        """Which rows, and where they are put. A row that holds, and would be overwritten by that, is one of them."""
        while True:
            rows = np.flatnonzero(~holds)
            space = self._space(rows.size)
            lost = holds & (chosen >= space.start) & (chosen < space.stop)
            if not some(lost):
                return rows, space
            holds &= ~lost

    def _space(self, count: int) -> range:
        size = len(self._values)
        if not self._room.full or size - _FIXED < max(self._room.least_rows, count):
            return range(size, size + count)
        start = self._oldest if self._oldest + count <= size else _FIXED
        return range(start, start + count)

    def _chosen(self, chosen: np.ndarray, facts: np.ndarray, now: int) -> Rows:
        by_array = list(self._as_of.take(chosen, axis=0).T)
        lines = list(map(self._lines.__getitem__, chosen.tolist()))
        return Rows(
            chosen != _BLANK,
            np.maximum(facts[:, _LATEST], now),
            facts[:, _PARTITION],
            np.ones(chosen.shape, np.bool_),
            lambda: [list(column) for column in zip(*_decoded(lines), strict=True)] or [[] for _ in self._features],
            self._status.take(chosen, axis=0).T,
            [by_array[i] for i in self._as_of_of],
            lines,
        )

    def _add(self, space: range, values: list[bytes | None], now: int) -> None:
        """Evaluates rows and puts them there, over others or behind them."""
        reading = self._reader.read(values, None, now)
        chosen = [reading.columns[feature] for feature in self._features]
        self._grow(space.stop)
        part = slice(space.start, space.stop)
        for i, column in enumerate(chosen):
            self._status[part, i] = column.status
        for i, feature in enumerate(self._as_of_by):
            self._as_of[part, i] = reading.columns[feature].as_of
        until = self._reader.until(reading)
        for i, fact in ((_LATEST, reading.latest), (_PARTITION, reading.partition), (_SINCE, now), (_UNTIL, until)):
            self._facts[part, i] = fact
        if space.start < len(self._values):
            self._room.taken -= self._bytes_of(space)
            self._oldest = space.stop
            # A value that has a newer row loses that too, and is evaluated once more.
            deque(map(self._places.pop, self._values[part], repeat(None)), maxlen=0)
        self._values[part] = values
        rows = list(zip(*[column.to_list() for column in chosen], strict=True))
        self._lines[part] = _encode_lines(rows).splitlines()
        self._places.update(zip(values, space, strict=True))
        self._room.taken += self._bytes_of(space)

    def _bytes_of(self, space: range) -> int:
        part = slice(space.start, space.stop)
        texts = chain(filter(None, self._values[part]), self._lines[part])
        return sum(map(len, texts)) + len(space) * _ENTRY_BYTES

    def _grow(self, rows: int) -> None:
        capacity = self._facts.shape[0]
        if rows > capacity:
            more = max(rows, 2 * capacity) - capacity
            self._status, self._as_of, self._facts = (
                np.concatenate([array, np.zeros((more, array.shape[1]), array.dtype)])
                for array in (self._status, self._as_of, self._facts)
            )
