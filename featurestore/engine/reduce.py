"""Reductions built on an aggregation's `merge` alone: by segment, along an axis, over ranges.

A state is a tuple of arrays that agree in their leading dimension(s). Every reduction halves: neighbours are merged
in pairs until one is left, so n rows cost n merges in about log2 n vectorised steps, on NumPy and CuPy alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from featurestore.engine.array import Array

State = tuple[Array, ...]
Merge = Callable[[Any, State, State], State]


def take(state: State, index: Any) -> State:
    return tuple(field[index] for field in state)


@dataclass(frozen=True, eq=False)
class Segments:
    """n sorted rows in runs: what reducing them needs to know, found once for every state that is reduced alike."""

    xp: Any
    ids: Array
    """`int64[n]`, ascending: the number of each row's segment."""
    count: int
    """Segments there are; a reduction by merging needs every one of them to have a row."""

    @cached_property
    def heads(self) -> Array:
        """The first row of each segment."""
        return self.xp.nonzero(self._starts)[0]

    @cached_property
    def _starts(self) -> Array:
        xp = self.xp
        return xp.concatenate([xp.ones(1, xp.bool_), self.ids[1:] != self.ids[:-1]])

    @cached_property
    def steps(self) -> tuple[tuple[Array, int], ...]:
        """Which rows take in the one so many places behind them, in this order, until the heads hold their segments.

        Each step merges the rows at even places of what is left of a segment with their neighbours, so that only rows
        that have one cost anything: most segments of a batch are a row or two beside a few long ones.
        """
        xp, rows = self.xp, self.ids.shape[0]
        lengths = xp.concatenate([self.heads[1:], xp.full(1, rows, self.heads.dtype)]) - self.heads
        number = xp.cumsum(self._starts) - 1
        left = xp.nonzero(lengths[number] > 1)[0]
        place = left - self.heads[number[left]]
        behind = lengths[number[left]] - place
        steps, step = [], 1
        while left.shape[0]:
            chosen = (place % (2 * step) == 0) & (behind > step)
            left, place, behind = left[chosen], place[chosen], behind[chosen]
            if left.shape[0]:
                steps.append((left, step))
            step *= 2
        return tuple(steps)


def by_segment(xp: Any, merge: Merge, state: State, segments: Segments) -> State:
    """Rows sorted by segment → one row per segment, in order."""
    if not state[0].shape[0]:
        return state
    if segments.steps:
        state = tuple(field.copy() for field in state)
    for left, step in segments.steps:
        merged = merge(xp, take(state, left), take(state, left + step))
        for field, both in zip(state, merged, strict=True):
            field[left] = both
    return take(state, segments.heads)


def along_axis(xp: Any, merge: Merge, state: State) -> State:
    """`[k, n, …]` → `[n, …]`, merging the k rows one by one with their neighbours; k >= 1."""
    while state[0].shape[0] > 1:
        size = state[0].shape[0]
        half = size // 2
        merged = merge(xp, take(state, slice(0, half)), take(state, slice(half, 2 * half)))
        if size % 2:
            merged = tuple(
                xp.concatenate([both, field[-1:]], axis=0) for both, field in zip(merged, state, strict=True)
            )
        state = merged
    return take(state, 0)


def over_ranges(
    xp: Any, merge: Merge, identity: Callable[[int], State], state: State, low: Array, high: Array
) -> State:
    """For each i, the merge of rows `low[i] … high[i] - 1` (identity where empty).

    A bottom-up segment tree: level k holds merges of aligned blocks of 2**k rows, and a range is at most two blocks
    of each level. Time O((n + m) log n) for m ranges over n rows, whatever their lengths.
    """
    result = identity(low.shape[0])
    low, high = low.copy(), xp.maximum(low, high)
    while True:
        active = low < high
        if not bool(active.any()):
            return result
        for side, block in ((active & (low % 2 == 1), low), (active & (high % 2 == 1), high - 1)):
            rows = xp.nonzero(side)[0]
            if rows.shape[0]:
                merged = merge(xp, take(result, rows), take(state, block[rows]))
                for field, values in zip(result, merged, strict=True):
                    field[rows] = values
        low, high = (low + 1) // 2, high // 2
        state = pair_up(xp, merge, identity, state)


def pair_up(xp: Any, merge: Merge, identity: Callable[[int], State], state: State) -> State:
    """Rows merged two by two; the last one alone where their number is odd."""
    rows = state[0].shape[0]
    if rows % 2:
        state = tuple(xp.concatenate([field, empty]) for field, empty in zip(state, identity(1), strict=True))
    return merge(xp, take(state, slice(0, None, 2)), take(state, slice(1, None, 2)))
