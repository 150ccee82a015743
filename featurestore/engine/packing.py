"""State → bytes: what Redis holds for one entity of one view, laid out as `sections` has it.

Only tiles that hold events are stored. All entities are encoded at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featurestore.engine.array import every, ragged, some
from featurestore.engine.columns import NEVER
from featurestore.engine.layout import Group, Layout
from featurestore.engine.partials import REGISTERS
from featurestore.engine.reduce import State
from featurestore.engine.sections import (
    CODE_SHIFT,
    COUNTS,
    FINGERPRINT,
    FLOATS,
    FORM_SHIFT,
    FORMAT,
    HEADER_WORDS,
    HEAP_WORD,
    IDS,
    INTS,
    LATEST,
    LENGTH_BITS,
    LOWS,
    MAGIC,
    NOBODY,
    PARTITION,
    TOTAL_WORDS,
    WORDS,
    Columns,
    columns_of,
    fingerprint_word,
)

Encoder = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Text codes (int64[n]) → (UTF-8 of all end to end as uint8, length of each)."""


@dataclass(frozen=True, slots=True, eq=False)
class TileRows:
    """The tiles of one group, one per row, sorted by entity and then tile id (host)."""

    entity: np.ndarray
    ids: np.ndarray
    states: tuple[State, ...]


class _Heap:
    """Blobs of all entities: collected column by column, laid out entity by entity."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, entity: np.ndarray, data: np.ndarray, lengths: np.ndarray) -> int:
        self.parts.append((entity, data, lengths))
        return len(self.parts) - 1

    def lay_out(self, entities: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """→ references per part; heap bytes per entity; bytes in final order; the entity of each byte's blob run."""
        none = np.empty(0, np.int64)
        if not self.parts:
            return [], np.zeros(entities, np.int64), none.astype(np.uint8), none
        entity = np.concatenate([p[0] for p in self.parts])
        lengths = np.concatenate([p[2] for p in self.parts])
        data = np.concatenate([p[1] for p in self.parts])
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(entity, kind="stable")
        sizes = np.bincount(entity, weights=lengths, minlength=entities).astype(np.int64)
        base = np.cumsum(sizes) - sizes
        offset = np.empty(entity.size, np.int64)
        offset[order] = np.cumsum(lengths[order]) - lengths[order]
        offset -= base[entity]
        row, place = ragged(lengths[order])
        packed = data[starts[order][row] + place]
        references = (offset << LENGTH_BITS) | lengths
        cuts = np.cumsum([p[0].size for p in self.parts])[:-1]
        return np.split(references, cuts), sizes, packed, np.repeat(np.arange(entities), sizes)


@dataclass(frozen=True, slots=True, eq=False)
class _Records:
    """The tiles of one group, as tables."""

    columns: Columns
    entity: np.ndarray
    """`int64[rows]`"""
    place: np.ndarray
    """`int64[rows]`: which of its entity's tiles, counted from the oldest."""
    tiles: np.ndarray
    """`int64[entities]`"""
    tables: dict[int, np.ndarray]
    """By section, `[rows, columns]`."""
    waiting: list[tuple[int, int, int]]
    """Columns of words that await references into the heap: the first, the heap's part, and how many."""


def pack(layout: Layout, header: np.ndarray, groups: Sequence[TileRows], encode_text: Encoder) -> list[bytes]:
    """n entities → n values. `header` is `int64[n, HEADER_WORDS]`; its last two words are filled in here."""
    entities = header.shape[0]
    heap = _Heap()
    records = [
        _records(group, rows, header[:, LATEST], heap, encode_text)
        for group, rows in zip(layout.groups, groups, strict=True)
    ]
    references, heap_sizes, heap_bytes, heap_entity = heap.lay_out(entities)
    forms = [_forms(of) for of in records]
    sizes = [of.columns.sizes[:, form] for of, form in zip(records, forms, strict=True)]
    rooms = [(of.columns.widths[:, None] * size * of.tiles + 7) >> 3 for of, size in zip(records, sizes, strict=True)]
    lengths = [1 + room.sum(axis=0) for room in rooms]
    body = np.full(entities, HEADER_WORDS, np.int64) + sum(lengths)
    total = body + (heap_sizes + 7) // 8
    starts = np.cumsum(total) - total
    words = np.zeros(int(total.sum()), "<i8")
    header = header.copy()
    header[:, TOTAL_WORDS], header[:, HEAP_WORD] = total, body
    words[starts[:, None] + np.arange(HEADER_WORDS)] = header
    position = starts + HEADER_WORDS
    for of, form, size, room, length in zip(records, forms, sizes, rooms, lengths, strict=True):
        for column, part, width in of.waiting:
            of.tables[WORDS][:, column : column + width] = references[part].reshape(-1, width)
        words[position] = (form << FORM_SHIFT) | of.tiles
        begins = position + 1 + np.cumsum(room, axis=0) - room
        for section, table in of.tables.items():
            _write(words, table, begins[section], size[section], of)
        position = position + length
    if heap_bytes.size:
        words.view(np.uint8)[position[heap_entity] * 8 + ragged(heap_sizes)[1]] = heap_bytes
    whole, ends = words.tobytes(), ((starts + total) * 8).tolist()
    return [whole[a:b] for a, b in zip((starts * 8).tolist(), ends, strict=True)]


def _records(group: Group, rows: TileRows, latest: np.ndarray, heap: _Heap, encode_text: Encoder) -> _Records:
    columns, count = columns_of(group), rows.ids.size
    tables = {
        section: np.empty((count, width), np.float64 if section in (LOWS, FLOATS) else np.int64)
        for section, width in enumerate(columns.widths.tolist())
        if width
    }
    waiting: list[tuple[int, int, int]] = []
    for number, index, (section, column) in columns.written:
        field, values = group.stored[number].partial.fields[index], rows.states[number][index]
        width = field.width
        if field.kind == "u1":
            waiting.append((column, heap.add(rows.entity, *_sketch_bytes(values)), 1))
        elif field.kind == "text":
            blobs = encode_text(values.reshape(-1))
            waiting.append((column, heap.add(np.repeat(rows.entity, width), *blobs), width))
        else:
            flat = np.ascontiguousarray(values).reshape(count, width)
            tables[section][:, column : column + width] = flat.view(tables[section].dtype)
    if group.hop is not None:
        tables[IDS][:, 0] = (latest // group.hop)[rows.entity] - rows.ids
    tiles = np.bincount(rows.entity, minlength=latest.size)
    place = np.arange(count) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    return _Records(columns, rows.entity, place, tiles, tables, waiting)


def _forms(of: _Records) -> np.ndarray:
    """`int64[entities]`: what the longest number of each section needs."""
    form = np.zeros(of.tiles.size, np.int64)
    holders = np.flatnonzero(of.tiles)
    firsts = (np.cumsum(of.tiles) - of.tiles)[holders]
    for section, need in _NEEDS.items():
        table = of.tables.get(section)
        if table is not None and table.size:
            codes = need(table.reshape(-1), firsts * table.shape[1])
            if codes is not None:
                form[holders] |= codes << CODE_SHIFT[section]
    return form


def _bits(limits: Sequence[int]) -> Callable[[np.ndarray, np.ndarray], np.ndarray | None]:
    """How many of the limits the largest number of each run of numbers reaches; None where none does."""

    def codes(numbers: np.ndarray, firsts: np.ndarray) -> np.ndarray | None:
        if int(numbers.max()) < limits[0]:
            return None
        return np.searchsorted(limits, np.maximum.reduceat(numbers, firsts), side="right")

    return codes


def _flagged(flags: np.ndarray, firsts: np.ndarray) -> np.ndarray | None:
    """1 for each run of flags in which some is set; None where none is."""
    return np.logical_or.reduceat(flags, firsts).astype(np.int64) if some(flags) else None


def _inexact(numbers: np.ndarray, firsts: np.ndarray) -> np.ndarray | None:
    """1 for each run in which some number is not what half its bytes say."""
    with np.errstate(all="ignore"):
        short = numbers.astype(np.float32).astype(np.float64)
    return _flagged(short.view(np.int64) != numbers.view(np.int64), firsts)


_counts, _ints = _bits((1 << 8, 1 << 16, 1 << 32)), _bits((1 << 7, 1 << 15, 1 << 31))
_NEEDS: dict[int, Callable[[np.ndarray, np.ndarray], np.ndarray | None]] = {
    LOWS: lambda numbers, firsts: _flagged(numbers.view(np.int64) != 0, firsts),
    FLOATS: _inexact,
    INTS: lambda numbers, firsts: _ints(numbers ^ (numbers >> 63), firsts),  # a complement needs as many bits
    COUNTS: _counts,
}
"""By section: numbers, entity after entity, and where those of each begin → the code that each entity needs; None where
the shortest does for all."""


def _write(words: np.ndarray, table: np.ndarray, begins: np.ndarray, sizes: np.ndarray, of: _Records) -> None:
    """Writes a section of all entities. `begins` and `sizes` are `int64[entities]`, words and bytes of a number."""
    width = table.shape[1]
    for size in set(sizes.tolist()):
        if not size:
            continue
        at = (begins * (8 // size))[of.entity] + of.place * width
        kind = _DTYPES[table.dtype.kind, size]
        chosen = (sizes == size)[of.entity]
        rows = slice(None) if every(chosen) else chosen
        words.view(kind)[at[rows, None] + np.arange(width)] = table[rows].astype(kind, copy=False)


_DTYPES = {("f", 4): np.float32, ("f", 8): np.float64} | {("i", size): np.dtype(f"<i{size}") for size in (1, 2, 4, 8)}
"""By what a table holds, and the bytes of a number. Counts lose the sign that they do not have."""


def _sketch_bytes(registers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Registers `[n, REGISTERS]` → blobs: (number, rank) triples of bytes, or all registers where that is shorter."""
    filled = np.count_nonzero(registers, axis=1)
    sparse = filled * 3 < REGISTERS
    lengths = np.where(sparse, filled * 3, REGISTERS)
    data = np.empty(int(lengths.sum()), np.uint8)
    starts = np.cumsum(lengths) - lengths
    row, number = np.nonzero(registers[sparse])
    at = starts[sparse][row] + 3 * ragged(filled[sparse])[1]
    data[at], data[at + 1], data[at + 2] = number & 0xFF, number >> 8, registers[sparse][row, number]
    data[starts[~sparse][:, None] + np.arange(REGISTERS)] = registers[~sparse]
    return data, lengths


def headers(values: Sequence[bytes | None]) -> np.ndarray:
    """`int64[m, HEADER_WORDS]` of the values that are there and long enough to have one, in their order, unchecked."""
    size = HEADER_WORDS * 8
    parts = [value[:size] for value in values if value is not None and len(value) >= size]
    return np.frombuffer(b"".join(parts), "<i8").reshape(-1, HEADER_WORDS)


def blank(layout: Layout) -> bytes:
    """The value of an entity that no event concerns: no tiles."""
    header = np.zeros((1, HEADER_WORDS), np.int64)
    header[:, MAGIC], header[:, FINGERPRINT] = FORMAT, fingerprint_word(layout.view.fingerprint)
    header[:, PARTITION], header[:, LATEST] = NOBODY, NEVER
    nothing = np.empty(0, np.int64)
    rows = [
        TileRows(nothing, nothing, tuple(stored.partial.identity(np, 0) for stored in group.stored))
        for group in layout.groups
    ]
    return pack(layout, header, rows, lambda codes: (nothing.astype(np.uint8), codes))[0]
