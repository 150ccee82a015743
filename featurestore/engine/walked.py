"""Stored values → the merged state of every window, by the kernel: as `opening.open_values` and `folds`, in less time.

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
from featurestore.engine.opening import Opened, joined, open_values, read_field
from featurestore.engine.partials import REST, Field, Partial
from featurestore.engine.sections import (
    FORMAT,
    FORMS,
    HEADER_WORDS,
    INTS,
    SECTIONS,
    Place,
    columns_of,
    fingerprint_word,
)
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
        columns = [columns_of(group) for group in layout.groups]
        self._widths = np.array([of.widths for of in columns], np.int64).reshape(-1, SECTIONS)
        self._sizes = np.array([of.sizes for of in columns], np.int64).reshape(-1, SECTIONS, FORMS)
        self._marks = np.array([FORMAT, fingerprint_word(layout.view.fingerprint)], np.int64)
        self._placed: list[tuple[tuple[int, int, int | None], tuple[tuple[Field, int], ...]]] = []
        """Group, partial and window, as `Folded` has them; the partial's fields, and the row of each."""
        self._rows = 0
        self._others: list[Bundle] = []
        spans: list[tuple[int, int, int, int, int]] = []
        steps: list[tuple[int, int, int]] = []
        fields: list[tuple[int, int, int, int]] = []
        for span in spans_of(layout):
            begin = len(steps)
            for kind, row, places in self._place(span):
                steps.append((kind, len(fields), row))
                fields += [self._field(span.number, *place) for place in places]
            spans.append((span.number, span.window or 0, span.group.hop or 0, begin, len(steps)))
            left = tuple(place for place in span.places if not _steps_of(span.group.stored[place].partial))
            if left:
                self._others.append(Bundle(layout, [replace(span, places=left)]))
        self._spans = np.array(spans, np.int64).reshape(-1, walk.END + 1)
        self._steps = np.array(steps, np.int64).reshape(-1, walk.ROW + 1)
        self._fields = np.array(fields, np.int64).reshape(-1, walk.SIGNED + 1)

    def _place(self, span: Span) -> Iterator[tuple[int, int, tuple[Place, ...]]]:
        """The span's steps: what is done, its first row, and where the fields from there on are stored."""
        known: dict[Place, int] = {}
        for number in span.places:
            partial = span.group.stored[number].partial
            kinds = _steps_of(partial)
            if not kinds:
                continue
            places, rows = columns_of(span.group).places[number], list[int]()
            for at, place in enumerate(places):
                row = known.get(place) if kinds.get(at) == walk.SUM else None  # a count that another partial has too
                if row is None:
                    row, self._rows = self._rows, self._rows + 1
                    if at in kinds:
                        yield kinds[at], row, places[at:]
                    if kinds.get(at) == walk.SUM:
                        known[place] = row
                rows.append(row)
            fields = tuple(zip(partial.fields, rows, strict=True))
            self._placed.append(((span.number, number, span.window), fields))

    def _field(self, group: int, section: int, column: int) -> tuple[int, int, int, int]:
        return group * SECTIONS + section, int(self._widths[group, section]), column, int(section == INTS)

    def open(self, values: Sequence[bytes]) -> Opened:
        """Raises Corrupt for bytes of another format or view."""
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        buffer = joined(values)
        words, groups = np.frombuffer(buffer, np.int64, len(buffer) >> 3), len(self._widths)
        header = np.empty((lengths.size, HEADER_WORDS), np.int64)
        heaps = np.empty((2, lengths.size), np.int64)
        tiles = np.empty((groups, lengths.size), np.int64)
        ends = np.empty((groups * SECTIONS, lengths.size), np.int64)
        sizes = np.empty_like(ends)
        expected = (self._marks, self._widths, self._sizes)
        if not self._kernel.check(words, lengths, expected, (header, heaps, tiles, ends, sizes)):
            return open_values(self._layout, values)  # which says what is wrong
        return Opened(header, buffer, words, (heaps[0], heaps[1]), tiles, ends, sizes)

    def fold(self, opened: Opened, at: np.ndarray) -> Folded:
        """As `Folds.fold`. Raises Corrupt."""
        out = np.empty((self._rows, at.size), np.int64)
        floats, halves = out.view(np.float64), opened.words.view(np.float32)
        stored = (opened.words, halves, opened.header, opened.tiles, opened.ends, opened.sizes)
        self._kernel.fold(stored, at, (self._spans, self._steps, self._fields), out)
        live = np.ones((1, at.size), np.bool_)
        found: Folded = {}
        for key, fields in self._placed:
            state = []
            for field, row in fields:
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
