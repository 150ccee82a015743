"""The walk over stored values, entity by entity and tile by tile: what `kernel` compiles.

Loops over arrays of numbers, in the part of Python that Numba translates: a step costs a microsecond as it stands here,
and a nanosecond compiled. Compiled they are the quick way to the merged states of a lookup; `packing.open_values` and
`folds` are the way without a compiler, and say what is right.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from featurestore.engine.exact import add, scale, two_sum
from featurestore.engine.packing import FINGERPRINT, HEADER_WORDS, HEAP_WORD, MAGIC, TOTAL_WORDS

INT_MIN, INT_MAX = np.int64(-(2**63)), np.int64(2**63 - 1)

SUM, LEAST, GREATEST, LEAST_FLOAT, GREATEST_FLOAT, PAIR, MOMENTS, FIRST, LAST = range(9)
"""What a step does: the first six with a field of a partial, or with a pair of them, the others with all its fields."""
GROUP, WINDOW, HOP, BEGIN, END = range(5)
"""Columns of the spans: the group, µs of the window, µs of a hop (0: the whole history), and which steps are its."""


def check(words: Any, lengths: Any, expected: Any, widths: Any, header: Any, heaps: Any, tiles: Any, ends: Any) -> bool:
    """Reads the headers of n values that lie end to end, and finds the tiles of each group.

    `words` is `int64`, `lengths` `int64[n]` bytes, `expected` magic and fingerprint, `widths` `int64[groups]` words of
    a tile. Fills what `packing.Opened` has: `header`, `int64[n, HEADER_WORDS]`, `heaps`, `int64[2, n]`, `tiles` and
    `ends`, `int64[groups, n]`. False where some value is not what `packing.open_values` takes.
    """
    start = 0
    for i in range(lengths.size):
        size = lengths[i] >> 3
        if lengths[i] & 7 or size < HEADER_WORDS:
            return False
        for j in range(HEADER_WORDS):
            header[i, j] = words[start + j]
        heap = header[i, HEAP_WORD]
        known = header[i, MAGIC] == expected[0] and header[i, FINGERPRINT] == expected[1]
        if not known or header[i, TOTAL_WORDS] != size or heap > size:
            return False
        place = HEADER_WORDS
        for group in range(widths.size):
            width, count = widths[group], np.int64(-1)
            if place < heap:
                count = words[start + place]
            if count < 0 or count > (heap - place - 1) // width:
                return False
            place += 1 + count * width
            tiles[group, i], ends[group, i] = count, start + place
        if place != heap:
            return False
        heaps[0, i], heaps[1, i] = (start + heap) << 3, (start + size) << 3
        start += size
    return True


def fold(words: Any, tiles: Any, ends: Any, at: Any, widths: Any, spans: Any, steps: Any, out: Any) -> None:
    """Merges the tiles of each span that are inside its window at `at` (`int64[n]` µs).

    `words`, `tiles`, `ends` and `widths` are those of `check`; `spans` is `int64[s, 5]`; `steps` is `int64[m, 3]`: what
    is done, where the fields begin in a tile, and their first row in `out`, `int64[rows, n]`, which holds words too.
    """
    numbers, floats = words.view(np.float64), out.view(np.float64)
    for i in range(at.size):
        for s in range(spans.shape[0]):
            group, hop = spans[s, GROUP], spans[s, HOP]
            width, stop = widths[group], ends[group, i]
            start = stop - tiles[group, i] * width
            if hop > 0:
                oldest = (at[i] - spans[s, WINDOW]) // hop
                first, start = start, stop
                while start > first and words[start - width] >= oldest:
                    start -= width
            for m in range(spans[s, BEGIN], spans[s, END]):
                kind, run, row = steps[m, 0], (start + steps[m, 1], stop, width), steps[m, 2]
                if kind <= GREATEST:
                    out[row, i] = _of_words(kind, words, run)
                elif kind <= GREATEST_FLOAT:
                    floats[row, i] = _of_numbers(kind, numbers, run)
                elif kind == PAIR:
                    floats[row, i], floats[row + 1, i] = _pair(numbers, run)
                elif kind == MOMENTS:
                    out[row, i], floats[row + 1, i], floats[row + 2, i], floats[row + 3, i] = _moments(
                        words, numbers, run
                    )
                else:
                    out[row, i], out[row + 1, i], out[row + 2, i] = _end(words, run, kind == LAST)


Run: TypeAlias = tuple[int, int, int]
"""Places of a field's words: the first, what is behind the last, and the step between them."""


def _of_words(kind: int, words: Any, run: Run) -> Any:
    place, stop, step = run
    if kind == SUM:
        total = np.int64(0)
        while place < stop:
            total += words[place]
            place += step
        return total
    found = INT_MAX if kind == LEAST else INT_MIN
    while place < stop:
        found = min(found, words[place]) if kind == LEAST else max(found, words[place])
        place += step
    return found


def _of_numbers(kind: int, numbers: Any, run: Run) -> float:
    """What is no number stays, as in NumPy's minimum and maximum."""
    place, stop, step = run
    found = np.inf if kind == LEAST_FLOAT else -np.inf
    while place < stop:
        number = numbers[place]
        better = number < found if kind == LEAST_FLOAT else number > found
        if better or np.isnan(number):
            found = number
        place += step
    return found


def _pair(numbers: Any, run: Run) -> tuple[float, float]:
    """Sums double-doubles: what each addition loses is kept apart, so that the sum is as good as one in twice the
    digits; T. Ogita, S. M. Rump, S. Oishi, "Accurate Sum and Dot Product" (2005)."""
    place, stop, step = run
    if place + step >= stop:
        return (numbers[place], numbers[place + 1]) if place < stop else (0.0, 0.0)
    high, low = 0.0, 0.0
    while place < stop:
        high, error = two_sum(high, numbers[place])
        low += error + numbers[place + 1]
        place += step
    return two_sum(high, low)


def _moments(words: Any, numbers: Any, run: Run) -> tuple[Any, float, float, float]:
    """As `partials.moments` merges: the count, the sum's two halves, and the spread."""
    place, stop, step = run
    if place >= stop:
        return np.int64(0), 0.0, 0.0, 0.0
    count, high, low, spread = words[place], numbers[place + 1], numbers[place + 2], numbers[place + 3]
    place += step
    while place < stop:
        n, m = float(count), float(words[place])
        pair = numbers[place + 1], numbers[place + 2]
        left, left_low = scale((high, low), m)
        apart, apart_low = add(scale(pair, n), (-left, -left_low))
        delta = (apart + apart_low) / max(n * m, 1.0)
        spread = spread + numbers[place + 3] + delta * (delta * (n * m / max(n + m, 1.0)))
        high, low = add((high, low), pair)
        count += words[place]
        place += step
    return count, high, low, spread


def _end(words: Any, run: Run, later: bool) -> tuple[Any, Any, Any]:
    """Time, sequence and the word that goes with them, of the latest state or the earliest."""
    place, stop, step = run
    if place >= stop:
        never = INT_MIN if later else INT_MAX
        return never, never, np.int64(0)
    found = place
    place += step
    while place < stop:
        which = 0 if words[place] != words[found] else 1  # of one time, the sequence decides
        new, kept = words[place + which], words[found + which]
        if (new > kept) if later else (new < kept):
            found = place
        place += step
    return words[found], words[found + 1], words[found + 2]
