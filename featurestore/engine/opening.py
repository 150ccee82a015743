"""Bytes → state: the values that `packing` wrote, checked, and the columns of their tiles. For all entities at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from featurestore.engine.array import ragged, some
from featurestore.engine.layout import Group, Layout
from featurestore.engine.partials import REGISTERS, Field
from featurestore.engine.reduce import State
from featurestore.engine.sections import (
    COUNT_MASK,
    FINGERPRINT,
    FLOATS,
    FORM_SHIFT,
    FORMAT,
    FORMS,
    HEADER_WORDS,
    HEAP_WORD,
    IDS,
    INTS,
    LATEST,
    LENGTH_BITS,
    LENGTH_MASK,
    LOWS,
    MAGIC,
    SECTIONS,
    TOTAL_WORDS,
    columns_of,
    fingerprint_word,
    words_of,
)
from featurestore.engine.windows import NO_TILE, Tiles
from featurestore.errors import Corrupt

REREAD = "empty this store and restart the workers: they read the log again from its beginning"

_MASKS = np.array([(1 << 8 * size) - 1 for size in range(8)] + [-1], np.int64)
_SIGNS = np.array([0] + [1 << (8 * size - 1) for size in range(1, 8)] + [0], np.int64)
"""By bytes of a number. What has all eight needs no mask, and has its sign."""


@dataclass(frozen=True, slots=True, eq=False)
class Unpacked:
    """n decoded values. Text fields hold references into `buffer`: byte offset << 20 | length."""

    header: np.ndarray
    """`int64[n, HEADER_WORDS]`"""
    groups: tuple[Tiles, ...]
    buffer: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """n stored values end to end, checked as a whole; their tiles are still as they were written."""

    header: np.ndarray
    """`int64[n, HEADER_WORDS]`"""
    buffer: bytes
    words: np.ndarray
    """The buffer, `int64`, with some words behind the last value."""
    heap: tuple[np.ndarray, np.ndarray]
    """First byte of each value's heap within the buffer, and the first behind it (`int64[n]`)."""
    tiles: np.ndarray
    """`int64[groups, n]`: how many tiles each value has."""
    ends: np.ndarray
    """`int64[groups × SECTIONS, n]`: the byte of the buffer where the newest tile's row ends."""
    sizes: np.ndarray
    """`int64[groups × SECTIONS, n]`: bytes of a number."""


def open_values(layout: Layout, values: Sequence[bytes]) -> Opened:
    """Raises Corrupt for bytes of another format or view."""
    lengths = np.array(list(map(len, values)), np.int64)
    if some(lengths < HEADER_WORDS * 8) or some(lengths & 7 != 0):
        raise Corrupt("a stored value is no whole number of words", hint=REREAD)
    buffer = joined(values)
    words = np.frombuffer(buffer, "<i8")
    starts = (lengths.cumsum() - lengths) >> 3
    header = words.take(starts[:, None] + np.arange(HEADER_WORDS))
    _check(layout, header, lengths)
    end, position = starts + header[:, HEAP_WORD], starts + HEADER_WORDS
    tiles = np.empty((len(layout.groups), lengths.size), np.int64)
    ends = np.empty((SECTIONS * len(layout.groups), lengths.size), np.int64)
    sizes = np.empty_like(ends)
    for number, group in enumerate(layout.groups):
        columns, mine = columns_of(group), slice(SECTIONS * number, SECTIONS * (number + 1))
        word = words.take(position)
        form, count = word >> FORM_SHIFT, word & COUNT_MASK
        # A negative number is a large one without its sign.
        if some(form.view(np.uint64) >= FORMS):
            raise _broken()
        size = columns.sizes[:, form]
        used = columns.widths[:, None] * size * count
        room = (used + 7) >> 3
        behind = np.cumsum(room, axis=0) + (position + 1)
        ends[mine] = ((behind - room) << 3) + used
        tiles[number], sizes[mine], position = count, size, behind[-1]
        if some(position > end):
            raise _broken()
    if some(position != end):
        raise _broken()
    return Opened(header, buffer, words, (end << 3, (starts + header[:, TOTAL_WORDS]) << 3), tiles, ends, sizes)


def joined(values: Sequence[bytes]) -> bytes:
    """The buffer of `Opened`."""
    return b"".join((*values, bytes(HEADER_WORDS * 8)))


def _broken() -> Corrupt:
    return Corrupt("a stored value does not have the layout of its view", hint=REREAD)


def _check(layout: Layout, header: np.ndarray, lengths: np.ndarray) -> None:
    if some(header[:, MAGIC] != FORMAT):
        raise Corrupt("a stored value is of another format", hint=REREAD)
    if some(header[:, FINGERPRINT] != fingerprint_word(layout.view.fingerprint)):
        raise Corrupt(f"a stored value of {layout.view.id} was computed by another definition")
    total, heap = header[:, TOTAL_WORDS], header[:, HEAP_WORD]
    if some((total * 8 != lengths) | (heap > total) | (heap < HEADER_WORDS)):
        raise Corrupt("a stored value is cut short", hint=REREAD)


Column = tuple[int, int, int]
"""Number of a group in the layout, section, and column in it."""


class Columns:
    """Columns of tiles that are fetched together. Safe to share."""

    def __init__(self, layout: Layout, columns: Iterable[Column]) -> None:
        """Those of floats, and of their lower halves, come first."""
        asked = list(columns)
        self._section = np.array([group * SECTIONS + section for group, section, _ in asked], np.intp)
        widths = [columns_of(layout.groups[group]).widths[section] for group, section, _ in asked]
        self.width = np.array(widths, np.int64)[:, None]
        """How many columns the section of each has, `int64[columns, 1]`."""
        self.column = np.array([column for *_, column in asked], np.int64)[:, None]
        self._floats = sum(section in (LOWS, FLOATS) for _, section, _ in asked)
        signed = np.array([-(section == INTS) for _, section, _ in asked], np.int64)[:, None]
        self._signed = signed if some(signed != 0) else None

    def fetch(self, opened: Opened, back: np.ndarray) -> np.ndarray:
        """Words `[k, columns, n]`. `back`, `int64` of that shape or one that is stretched to it, is how many numbers of
        its section lie between each and the end of the newest tile: `tiles × width - column`. What does not exist is
        anything."""
        size = opened.sizes.take(self._section, axis=0)
        at = opened.ends.take(self._section, axis=0) - back * size
        found: np.ndarray = opened.words.take(at >> 3, mode="clip")
        at &= 7
        at <<= 3
        found >>= at
        found &= _MASKS.take(size)
        if self._signed is not None:
            sign = _SIGNS.take(size) & self._signed
            found ^= sign
            found -= sign
        if self._floats:
            self._widen(found[:, : self._floats], size[: self._floats] == 4)
        return found

    def _widen(self, words: np.ndarray, short: np.ndarray) -> None:
        """Floats of four bytes → of eight."""
        if some(short):
            with np.errstate(invalid="ignore"):  # where eight bytes are meant, half of them may be no number
                wide = words.astype(np.uint32).view(np.float32).astype(np.float64).view(np.int64)
            np.copyto(words, wide, where=short)


@lru_cache(maxsize=4096)
def _all_columns(layout: Layout, number: int) -> tuple[Columns, dict[tuple[int, int], int]]:
    """Every column of a group, and the number of each by section and column."""
    columns = columns_of(layout.groups[number])
    order = [LOWS, FLOATS, *(section for section in range(SECTIONS) if section not in (LOWS, FLOATS))]
    asked = [(section, column) for section in order for column in range(columns.widths[section])]
    found = Columns(layout, [(number, *place) for place in asked])
    return found, {place: i for i, place in enumerate(asked)}


def unpack(layout: Layout, values: Sequence[bytes]) -> Unpacked:
    """n stored values → header and tiles. Raises Corrupt for bytes of another format or view."""
    opened = open_values(layout, values)
    latest, heap = opened.header[:, LATEST], tuple(edge[:, None] for edge in opened.heap)
    groups: list[Tiles] = []
    for number, (group, count) in enumerate(zip(layout.groups, opened.tiles, strict=True)):
        columns, numbers = _all_columns(layout, number)
        place = np.arange(max(1, int(count.max(initial=0))))[:, None, None]
        words = np.moveaxis(columns.fetch(opened, (count - place) * columns.width - columns.column), 0, 2)
        live = place[:, 0, 0] < count[:, None]
        ids = np.zeros(live.shape, np.int64)
        if group.hop is not None:
            ids = (latest // group.hop)[:, None] - words[numbers[IDS, 0]]
        groups.append(Tiles(np.where(live, ids, NO_TILE), _states(group, words, numbers, live, heap, opened.buffer)))
    return Unpacked(opened.header, tuple(groups), opened.buffer)


Heap = Sequence[np.ndarray]
"""First byte of each entity's heap, and the first behind it, in a shape that fits what refers to it."""


def _states(
    group: Group, words: np.ndarray, numbers: dict[tuple[int, int], int], live: np.ndarray, heap: Heap, buffer: bytes
) -> tuple[State, ...]:
    """The words of tiles, `[columns, n, k]`, → fields `[n, k, …]`, by stored partial.

    Where it is not `live` (`bool[n, k]`) a field holds anything.
    """
    states: list[State] = []
    for stored, places in zip(group.stored, columns_of(group).places, strict=True):
        firsts = [numbers[place] for place in places]
        states.append(
            tuple(
                read_field(field, words[first : first + words_of(field)], live, heap, buffer)
                for field, first in zip(stored.partial.fields, firsts, strict=True)
            )
        )
    return tuple(states)


def read_field(field: Field, words: np.ndarray, live: np.ndarray, heap: Heap, buffer: bytes) -> np.ndarray:
    """The words of one field, `[words_of(field), a, b]`, → its values, `[a, b]` or `[a, b, width]`.

    Where it is not `live` (`bool[a, b]`) they are anything. Raises Corrupt for a reference past the heap.
    """
    read = _READ_FIELD[field.kind](words, live, heap, buffer)
    return np.moveaxis(read, 0, -1) if field.width > 1 and field.kind != "u1" else read[0]


def _floats(part: np.ndarray, live: np.ndarray, heap: Heap, buffer: bytes) -> np.ndarray:
    return part.view(np.float64)


def _ints(part: np.ndarray, live: np.ndarray, heap: Heap, buffer: bytes) -> np.ndarray:
    return part


def _references(part: np.ndarray, live: np.ndarray, heap: Heap, buffer: bytes) -> np.ndarray:
    """Places in the heap of each value → places in the buffer."""
    raw = np.where(live, part, 0)
    start, stop = heap
    ends = start + (raw >> LENGTH_BITS) + (raw & LENGTH_MASK)
    if some((raw < 0) | (ends < start) | (ends > stop)):
        raise _broken()
    references: np.ndarray = raw + (start << LENGTH_BITS)
    return references


def _sketches(part: np.ndarray, live: np.ndarray, heap: Heap, buffer: bytes) -> np.ndarray:
    references = _references(part, live, heap, buffer)[0]
    registers = np.zeros((1, *live.shape, REGISTERS), np.uint8)
    registers[0, live] = _sketch_registers(np.frombuffer(buffer, np.uint8), references[live])
    return registers


def _sketch_registers(buffer: np.ndarray, references: np.ndarray) -> np.ndarray:
    offset, length = references >> LENGTH_BITS, references & LENGTH_MASK
    registers = np.zeros((references.size, REGISTERS), np.uint8)
    dense = length == REGISTERS
    registers[dense] = buffer[offset[dense][:, None] + np.arange(REGISTERS)]
    row, place = ragged(np.where(dense, 0, length // 3))
    at = offset[row] + 3 * place
    number = buffer[at].astype(np.int64) | (buffer[at + 1].astype(np.int64) << 8)
    if number.size and int(number.max()) >= REGISTERS:
        raise Corrupt("a stored sketch names a register that does not exist", hint=REREAD)
    registers[row, number] = buffer[at + 2]
    return registers


_READ_FIELD: dict[str, Callable[[np.ndarray, np.ndarray, Heap, bytes], np.ndarray]] = {
    "i8": _ints,
    "f8": _floats,
    "text": _references,
    "u1": _sketches,
}
