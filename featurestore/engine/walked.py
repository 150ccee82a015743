"""Stored values → the merged state of every window, by the kernel: as `packing.open_values` and `folds`, in less time.

Sketches and lists, which are no words side by side, are left to `folds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from featurestore.engine import walk
from featurestore.engine.folds import Bundle, Span, spans_of
from featurestore.engine.kernel import Kernel
from featurestore.engine.layout import Layout
from featurestore.engine.packing import (
    FORMAT,
    HEADER_WORDS,
    Opened,
    columns_of,
    fingerprint_word,
    joined,
    open_values,
    read_field,
    record_words,
)
from featurestore.engine.partials import REST, Field, Partial
from featurestore.engine.windows import Folded

_FIELDS = {
    ("sum", "i8"): walk.SUM,
    ("min", "i8"): walk.LEAST,
    ("max", "i8"): walk.GREATEST,
    ("min", "f8"): walk.LEAST_FLOAT,
    ("max", "f8"): walk.GREATEST_FLOAT,
    ("pair", "f8"): walk.PAIR,
}
"""Steps over a field that is reduced by itself, by `Partial.across` and `Field.kind`."""
_WHOLES = {"moments": walk.MOMENTS, "first": walk.FIRST, "last": walk.LAST}
"""Steps over all fields, by `Partial.whole`."""


class Walks:
    """Opens and folds the stored values of one view. Safe to share."""

    def __init__(self, layout: Layout, kernel: Kernel) -> None:
        self._layout, self._kernel = layout, kernel
        self._widths = np.array([record_words(group) for group in layout.groups], np.int64)
        self._expected = np.array([FORMAT, fingerprint_word(layout.view.fingerprint)], np.int64)
        self._placed: list[tuple[tuple[int, int, int | None], int, tuple[Field, ...]]] = []
        """Group, partial and window, as `Folded` has them; the first row of the partial's fields, and these."""
        self._others: list[Bundle] = []
        spans: list[tuple[int, int, int, int, int]] = []
        steps: list[tuple[int, int, int]] = []
        for span in spans_of(layout):
            begin = len(steps)
            steps += self._place(span)
            spans.append((span.number, span.window or 0, span.group.hop or 0, begin, len(steps)))
            left = tuple(place for place in span.places if not _steps_of(span.group.stored[place].partial))
            if left:
                self._others.append(Bundle([replace(span, places=left)]))
        self._spans = np.array(spans, np.int64).reshape(-1, walk.END + 1)
        self._steps = np.array(steps, np.int64).reshape(-1, 3)

    def _place(self, span: Span) -> Iterator[tuple[int, int, int]]:
        """The span's steps."""
        for place in span.places:
            partial = span.group.stored[place].partial
            kinds = _steps_of(partial)
            if kinds:
                columns, first = columns_of(span.group, place), self._rows
                self._placed.append(((span.number, place, span.window), first, partial.fields))
                yield from ((kind, columns[field], first + field) for field, kind in kinds.items())

    @property
    def _rows(self) -> int:
        return self._placed[-1][1] + len(self._placed[-1][2]) if self._placed else 0

    def open(self, values: Sequence[bytes]) -> Opened:
        """Raises Corrupt for bytes of another format or view."""
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        buffer = joined(self._layout, values, int(lengths.max(initial=0)))
        words = np.frombuffer(buffer, np.int64, len(buffer) >> 3)
        header = np.empty((lengths.size, HEADER_WORDS), np.int64)
        heaps = np.empty((2, lengths.size), np.int64)
        tiles = np.empty((self._widths.size, lengths.size), np.int64)
        ends = np.empty_like(tiles)
        if not self._kernel.check(words, lengths, self._expected, self._widths, header, heaps, tiles, ends):
            return open_values(self._layout, values)  # which says what is wrong
        return Opened(header, buffer, words, (heaps[0], heaps[1]), tiles, ends)

    def fold(self, opened: Opened, at: np.ndarray) -> Folded:
        """As `Folds.fold`. Raises Corrupt."""
        out = np.empty((self._rows, at.size), np.int64)
        floats = out.view(np.float64)
        self._kernel.fold(opened.words, opened.tiles, opened.ends, at, self._widths, self._spans, self._steps, out)
        live = np.ones((1, at.size), np.bool_)
        found: Folded = {}
        for key, first, fields in self._placed:
            state = []
            for row, field in enumerate(fields, first):
                if field.kind == "text":
                    words = out[None, row : row + 1]
                    state.append(read_field(field, words, live, opened.heap, opened.buffer)[0])
                else:
                    state.append(floats[row] if field.kind == "f8" else out[row])
            found[key] = tuple(state)
        for bundle in self._others:
            bundle.fold(opened, at, found)
        return found


def _steps_of(partial: Partial) -> dict[int, int]:
    """By number of a field, the step that begins with it; none where the kernel does not know the partial."""
    if partial.whole is not None:
        return {0: _WHOLES[partial.whole]}
    kinds = [(name, spec.kind) for name, spec in zip(partial.across or (), partial.fields, strict=False)]
    if not kinds or not all(kind in _FIELDS or kind[0] == REST for kind in kinds):
        return {}
    return {number: _FIELDS[kind] for number, kind in enumerate(kinds) if kind[0] != REST}
