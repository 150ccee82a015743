"""The walk over stored values, entity by entity and tile by tile: what `kernel` compiles.

Loops over arrays of numbers, in the part of Python that Numba translates: a step costs a microsecond as it stands here,
and a nanosecond compiled. Compiled they are the quick way to the merged states of a lookup; `opening.open_values` and
`folds` are the way without a compiler, and say what is right.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from featurestore.engine.exact import add, scale, two_sum
from featurestore.engine.sections import (
    COUNT_MASK,
    FINGERPRINT,
    FORM_SHIFT,
    FORMS,
    HEADER_WORDS,
    HEAP_WORD,
    IDS,
    LATEST,
    MAGIC,
    SECTIONS,
    TOTAL_WORDS,
)

INT_MIN, INT_MAX = np.int64(-(2**63)), np.int64(2**63 - 1)

SUM, LEAST, GREATEST, LEAST_FLOAT, GREATEST_FLOAT, PAIR, MOMENTS, FIRST, LAST = range(9)
"""What a step does: the first five with a field of a partial, the next with a pair, the others with all its fields."""
GROUP, WINDOW, HOP, BEGIN, END = range(5)
"""Columns of the spans: the group, µs of the window, µs of a hop (0: the whole history), and which steps are its."""
KIND, FIELD, ROW = range(3)
"""Columns of the steps: what is done, the first of the fields, and its row in what is found."""
PART, WIDTH, COLUMN, SIGNED = range(4)
"""Columns of the fields: group × SECTIONS + section, how many columns that has, which of them, and if it has a sign."""


def check(words: Any, lengths: Any, expected: Any, found: Any) -> bool:
    """Reads the headers of n values that lie end to end, and finds the tiles of each group.

    `words` is `int64`, `lengths` `int64[n]` bytes; `expected` is magic and fingerprint, `int64[groups, SECTIONS]`
    columns, and `int64[groups, SECTIONS, FORMS]` bytes of a number. `found` is filled with what `opening.Opened` has:
    `header`, `int64[n, HEADER_WORDS]`, `heap`, `int64[2, n]`, `tiles`, `int64[groups, n]`, `ends` and `sizes`,
    `int64[groups × SECTIONS, n]`. False where some value is not what `opening.open_values` takes.
    """
    (marks, _, _), (header, heap_edges, _, _, _) = expected, found
    start = 0
    for i in range(lengths.size):
        size = lengths[i] >> 3
        if lengths[i] & 7 or size < HEADER_WORDS:
            return False
        for j in range(HEADER_WORDS):
            header[i, j] = words[start + j]
        heap = header[i, HEAP_WORD]
        known = header[i, MAGIC] == marks[0] and header[i, FINGERPRINT] == marks[1]
        if not known or header[i, TOTAL_WORDS] != size or heap > size:
            return False
        if _behind(words, start, i, expected, found) != start + heap:
            return False
        heap_edges[0, i], heap_edges[1, i] = (start + heap) << 3, (start + size) << 3
        start += size
    return True


def _behind(words: Any, start: Any, i: Any, expected: Any, found: Any) -> Any:
    """The place behind the last group of a value that begins at `start`; -1 where a group does not end in it."""
    (_, widths, bytes_of), (header, _, tiles, ends, sizes) = expected, found
    place, stop = start + HEADER_WORDS, start + header[i, HEAP_WORD]
    for group in range(widths.shape[0]):
        form = words[place] >> FORM_SHIFT if place < stop else -1
        if form < 0 or form >= FORMS:
            return -1
        count = words[place] & COUNT_MASK
        tiles[group, i] = count
        place += 1
        for section in range(SECTIONS):
            number = bytes_of[group, section, form]
            used = widths[group, section] * number * count
            part = group * SECTIONS + section
            ends[part, i], sizes[part, i] = (place << 3) + used, number
            place += (used + 7) >> 3
    return place


def fold(stored: Any, at: Any, plan: Any, out: Any) -> None:
    """Merges the tiles of each span that are inside its window at `at` (`int64[n]` µs).

    `stored` is the words, the same as `float32`, and what `check` found but the heap. `plan` is spans, `int64[s, 5]`,
    steps, `int64[m, 3]`, and fields, `int64[f, 4]`. `out`, `int64[rows, n]`, has a row for each field; it holds words.
    """
    (words, halves, header, tiles, ends, sizes), (spans, steps, fields) = stored, plan
    numbers, floats = (words.view(np.float64), halves), out.view(np.float64)
    for i in range(at.size):
        for s in range(spans.shape[0]):
            group, hop = spans[s, GROUP], spans[s, HOP]
            count = tiles[group, i]
            if hop > 0:
                part = group * SECTIONS + IDS
                oldest = header[i, LATEST] // hop - (at[i] - spans[s, WINDOW]) // hop
                count = _inside(words, ends[part, i], sizes[part, i], count, oldest)
            for m in range(spans[s, BEGIN], spans[s, END]):
                kind, f, row = steps[m, KIND], steps[m, FIELD], steps[m, ROW]
                run = _run(fields, f, ends, sizes, i, count)
                if kind <= GREATEST:
                    out[row, i] = _of_words(kind, words, run, count)
                elif kind <= GREATEST_FLOAT:
                    floats[row, i] = _of_numbers(kind, numbers, run, count)
                elif kind == PAIR:
                    lows = _run(fields, f + 1, ends, sizes, i, count)
                    floats[row, i], floats[row + 1, i] = _pair(numbers, run, lows, count)
                elif kind == MOMENTS:
                    highs, lows = _run(fields, f + 1, ends, sizes, i, count), _run(fields, f + 2, ends, sizes, i, count)
                    spreads = _run(fields, f + 3, ends, sizes, i, count)
                    out[row, i], floats[row + 1, i], floats[row + 2, i], floats[row + 3, i] = _moments(
                        words, numbers, (run, highs, lows, spreads), count
                    )
                else:
                    places, values = (
                        _run(fields, f + 1, ends, sizes, i, count),
                        _run(fields, f + 2, ends, sizes, i, count),
                    )
                    out[row, i], out[row + 1, i], out[row + 2, i] = _end(
                        words, (run, places, values), count, kind == LAST
                    )


Run: TypeAlias = tuple[int, int, int, int, int]
"""The numbers of a field: the byte of the first, the step to the next, how many bytes each has, and of a whole one the
mask and the bit of the sign."""


def _run(fields: Any, f: Any, ends: Any, sizes: Any, i: Any, count: Any) -> Any:
    """A field of so many of the newest tiles, from the oldest of them on."""
    part, width = fields[f, PART], fields[f, WIDTH]
    size = sizes[part, i]
    mask = np.int64(-1) if size == 8 else (np.int64(1) << (size << 3)) - 1
    sign = (mask + 1) >> 1 if fields[f, SIGNED] else np.int64(0)
    return ends[part, i] - (count * width - fields[f, COLUMN]) * size, width * size, size, mask, sign


def _word(words: Any, run: Any, t: Any) -> Any:
    place, step, _, mask, sign = run
    at = place + t * step
    return (((words[at >> 3] >> ((at & 7) << 3)) & mask) ^ sign) - sign


def _number(numbers: Any, run: Any, t: Any) -> Any:
    place, step, size, _, _ = run
    at = place + t * step
    if size == 8:
        return numbers[0][at >> 3]
    return np.float64(numbers[1][at >> 2]) if size else 0.0


def _inside(words: Any, end: Any, size: Any, count: Any, oldest: Any) -> Any:
    """How many of the tiles, counted from the newest, are no more than so many before that of the latest event."""
    mask = (1 << (size << 3)) - 1
    for inside in range(count):
        place = end - (inside + 1) * size
        if (words[place >> 3] >> ((place & 7) << 3)) & mask > oldest:
            return inside
    return count


def _of_words(kind: int, words: Any, run: Run, count: Any) -> Any:
    if kind == SUM:
        total = np.int64(0)
        for t in range(count):
            total += _word(words, run, t)
        return total
    found = INT_MAX if kind == LEAST else INT_MIN
    for t in range(count):
        found = min(found, _word(words, run, t)) if kind == LEAST else max(found, _word(words, run, t))
    return found


def _of_numbers(kind: int, numbers: Any, run: Run, count: Any) -> float:
    """What is no number stays, as in NumPy's minimum and maximum."""
    found = np.inf if kind == LEAST_FLOAT else -np.inf
    for t in range(count):
        number = _number(numbers, run, t)
        better = number < found if kind == LEAST_FLOAT else number > found
        if better or np.isnan(number):
            found = number
    return found


def _pair(numbers: Any, highs: Run, lows: Run, count: Any) -> tuple[float, float]:
    """Sums double-doubles: what each addition loses is kept apart, so that the sum is as good as one in twice the
    digits; T. Ogita, S. M. Rump, S. Oishi, "Accurate Sum and Dot Product" (2005)."""
    if count == 1:
        return _number(numbers, highs, 0), _number(numbers, lows, 0)
    high, low = 0.0, 0.0
    for t in range(count):
        high, error = two_sum(high, _number(numbers, highs, t))
        low += error + _number(numbers, lows, t)
    return two_sum(high, low)


def _moments(words: Any, numbers: Any, runs: Any, of: Any) -> tuple[Any, float, float, float]:
    """As `partials.moments` merges: the count, the sum's two halves, and the spread."""
    counts, highs, lows, spreads = runs
    if of == 0:
        return np.int64(0), 0.0, 0.0, 0.0
    count, spread = _word(words, counts, 0), _number(numbers, spreads, 0)
    high, low = _number(numbers, highs, 0), _number(numbers, lows, 0)
    for t in range(1, of):
        more = _word(words, counts, t)
        n, m = float(count), float(more)
        pair = _number(numbers, highs, t), _number(numbers, lows, t)
        left, left_low = scale((high, low), m)
        apart, apart_low = add(scale(pair, n), (-left, -left_low))
        delta = (apart + apart_low) / max(n * m, 1.0)
        spread = spread + _number(numbers, spreads, t) + delta * (delta * (n * m / max(n + m, 1.0)))
        high, low = add((high, low), pair)
        count += more
    return count, high, low, spread


def _end(words: Any, runs: Any, count: Any, later: bool) -> tuple[Any, Any, Any]:
    """Time, sequence and the word that goes with them, of the latest state or the earliest."""
    times, places, values = runs
    if count == 0:
        never = INT_MIN if later else INT_MAX
        return never, never, np.int64(0)
    found = 0
    for t in range(1, count):
        new, kept = _word(words, times, t), _word(words, times, found)
        if new == kept:  # then the sequence decides
            new, kept = _word(words, places, t), _word(words, places, found)
        if (new > kept) if later else (new < kept):
            found = t
    return _word(words, times, found), _word(words, places, found), _word(words, values, found)
