"""Ranges of events of which only those count that were visible at an instant: `as_served`.

Over rows in the order of (entity, event time), a tree knows of each aligned block of 2**k rows when its first and its
last row became visible. A question about a range is taken apart into blocks that were wholly visible at its instant.
Blocks that were not visible at all are left out; those between are opened. Events become visible about in the order
of their times, so few are opened, however many are late in the same way (a load, a lane that was behind).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.engine.reduce import Merge, Segments, State, by_segment, pair_up, take

_NEVER, _ALWAYS = np.iinfo(np.int64).max, np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """What m questions are about, as blocks. Level k has blocks of 2**k rows."""

    levels: tuple[tuple[np.ndarray, np.ndarray], ...]
    """For each level, pairs of a question and a block (`int64[p]` each), by question."""

    def last(self, questions: int, rows: int) -> np.ndarray:
        """`int64[m]`: the last visible row of each question, -1 where it has none; of `rows` rows."""
        found = np.full(questions, -1, np.int64)
        for level, (question, block) in enumerate(self.levels):
            np.maximum.at(found, question, np.minimum((block + 1) << level, rows) - 1)
        return found

    def merged(self, xp: Any, merge: Merge, identity: Callable[[int], State], state: State, questions: int) -> State:
        """For each question, the merge of its rows of `state` (identity where there are none)."""
        result = identity(questions)
        for level, (question, block) in enumerate(self.levels):
            if level:
                state = pair_up(xp, merge, identity, state)
            if not question.size:
                continue
            heads = np.concatenate([[True], question[1:] != question[:-1]])
            owner = question[heads]
            runs = Segments(xp, xp.asarray(np.cumsum(heads) - 1), owner.size)
            some = by_segment(xp, merge, take(state, xp.asarray(block)), runs)
            joined = merge(xp, take(result, xp.asarray(owner)), some)
            for field, values in zip(result, joined, strict=True):
                field[xp.asarray(owner)] = values
        return result


class VisibleTimes:
    """When each of n rows became visible (`int64[n]` µs), as the tree that `cover` asks."""

    def __init__(self, times: np.ndarray) -> None:
        self.times = times
        self._first, self._last = [times], [times]
        while self._first[-1].size > 1:
            self._first.append(_halved(self._first[-1], np.minimum, _NEVER))
            self._last.append(_halved(self._last[-1], np.maximum, _ALWAYS))

    def cover(self, low: np.ndarray, high: np.ndarray, at: np.ndarray) -> Cover:
        """The visible rows of `low[i] … high[i] - 1` at `at[i]`."""
        whole = _blocks(low, np.maximum(low, high))
        levels: list[tuple[np.ndarray, np.ndarray]] = [_NOTHING] * len(whole)
        opened = _NOTHING
        for level in reversed(range(len(whole))):
            question = np.concatenate([whole[level][0], opened[0]])
            block = np.concatenate([whole[level][1], opened[1]])
            visible = self._last[level][block] <= at[question]
            part = ~visible & (self._first[level][block] <= at[question])
            order = np.argsort(question[visible], kind="stable")
            levels[level] = (question[visible][order], block[visible][order])
            opened = self._open(question[part], block[part], level)
        return Cover(tuple(levels))

    def _open(self, question: np.ndarray, block: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Both halves of each block, as far as there are rows in them."""
        if not level:
            return _NOTHING
        halves = np.concatenate([2 * block, 2 * block + 1])
        there = halves < self._first[level - 1].size
        return np.concatenate([question, question])[there], halves[there]


_NOTHING = (np.empty(0, np.int64), np.empty(0, np.int64))


def _halved(values: np.ndarray, pick: Callable[..., np.ndarray], padding: int) -> np.ndarray:
    if values.size % 2:
        values = np.append(values, padding)
    return pick(values[::2], values[1::2])


def _blocks(low: np.ndarray, high: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """The fewest aligned blocks that make up each range, by level: at most two of each."""
    levels: list[tuple[np.ndarray, np.ndarray]] = []
    while True:
        active = low < high
        if not active.any():
            return levels
        left, right = np.flatnonzero(active & (low % 2 == 1)), np.flatnonzero(active & (high % 2 == 1))
        levels.append((np.concatenate([left, right]), np.concatenate([low[left], high[right] - 1])))
        low, high = (low + 1) // 2, high // 2
