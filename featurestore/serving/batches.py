"""Requests that are answered together: what each waits for, and how stored values become their common block."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar, cast

import numpy as np

from featurestore.engine.read import ViewReader
from featurestore.engine.statuses import overlaid
from featurestore.errors import Corrupt
from featurestore.monitor.freshness import ViewFreshness
from featurestore.serving.answers import Answer, Block, placeholder
from featurestore.serving.fallback import Fallbacks, missing, not_vouched_for
from featurestore.serving.plan import LookupPlan, ViewPart
from featurestore.serving.problems import Refused
from featurestore.serving.rows import Rows, rows_of
from featurestore.telemetry import get_logger
from featurestore.types import STATUS_CODES, Status

STEP_VALUES = 8_000
"""Values evaluated in one go: 1 to 2 ms. Then whoever's budget ends meanwhile is answered first."""

_OK, _LATE = STATUS_CODES[Status.OK], STATUS_CODES[Status.LATE_PIPELINE]
_STALE, _UNAVAILABLE = STATUS_CODES[Status.STALE], STATUS_CODES[Status.UNAVAILABLE]

T = TypeVar("T")

_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class Waiting:
    """One request, from its arrival until its answer."""

    plan: LookupPlan
    keys: list[list[str | None]]
    """Canonical keys by view, then row."""
    rows: int
    at: int | None
    done: asyncio.Future[Answer]
    missing: np.ndarray | None = field(default=None)
    """`bool[rows]`: rows that online state cannot answer exactly."""
    group: Group | None = field(default=None)
    """Until it is answered: the two hold each other, and would stay until garbage is collected."""
    start: int = 0
    """Its first row in the group."""

    def answer(self, block: Block, start: int, at: int) -> None:
        self.group = None
        if not self.done.done():  # its budget may have run out meanwhile
            self.done.set_result(Answer(block, start, start + self.rows, at))

    def fail(self, error: Exception) -> None:
        self.group = None
        if not self.done.done():
            self.done.set_exception(error)

    def expire(self, fallbacks: Fallbacks, now: int, status: Status) -> None:
        """Answers with what is there; for the other views by their policy."""
        try:
            block = fallbacks.unread(self.plan, self.keys, self.rows, self.at, now, status, self._unread())
        except Refused as refused:
            self.fail(refused)
            return
        if self.group is not None and self.at is None:
            self.group.copy_read(block, self.start)
        self.answer(block, 0, now if self.at is None else self.at)

    def _unread(self) -> list[bool] | None:
        """By view; None where nothing was read, or nothing that may be shown before all is."""
        return None if self.group is None or self.at is not None else self.group.unread


class Group:
    """Requests of one plan, all with an instant of their own or all without, on their way to one block."""

    def __init__(self, plan: LookupPlan, waiting: list[Waiting], now: int) -> None:
        self.plan, self.waiting, self.now = plan, waiting, now
        self.rows = sum(w.rows for w in waiting)
        self.explicit = waiting[0].at is not None
        self.at = np.repeat([w.at or 0 for w in waiting], [w.rows for w in waiting]) if self.explicit else None
        self._parts: list[Block | None] = [None] * len(plan.parts)
        """Of each view that was read, a block with its columns only."""
        self._missing = np.zeros(self.rows, np.bool_)
        self._refused: list[tuple[np.ndarray, ViewPart, bool]] = []
        start = 0
        for one in waiting:
            one.group, one.start = self, start
            start += one.rows

    @property
    def unread(self) -> list[bool]:
        """By view."""
        return [part is None for part in self._parts]

    @property
    def left(self) -> bool:
        """Whether all have their answer already."""
        return all(one.done.done() for one in self.waiting)

    def keys(self, view: int) -> list[str | None]:
        """Of all rows, in this view."""
        if len(self.waiting) == 1:
            return self.waiting[0].keys[view]
        return list(chain.from_iterable(one.keys[view] for one in self.waiting))

    def evaluate(
        self, view: int, rows: slice, keys: list[str | None], values: list[bytes | None],
        fresh: ViewFreshness, fallbacks: Fallbacks,
    ) -> Block:  # fmt: skip
        """Some rows of one view, as a block of that view's columns alone."""
        part, at = self.plan.parts[view], None if self.at is None else self.at[rows]
        if fresh.unavailable:
            values = [None] * len(values)
        found, corrupt = _read(part, keys, values, at, self.now)
        overlay = _overlay(fresh, keys, found, corrupt)
        if not corrupt:
            self.remember(view, keys, values, fresh, fallbacks)
        block = _block(self.plan, part, found, overlay)
        lake = np.zeros(len(keys), np.bool_)
        if at is not None:
            # A key that left the store when it went idle still has a past.
            lake = (~found.answerable | (~found.found & (found.at < self.now))) & _present(keys)
            self._missing[rows] |= lake
        self._settle(part, rows, block, keys, ~found.found & ~lake, overlay, fallbacks)
        return block

    def remember(
        self, view: int, keys: list[str | None], values: list[bytes | None], fresh: ViewFreshness, fallbacks: Fallbacks
    ) -> None:
        """Keeps what all partitions vouch for: a value that is stale now is none to come back to."""
        if bool(((fresh.codes == _OK) | (fresh.codes == _LATE)).all()):
            fallbacks.remember(self.plan.parts[view], keys, values, self.now)

    def _settle(
        self, part: ViewPart, rows: slice, block: Block, keys: list[str | None], unseen: np.ndarray,
        overlay: np.ndarray | None, fallbacks: Fallbacks,
    ) -> None:  # fmt: skip
        """Applies the view's policies."""
        if overlay is not None:
            unseen = unseen & (overlay != _UNAVAILABLE)
            doubtful = (overlay == _STALE) | (overlay == _UNAVAILABLE)
            at = None if self.at is None else self.at[rows]
            self._refuse(part, rows, fallbacks.stand_in(self.plan, part, block, keys, doubtful, at, self.now), False)
        if part.view.on_missing == "error":
            self._refuse(part, rows, unseen, True)

    def _refuse(self, part: ViewPart, rows: slice, which: np.ndarray, unseen: bool) -> None:
        if which.any():
            of_group = np.zeros(self.rows, np.bool_)
            of_group[rows] = which
            self._refused.append((of_group, part, unseen))

    def put(self, view: int, blocks: Sequence[Block]) -> None:
        """Takes a view's columns: blocks of all rows, one after the other."""
        self._parts[view] = blocks[0] if len(blocks) == 1 else _one_below_the_other(blocks)

    def put_unread(self, view: int, fallbacks: Fallbacks) -> None:
        """The store did not answer for this view."""
        part, every = self.plan.parts[view], np.ones(self.rows, np.bool_)
        block = placeholder(self.plan, self.rows, self.now, Status.UNAVAILABLE)
        if self.at is not None:
            block.at = [self.at] * len(block.at)
        refused = fallbacks.stand_in(self.plan, part, block, self.keys(view), every, self.at, self.now)
        self._refuse(part, slice(0, self.rows), refused, False)
        self.put(view, [block])

    def hand_out(self) -> None:
        """Answers everyone who still waits."""
        block = _side_by_side(self.plan, self.rows, [part for part in self._parts if part is not None])
        for one in self.waiting:
            part = slice(one.start, one.start + one.rows)
            refusal = next((r for r in self._refused if r[0][part].any()), None) if self._refused else None
            if refusal is not None:
                _, view, unseen = refusal
                one.fail(Refused(missing(view) if unseen else not_vouched_for(view)))
                continue
            if self.explicit and self._missing[part].any():
                one.missing = self._missing[part]
            one.answer(block, one.start, self.now if one.at is None else one.at)

    def copy_read(self, block: Block, start: int) -> None:
        """Puts the columns of views that were read into a request's own block; its first row is `start` here."""
        rows = slice(start, start + block.status.shape[1])
        for part, read in zip(self.plan.parts, self._parts, strict=True):
            if read is None:
                continue
            block.lines = None
            for column, _ in part.picks:
                block.columns[column] = read.columns[column][rows]
                block.status[column] = read.status[column, rows]
                block.as_of[column], block.at[column] = read.as_of[column][rows], read.at[column][rows]


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One view of one group: what is read, and evaluated, at a time."""

    group: Group
    view: int
    keys: list[str | None]
    present: list[str]
    """The keys that are not null."""

    @property
    def wanted(self) -> tuple[str, list[str]]:
        return self.group.plan.parts[self.view].view.id, self.present

    def steps(self) -> Iterator[slice]:
        """Rows to evaluate at a time."""
        rows = max(64, STEP_VALUES // max(1, len(self.group.plan.parts[self.view].view.order)))
        return (slice(start, min(start + rows, len(self.keys))) for start in range(0, max(1, len(self.keys)), rows))


def grouped(batch: list[Waiting], now: int) -> list[Group]:
    groups: dict[tuple[LookupPlan, bool], list[Waiting]] = {}
    for waiting in batch:
        groups.setdefault((waiting.plan, waiting.at is not None), []).append(waiting)
    return [Group(plan, waiting, now) for (plan, _), waiting in groups.items()]


def slices_of(groups: Sequence[Group]) -> list[Slice]:
    found = []
    for group in groups:
        for view in range(len(group.plan.parts)):
            keys = group.keys(view)
            found.append(Slice(group, view, keys, without_nulls(keys)))
    return found


def without_nulls(keys: list[str | None]) -> list[str]:
    """The keys that are not null: mostly all of them, which is found out in a fraction of the time of a copy."""
    return cast(list[str], keys) if all(keys) else [key for key in keys if key is not None]


def shared_reads(slices: list[Slice], most: int) -> list[list[Slice]]:
    """Slices that are read with one command: all of them, or each by itself where there are more than `most` keys, so
    that a large request has some of its views when another is slow."""
    return [slices] if sum(len(one.present) for one in slices) <= most else [[one] for one in slices]


def scattered(keys: list[str | None], stored: list[bytes | None]) -> list[bytes | None]:
    """Stored values at the rows of their keys."""
    if len(stored) == len(keys):
        return stored
    following = iter(stored)
    return [None if key is None else next(following) for key in keys]


def _block(plan: LookupPlan, part: ViewPart, found: Rows, overlay: np.ndarray | None) -> Block:
    """With the view's columns only."""
    columns = [column for column, _ in part.picks]
    status = found.status if overlay is None else overlaid(found.status, overlay)
    if len(columns) == len(plan.dtypes) and plan.in_order:
        return Block(found.columns, status, found.as_of, [found.at] * len(columns), found.lines)
    width, none = len(plan.dtypes), np.empty(0, np.int64)

    def spread(values: Sequence[T], filler: T) -> list[T]:
        placed = [filler] * width
        for column, value in zip(columns, values, strict=True):
            placed[column] = value
        return placed

    wide = np.empty((width, found.at.size), np.uint8)
    wide[columns] = status
    at = spread([found.at] * len(columns), none)
    return Block(lambda: spread(found.columns(), []), wide, spread(found.as_of, none), at, found.lines)


def _one_below_the_other(blocks: Sequence[Block]) -> Block:
    """Rows of a view that were evaluated one part after the other."""
    lines = None
    if all(block.lines is not None for block in blocks):
        lines = list(chain.from_iterable(block.lines or () for block in blocks))
    return Block(
        lambda: [list(chain.from_iterable(parts)) for parts in zip(*(b.columns for b in blocks), strict=True)],
        np.concatenate([block.status for block in blocks], axis=1),
        _joined([block.as_of for block in blocks]),
        _joined([block.at for block in blocks]),
        lines,
    )


def _joined(parts: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    """Columns of all parts, one below the other. Columns that share an array in each part share one then too: what is
    made of it is made once."""
    made: dict[tuple[int, ...], np.ndarray] = {}
    joined = []
    for arrays in zip(*parts, strict=True):
        shared = tuple(map(id, arrays))
        if shared not in made:
            made[shared] = np.concatenate(arrays)
        joined.append(made[shared])
    return joined


def _side_by_side(plan: LookupPlan, rows: int, blocks: Sequence[Block]) -> Block:
    """Columns of all views, of the same rows."""
    if len(blocks) == 1:
        return blocks[0]
    owner = {column: block for part, block in zip(plan.parts, blocks, strict=True) for column, _ in part.picks}
    order = range(len(plan.dtypes))
    lines = None
    if plan.in_order and all(block.lines is not None for block in blocks):
        lines = [
            b"[%b]" % b",".join(parts) for parts in zip(*(_bare(block.lines or []) for block in blocks), strict=True)
        ]
    return Block(
        lambda: [owner[column].columns[column] for column in order],
        np.array([owner[column].status[column] for column in order], np.uint8).reshape(len(plan.dtypes), rows),
        [owner[column].as_of[column] for column in order],
        [owner[column].at[column] for column in order],
        lines,
    )


def _bare(lines: Sequence[bytes]) -> list[bytes]:
    """JSON arrays without their brackets."""
    return [line[1:-1] for line in lines]


def _overlay(fresh: ViewFreshness, keys: list[str | None], found: Rows, corrupt: list[int]) -> np.ndarray | None:
    if fresh.uniform == _OK and not corrupt:
        return None
    overlay = np.where(_present(keys), fresh.of(keys, found.partition, found.found), np.uint8(_OK))
    overlay[corrupt] = _UNAVAILABLE
    return overlay


def _present(keys: list[str | None]) -> np.ndarray:
    return np.fromiter((key is not None for key in keys), np.bool_, len(keys))


def _read(
    part: ViewPart, keys: list[str | None], values: list[bytes | None], at: np.ndarray | None, now: int
) -> tuple[Rows, list[int]]:
    """What was read, with rows whose bytes are damaged read as absent, and those rows."""
    try:
        if at is None and part.remembered is not None:
            return part.remembered.read(values, now), []
        return rows_of(part.reader.read(values, at, now), part.features), []
    except Corrupt as error:
        _log.error("stored values are damaged", reason=error.message)
    corrupt = _damaged(part.reader, values, 0, now)
    sound = list(values)
    for row in corrupt:
        sound[row] = None
    return rows_of(part.reader.read(sound, at, now), part.features), corrupt


def _damaged(reader: ViewReader, values: list[bytes | None], first: int, now: int) -> list[int]:
    """Rows (counted from `first`) that cannot be read, by halving."""
    try:
        reader.read(values, None, now)
    except Corrupt:
        if len(values) == 1:
            return [first]
        middle = len(values) // 2
        left = _damaged(reader, values[:middle], first, now)
        return left + _damaged(reader, values[middle:], first + middle, now)
    return []
