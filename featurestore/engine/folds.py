"""Stored values → the merged state of every window: what a lookup needs of an entity's tiles.

A window and the tiles that it is over are a span. What is needed of the tiles is fetched for all spans and entities at
once: word by word (a channel), tile by tile from the newest back, as one array `[k, channels, n]`. Merging along k is
then a few operations, whatever the number of aggregates, entities and tiles; a lookup of one entity costs little else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np

from featurestore.engine.array import every
from featurestore.engine.layout import Group, Layout
from featurestore.engine.opening import Columns, Opened, read_field
from featurestore.engine.partials import ACROSS, REST, Field, sum_pairs
from featurestore.engine.sections import IDS, LATEST, Place, columns_of, words_of
from featurestore.engine.windows import Folded

_FEW = 64
"""For so many entities at most it is the number of operations that counts, and spans are fetched together, with places
for the most tiles in each; for more it is the number of words, and each is fetched by itself."""
_LIKE = 4
"""Spans are fetched together where one has at most so many times the tiles of another."""
_KEPT = 256
"""Shapes of a fetch that are remembered, by their number of tiles."""


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    number: int
    """Of the group, in the layout."""
    group: Group
    window: int | None
    """µs."""
    places: tuple[int, ...]
    """Partials of the group that aggregates over this window stand on."""


@dataclass(frozen=True, slots=True)
class _Channel:
    """One number of each tile of a span: a field that is reduced by itself."""

    span: int
    place: Place
    across: str
    field: Field

    @property
    def kind(self) -> tuple[str, str]:
        """Channels of one kind are reduced in one operation. Those of floats come first in order."""
        return self.field.kind, self.across


class Bundle:
    """Spans that are fetched together."""

    def __init__(self, layout: Layout, spans: Sequence[Span]) -> None:
        self._numbers = np.array([span.number for span in spans], np.intp)
        # Both halves of a pair keep their order, so that one half's i-th goes with the other's.
        channels = sorted((c for i, span in enumerate(spans) for c in _channels(i, span)), key=attrgetter("kind"))
        self._slices = _slices_of_kinds(channels)
        self._rows = _rows_of(spans, channels)
        self._span_of = np.array([channel.span for channel in channels], np.intp)
        self._empty = np.array([_empty_word(channel.field) for channel in channels], np.int64)[:, None]
        self._hop = np.array([[span.group.hop or 1] for span in spans], np.int64)
        self._window = np.array([[span.window or 0] for span in spans], np.int64)
        self._whole = spans[0].group.hop is None
        columns = [(spans[channel.span].number, *channel.place) for channel in channels]
        if not self._whole:
            columns += [(span.number, IDS, 0) for span in spans]
        self._columns = Columns(layout, columns)
        self._others = [
            _Other(layout, number, span, place)
            for number, span in enumerate(spans)
            for place in span.places
            if not _is_plain(span, place)
        ]
        self._shapes: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def fold(self, opened: Opened, at: np.ndarray, found: Folded) -> None:
        """Puts the state of each (group, partial, window) into `found`."""
        count = opened.tiles[self._numbers]
        most = max(1, int(count.max(initial=0)))
        back, place = self._shape(most)
        words = self._columns.fetch(opened, back)
        channels = len(self._span_of)
        inside = self._inside(words[:, channels:], opened.header[:, LATEST], count, place, at)
        kept = words[:, :channels]
        self._reduce(kept if inside is None else self._emptied(kept, inside), found)
        for other in self._others:
            other.fold(opened, place, None if inside is None else inside[:, other.number], found)

    def _emptied(self, channels: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """The channels from the oldest tile on that is inside for some, with empty words where it is not for others."""
        for_some = np.asarray(inside.any(axis=(1, 2)))
        for_all = np.asarray(inside.all(axis=(1, 2)))
        oldest = int(for_some.argmax())
        mixed = 0 if every(for_all) else for_all.size - int(for_all[::-1].argmin())
        if oldest < mixed:
            chosen = inside[oldest:mixed, self._span_of]
            channels[oldest:mixed] = np.where(chosen, channels[oldest:mixed], self._empty)
        return channels[oldest:]

    def _shape(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """For so many tiles: how far each number is before the end of an entity's tiles, `int64[most, columns, 1]`, and
        the number of each place counted from the newest tile, `int64[most, 1, 1]`."""
        shape = self._shapes.get(most)
        if shape is None:
            place = np.arange(most, 0, -1, dtype=np.int64)[:, None, None]
            shape = (place * self._columns.width - self._columns.column, place)
            if len(self._shapes) >= _KEPT:
                self._shapes.clear()
            self._shapes[most] = shape
        return shape

    def _inside(
        self, before: np.ndarray, latest: np.ndarray, count: np.ndarray, place: np.ndarray, at: np.ndarray
    ) -> np.ndarray | None:
        """`bool[k, spans, n]`: where there is a tile of the window, its whole tail tile too; None for everywhere.
        `before` is how many tiles each is before that of the latest event."""
        inside = place <= count
        if not self._whole:
            inside &= before <= latest // self._hop - (at - self._window) // self._hop
        return None if every(inside) else inside

    def _reduce(self, channels: np.ndarray, found: Folded) -> None:
        folded: dict[tuple[str, str], np.ndarray] = {}
        numbers = channels.view(np.float64)
        for (kind, across), part in self._slices.items():
            words = (numbers if kind == "f8" else channels)[:, part]
            if across == "pair":
                folded[kind, across], folded[kind, REST] = sum_pairs(np, words, numbers[:, self._slices[kind, REST]])
            elif across != REST:
                folded[kind, across] = ACROSS[across](np, words)
        for partial, rows in self._rows:
            found[partial] = tuple([folded[kind][row] for kind, row in rows])


class _Other:
    """A partial of a span that has texts, sketches, lists, or fields that go together."""

    def __init__(self, layout: Layout, number: int, span: Span, place: int) -> None:
        self.number = number
        """Of the span, in its bundle."""
        self._state = span.number, place, span.window
        self._partial = span.group.stored[place].partial
        places = columns_of(span.group).places[place]
        self._columns = [
            Columns(layout, [(span.number, section, column + i) for i in range(words_of(field))])
            for field, (section, column) in zip(self._partial.fields, places, strict=True)
        ]

    def fold(self, opened: Opened, place: np.ndarray, inside: np.ndarray | None, found: Folded) -> None:
        """`place` is as of `_shape`, `inside` is `bool[k, n]`, or None for everywhere."""
        live = np.ones((place.size, opened.tiles.shape[1]), np.bool_) if inside is None else inside
        state: list[np.ndarray] = []
        for field, columns in zip(self._partial.fields, self._columns, strict=True):
            words = np.moveaxis(columns.fetch(opened, place * columns.width - columns.column), 1, 0)
            values = read_field(field, words, live, opened.heap, opened.buffer)
            if inside is not None:
                values = np.where(live if values.ndim == live.ndim else live[:, :, None], values, field.empty)
            state.append(values)
        found[self._state] = self._partial.fold(np, tuple(state))


class Folds:
    """Folds the stored values of one view. Safe to share."""

    def __init__(self, layout: Layout) -> None:
        spans = spans_of(layout)
        self._together = [Bundle(layout, bundle) for bundle in _bundled(spans)]
        self._apart = [Bundle(layout, [span]) for span in spans]

    def fold(self, opened: Opened, at: np.ndarray) -> Folded:
        """The state of each (group, partial, window) at `at` (`int64[n]` µs). Right where `at` is not before the
        entity's latest event. Raises Corrupt."""
        found: Folded = {}
        for bundle in self._together if at.size <= _FEW else self._apart:
            bundle.fold(opened, at, found)
        return found


def spans_of(layout: Layout) -> list[Span]:
    """Every span of the view, once."""
    needed: dict[tuple[int, int | None], dict[int, None]] = {}
    for aggregate, (group, place) in zip(layout.view.aggregates, layout.places, strict=True):
        needed.setdefault((group, aggregate.window), {})[place] = None
    return [Span(number, layout.groups[number], window, tuple(places)) for (number, window), places in needed.items()]


def _tiles_of(span: Span) -> int:
    """Most tiles that the span may have; 0 for the one of the whole history."""
    return 0 if span.group.hop is None else span.group.ring


def _bundled(spans: Iterable[Span]) -> list[list[Span]]:
    bundles: list[list[Span]] = []
    for span in sorted(spans, key=_tiles_of):
        if bundles and _tiles_of(span) <= _LIKE * _tiles_of(bundles[-1][0]):
            bundles[-1].append(span)
        else:
            bundles.append([span])
    return bundles


def _is_plain(span: Span, place: int) -> bool:
    partial = span.group.stored[place].partial
    return partial.across is not None and all(spec.kind in ("i8", "f8") for spec in partial.fields)


def _channels(number: int, span: Span) -> Iterable[_Channel]:
    """A count that several partials have is one of them."""
    found: dict[Place, _Channel] = {}
    for place in span.places:
        if _is_plain(span, place):
            partial = span.group.stored[place].partial
            fields = zip(columns_of(span.group).places[place], partial.across or (), partial.fields, strict=True)
            for at, across, field in fields:
                found.setdefault(at, _Channel(number, at, across, field))
    return found.values()


def _slices_of_kinds(channels: Sequence[_Channel]) -> dict[tuple[str, str], slice]:
    """Channels of one kind stand side by side."""
    slices: dict[tuple[str, str], slice] = {}
    start = 0
    for kind, group in groupby(channels, key=attrgetter("kind")):
        stop = start + len(list(group))
        slices[kind] = slice(start, stop)
        start = stop
    return slices


_Key = tuple[int, int, int | None]
"""Group, partial and window, as `Folded` has them."""


def _rows_of(
    spans: Sequence[Span], channels: Sequence[_Channel]
) -> list[tuple[_Key, list[tuple[tuple[str, str], int]]]]:
    """Where each partial's fields are: the kind, and the place among the channels of that kind."""
    seen: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[int, Place], tuple[tuple[str, str], int]] = {}
    for channel in channels:
        places[channel.span, channel.place] = channel.kind, seen[channel.kind]
        seen[channel.kind] += 1
    return [
        ((span.number, place, span.window), [places[i, at] for at in columns_of(span.group).places[place]])
        for i, span in enumerate(spans)
        for place in span.places
        if _is_plain(span, place)
    ]


def _empty_word(spec: Field) -> int:
    return int(np.array(spec.empty, spec.dtype).view(np.int64))
