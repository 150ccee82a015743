"""What stands in for values that did not come, or that nobody vouches for: each view's policy, and what it was last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress, repeat

import numpy as np

from featurestore import telemetry
from featurestore.engine.columns import NEVER
from featurestore.errors import Corrupt
from featurestore.serving.answers import Block, placeholder
from featurestore.serving.plan import LookupPlan, ViewPart
from featurestore.serving.problems import Problem, Refused
from featurestore.types import STATUS_CODES, Status

Keys = Sequence[str | None]
"""Canonical, one for each row; None where a part of the key is null."""

_LAST_KNOWN = STATUS_CODES[Status.LAST_KNOWN]
_ENTRY_BYTES = 250
"""What a kept value takes beside its own bytes: its key, its instant and its place."""
_GENERATION, _STEP = 0.4, 0.1
"""Shares of the memory: one of the two generations, and what may be added to it until it is measured again."""


class LastKnown:
    """The last stored value of each (view, entity), with when it was read. What was read longest ago goes first.

    Values lie in two generations: whatever is read goes into the younger one, and when that is full it becomes the
    older one, whose values are forgotten. So nothing is done for a single value.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._young: dict[str, dict[str, tuple[int, bytes]]] = {}
        self._old: dict[str, dict[str, tuple[int, bytes]]] = {}
        self._added, self._measured = 0, 0
        telemetry.LAST_KNOWN_BYTES.set_function(lambda: self.size)

    @property
    def size(self) -> int:
        """Bytes, as far as they can be told."""
        return _size(self._young) + _size(self._old)

    def remember(self, view_id: str, keys: Keys, values: Sequence[bytes | None], now: int) -> None:
        """`values` as they are stored now (µs), one for each key; what is None is left as it was."""
        if not self._max:
            return
        entries = compress(zip(keys, zip(repeat(now), values, strict=False), strict=False), values)
        self._young.setdefault(view_id, {}).update(entries)  # type: ignore[arg-type]  # None was left out
        self._added += sum(map(len, filter(None, values))) + _ENTRY_BYTES * len(values)
        if self._added > self._measured:
            self._measure()

    def find(self, view_id: str, keys: Keys, since: int) -> tuple[list[bytes | None], np.ndarray]:
        """What was read at `since` or later, and when (`int64[n]` µs)."""
        young, old = self._young.get(view_id, {}), self._old.get(view_id, {})
        nothing = (NEVER, None)
        found = [nothing if key is None else young.get(key) or old.get(key) or nothing for key in keys]
        return [v if at >= since else None for at, v in found], np.array([at for at, _ in found], np.int64)

    def _measure(self) -> None:
        """Keys that are read over and over take room once, which counting what is added does not see."""
        self._added = _size(self._young)
        if self._added >= _GENERATION * self._max:
            self._old, self._young, self._added = self._young, {}, 0
        self._measured = self._added + int(_STEP * self._max)


def _size(generation: dict[str, dict[str, tuple[int, bytes]]]) -> int:
    return sum(len(value) + _ENTRY_BYTES for view in generation.values() for _, value in view.values())


class Fallbacks:
    """Applies the policies of views. One per process."""

    def __init__(self, last_known: LastKnown) -> None:
        self._last_known = last_known

    def remember(self, part: ViewPart, keys: Keys, values: Sequence[bytes | None], now: int) -> None:
        """Keeps values where the view's policy may want them again."""
        if part.view.stale_policy.action == "last_known":
            self._last_known.remember(part.view.id, keys, values, now)

    def unread(
        self,
        plan: LookupPlan,
        keys: Sequence[Keys],
        rows: int,
        at: int | None,
        now: int,
        status: Status,
        views: Sequence[bool] | None = None,
    ) -> Block:
        """A block for a request whose values did not come; `status` says why. `at` is the request's, µs.

        `views` says of each whether it is concerned: of the others the block has placeholders. Raises Refused for a
        view whose policy is `error`.
        """
        block = placeholder(plan, rows, now if at is None else at, status)
        every = np.ones(rows, np.bool_)
        for number, (part, of_view) in enumerate(zip(plan.parts, keys, strict=True)):
            concerned = views is None or views[number]
            if concerned and self.stand_in(plan, part, block, of_view, every, at, now).any():
                raise Refused(not_vouched_for(part))
        return block

    def stand_in(
        self,
        plan: LookupPlan,
        part: ViewPart,
        block: Block,
        keys: Keys,
        rows: np.ndarray,
        at: int | np.ndarray | None,
        now: int,
    ) -> np.ndarray:
        """Replaces the view's values in `rows` (`bool[n]`) as its policy says; their statuses stay, but for
        `last_known`. Returns the rows whose request has to be refused."""
        action = part.view.stale_policy.action
        chosen = np.flatnonzero(rows)
        if not chosen.size:
            return rows
        block.lines = None
        if action == "error":
            return rows & np.fromiter((key is not None for key in keys), np.bool_, len(keys))
        if action == "last_known":
            # An explicit instant is answered exactly or not at all.
            chosen = self._restore(part, block, keys, chosen, now) if at is None else chosen
            action = "default"
        values = _STAND_INS.get(action)
        if values is not None and chosen.size:
            _replace(part, block, chosen, values(plan))
            _count(part, action, chosen.size)
        return np.zeros(rows.size, np.bool_)

    def _restore(self, part: ViewPart, block: Block, keys: Keys, rows: np.ndarray, now: int) -> np.ndarray:
        """Puts last known values, as they were when they were read; returns the rows that have none."""
        asked = [keys[row] for row in rows.tolist()]
        values, read_at = self._last_known.find(part.view.id, asked, now - part.view.stale_policy.within)
        known = np.fromiter((value is not None for value in values), np.bool_, len(values))
        if not known.any():
            return rows
        try:
            reading = part.reader.read([v for v in values if v is not None], None, read_at[known])
        except Corrupt:
            return rows
        found = rows[known]
        for column, feature in part.picks:
            read = reading.columns[feature]
            _scatter(block.columns, column, found, read.to_list())
            block.status[column, found] = _LAST_KNOWN
            block.as_of[column] = _with(block.as_of[column], found, read.as_of)
        _count(part, "last_known", found.size)
        return rows[~known]


def not_vouched_for(part: ViewPart) -> Problem:
    detail = f"values of {part.view.name} could not be read in time, or nobody vouches for them"
    hint = "ask again in a moment; the view's on_stale is `error`, so that nothing stands in for them"
    return Problem(503, "not_vouched_for", detail, part.view.name, hint, headers=(("retry-after", "1"),))


def missing(part: ViewPart) -> Problem:
    detail = f"{part.view.name} has never seen one of the entities"
    hint = "leave it out, or correct its key; the view's on_missing is `error`"
    return Problem(422, "entity_missing", detail, f"entities.{next(iter(part.view.keys))}", hint)


_STAND_INS: dict[str, Callable[[LookupPlan], Sequence[object]]] = {
    "default": lambda plan: plan.defaults,
    "null": lambda plan: [None] * len(plan.defaults),
}
"""By action, the value for each column. `serve` is not there: it leaves what stands."""


def _replace(part: ViewPart, block: Block, rows: np.ndarray, values: Sequence[object]) -> None:
    for column, _ in part.picks:
        _scatter(block.columns, column, rows, [values[column]] * rows.size)
        block.as_of[column] = _with(block.as_of[column], rows, NEVER)


def _scatter(columns: list[list[object]], column: int, rows: np.ndarray, values: Sequence[object]) -> None:
    """The column's list is replaced, since several columns of a block may share one."""
    changed = columns[column] = list(columns[column])
    for row, value in zip(rows.tolist(), values, strict=True):
        changed[row] = value


def _with(array: np.ndarray, rows: np.ndarray, values: np.ndarray | int) -> np.ndarray:
    changed = array.copy()
    changed[rows] = values
    return changed


def _count(part: ViewPart, kind: str, rows: int) -> None:
    telemetry.FALLBACK_ROWS.labels(part.view.id, kind).inc(rows)
