"""What a lookup found, column by column, and its three shapes as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import msgspec
import numpy as np

from featurestore.clock import SECOND, format_instant
from featurestore.engine.columns import NEVER
from featurestore.serving.plan import LookupPlan
from featurestore.serving.requests import KeyValue
from featurestore.types import STATUS_CODES, STATUSES, Status

Origin = Literal["online", "lake", "mixed"]

_FIRST_DEGRADED = STATUS_CODES[Status.STALE]
_TEXTS = np.array([str(status) for status in STATUSES], object)
_encode, _encode_lines = msgspec.json.Encoder().encode, msgspec.json.Encoder().encode_lines
_decode_cells = msgspec.json.Decoder(list[msgspec.Raw]).decode_lines
_QUOTED = [_encode(str(status)) for status in STATUSES]


@dataclass(eq=False)
class Block:
    """n rows of one plan, of one request or of several that were evaluated together."""

    make_columns: Callable[[], list[list[Any]]]
    status: np.ndarray
    """`uint8[columns, n]`, codes of `types.STATUS_CODES`."""
    as_of: list[np.ndarray]
    """`int64[n]` µs per column; NEVER where a value stands on no event."""
    at: list[np.ndarray]
    """`int64[n]` µs per column: the instant each value holds for."""
    lines: list[bytes] | None = None
    """The values of each row as a JSON array, where they are at hand. None once a value was replaced."""

    @cached_property
    def columns(self) -> list[list[Any]]:
        """JSON-ready values, one list of n per column of the answer. Whoever replaces some sets `lines` to None."""
        return self.make_columns()

    @cached_property
    def lowest_and_highest(self) -> tuple[int, int]:
        return (int(self.status.min()), int(self.status.max())) if self.status.size else (0, 0)

    @cached_property
    def rows(self) -> list[tuple[Any, ...]]:
        return list(zip(*self.columns, strict=True))

    @cached_property
    def row_statuses(self) -> list[bytes]:
        """What each row is worth, as JSON: one text or, where values differ, one for each."""
        low, high = self.lowest_and_highest
        if low == high:
            return [_QUOTED[low]] * self.status.shape[1]
        first = self.status[0]
        texts = [_QUOTED[code] for code in first.tolist()]
        mixed = np.flatnonzero((self.status != first).any(axis=0))
        for row, statuses in zip(mixed.tolist(), _TEXTS[self.status[:, mixed].T].tolist(), strict=True):
            texts[row] = _encode(statuses)
        return texts


def placeholder(plan: LookupPlan, rows: int, at: int, status: Status) -> Block:
    """Declared defaults, else nulls, for rows that could not be read."""
    width = len(plan.defaults)
    never, instant = np.full(rows, NEVER, np.int64), np.full(rows, at, np.int64)
    return Block(
        lambda: [[default] * rows for default in plan.defaults],
        status=np.full((width, rows), STATUS_CODES[status], np.uint8),
        as_of=[never] * width,
        at=[instant] * width,
    )


@dataclass(frozen=True, slots=True)
class Form:
    """What a JSON answer looks like."""

    shape: str = "lean"
    """A key of SHAPES."""
    types: bool = False
    """Whether it has the types of keys and features."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Rows `start` to `stop` of a block, which is one request's part of it."""

    block: Block
    start: int
    stop: int
    at: int
    """The request's T, µs."""
    source: Origin = "online"

    @property
    def degraded(self) -> bool:
        """Whether some value is worth less than the truth: stale, behind, or not read at all."""
        if self.block.lowest_and_highest[1] < _FIRST_DEGRADED or self.start == self.stop:
            return False
        return int(self.block.status[:, self.start : self.stop].max()) >= _FIRST_DEGRADED


def encode(plan: LookupPlan, answer: Answer, entities: Sequence[list[KeyValue]], form: Form, spent_ms: float) -> bytes:
    """The response's body."""
    member, body = SHAPES[form.shape](plan, answer, entities)
    return b"".join(
        (
            plan.head,
            _instant(answer.at),
            b'","spent_ms":%.3f,"source":"%s","features":' % (spent_ms, answer.source.encode()),
            plan.names,
            plan.types if form.types else b"",
            member,
            body,
            b"}",
        )
    )


@lru_cache(maxsize=64)
def _instant(at: int) -> bytes:
    """Answers of one batch hold for one instant."""
    return format_instant(at).encode()


def _lean(plan: LookupPlan, answer: Answer, entities: Sequence[list[KeyValue]]) -> tuple[bytes, bytes]:
    """Rows are JSON arrays already, or are encoded all at once, and what is between them is put in afterwards: objects
    take longer."""
    lines = _lines(answer)
    if not lines:
        return b',"rows":', b"[]"
    low, high = answer.block.lowest_and_highest
    if low == high:
        between = b',"status":%b},{"values":' % _QUOTED[low]
        return b',"rows":[{"values":', b'%b,"status":%b}]' % (between.join(lines), _QUOTED[low])
    statuses = answer.block.row_statuses[answer.start : answer.stop]
    shown = [b'{"values":%b,"status":%b}' % pair for pair in zip(lines, statuses, strict=True)]
    return b',"rows":[', b",".join(shown) + b"]"


def _lines(answer: Answer) -> list[bytes]:
    if answer.block.lines is not None:
        return answer.block.lines[answer.start : answer.stop]
    return _each(answer.block.rows[answer.start : answer.stop])


def _by_column(plan: LookupPlan, answer: Answer, entities: Sequence[list[KeyValue]]) -> tuple[bytes, bytes]:
    part = slice(answer.start, answer.stop)
    columns = [
        {"values": values[part], "status": _column_status(status[part])}
        for values, status in zip(answer.block.columns, answer.block.status, strict=True)
    ]
    return b',"columns":', _encode(columns)


def _column_status(status: np.ndarray) -> Any:
    same = status.size > 0 and bool((status == status[0]).all())
    return _TEXTS[status[0]] if same else _TEXTS[status].tolist()


def _full(plan: LookupPlan, answer: Answer, entities: Sequence[list[KeyValue]]) -> tuple[bytes, bytes]:
    """What rows are made of is encoded column by column, and put into a frame of a row."""
    block, part = answer.block, slice(answer.start, answer.stop)
    low, high = block.lowest_and_highest
    frame = plan.row_frame(_QUOTED[low] if low == high else None)
    columns: list[Sequence[bytes]] = [_each(column) for column in entities]
    ages: dict[tuple[int, int], list[bytes]] = {}
    for values, status, as_of, at in zip(_values(answer), block.status, block.as_of, block.at, strict=True):
        age = ages.get((id(as_of), id(at)))  # most features of a view stand on the same events
        if age is None:
            age = ages[id(as_of), id(at)] = _ages(as_of[part], at[part])
        statuses = [] if low == high else [[_QUOTED[code] for code in status[part].tolist()]]
        columns += [values, *statuses, age]
    rows = [frame % row for row in zip(*columns, strict=True)]
    return b',"rows":[', b",".join(rows) + b"]"


def _values(answer: Answer) -> list[Sequence[bytes]]:
    """As JSON, column by column."""
    block = answer.block
    if block.lines and answer.start < answer.stop:
        lines = block.lines[answer.start : answer.stop]
        return list(zip(*_decode_cells(b"\n".join(lines)), strict=True))
    return [_each(values[answer.start : answer.stop]) for values in block.columns]


def _each(values: Sequence[Any]) -> list[bytes]:
    """No value has a line's end that is not escaped."""
    return _encode_lines(values).splitlines()


def _ages(as_of: np.ndarray, at: np.ndarray) -> list[bytes]:
    """The members for event times and ages in seconds; null where there is no event."""
    written = np.datetime_as_string(as_of.astype("M8[us]")).tolist()
    ages = _each(((at - as_of) / SECOND).tolist())
    members = [
        b'"as_of":"%bZ","age_seconds":%b' % (text.removesuffix(".000000").encode(), age)
        for text, age in zip(written, ages, strict=True)
    ]
    for row in np.flatnonzero(as_of == NEVER).tolist():
        members[row] = b'"as_of":null,"age_seconds":null'
    return members


SHAPES: dict[str, Callable[[LookupPlan, Answer, Sequence[list[KeyValue]]], tuple[bytes, bytes]]] = {
    "lean": _lean,
    "full": _full,
    "columns": _by_column,
}
"""Value of `?shape=` → the envelope's last member, name and content."""
