"""State as bytes: what Redis holds for one entity of one view.

Little-endian 8-byte words: a header, then for each group the number of its tiles and one fixed-size record per tile
(tile id, then the fields of its partials), then a heap with text and sketches, which records refer to by
`offset << 20 | length`. Only tiles that hold events are stored. Encoding and decoding work on all entities at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from featurestore.engine.array import ragged, some
from featurestore.engine.columns import NEVER
from featurestore.engine.layout import Group, Layout
from featurestore.engine.partials import REGISTERS, Field
from featurestore.engine.reduce import State
from featurestore.engine.windows import NO_TILE, Tiles
from featurestore.errors import Corrupt

FORMAT = 0x3130_5346
"""`FS01`"""
HEADER_WORDS = 8
NOBODY = -1
"""The partition of a value that stands on loaded events only: it belongs to whichever partition has the entity's first
event from the topic."""
REREAD = "empty this store and restart the workers: they read the log again from its beginning"
MAGIC, FINGERPRINT, GENERATION, OFFSET, PARTITION, LATEST, TOTAL_WORDS, HEAP_WORD = range(HEADER_WORDS)
LENGTH_BITS = 20
LENGTH_MASK = (1 << LENGTH_BITS) - 1

Encoder = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Text codes (int64[n]) → (UTF-8 of all end to end as uint8, length of each)."""


@dataclass(frozen=True, slots=True, eq=False)
class TileRows:
    """The tiles of one group, one per row, sorted by entity and then tile id (host)."""

    entity: np.ndarray
    ids: np.ndarray
    states: tuple[State, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Unpacked:
    """n decoded values. Text fields hold references into `buffer`: byte offset << 20 | length."""

    header: np.ndarray
    """`int64[n, HEADER_WORDS]`"""
    groups: tuple[Tiles, ...]
    buffer: bytes


def fingerprint_word(fingerprint: str) -> int:
    """First 8 bytes of a hexadecimal fingerprint as a signed word."""
    return int.from_bytes(bytes.fromhex(fingerprint[:16]), "little", signed=True)


def _fields(group: Group) -> list[Field]:
    return [field for stored in group.stored for field in stored.partial.fields]


def words_of(field: Field) -> int:
    """In a tile's record: a sketch is one reference."""
    return 1 if field.kind == "u1" else field.width


@lru_cache(maxsize=4096)
def columns_of(group: Group, place: int) -> tuple[int, ...]:
    """Where the fields of one of its partials begin in a tile's record."""
    begins = np.cumsum([1, *(words_of(field) for field in _fields(group))]).tolist()
    before = sum(len(stored.partial.fields) for stored in group.stored[:place])
    return tuple(begins[before : before + len(group.stored[place].partial.fields)])


@lru_cache(maxsize=4096)
def record_words(group: Group) -> int:
    return 1 + sum(map(words_of, _fields(group)))


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


def pack(layout: Layout, header: np.ndarray, groups: Sequence[TileRows], encode_text: Encoder) -> list[bytes]:
    """n entities → n values. `header` is `int64[n, HEADER_WORDS]`; its last two words are filled in here."""
    entities = header.shape[0]
    heap = _Heap()
    records = [_records(group, rows, heap, encode_text) for group, rows in zip(layout.groups, groups, strict=True)]
    references, heap_sizes, heap_bytes, heap_entity = heap.lay_out(entities)
    counts = [np.bincount(rows.entity, minlength=entities) for rows in groups]
    widths = [record_words(group) for group in layout.groups]
    body = HEADER_WORDS + sum(1 + count * width for count, width in zip(counts, widths, strict=True))
    body = np.broadcast_to(body, entities)
    total = body + (heap_sizes + 7) // 8
    starts = np.cumsum(total) - total
    words = np.zeros(int(total.sum()), "<i8")
    header = header.copy()
    header[:, TOTAL_WORDS], header[:, HEAP_WORD] = total, body
    words[starts[:, None] + np.arange(HEADER_WORDS)] = header
    position = starts + HEADER_WORDS
    for (matrix, waiting), rows, count, width in zip(records, groups, counts, widths, strict=True):
        for column, part, shape in waiting:
            matrix[:, column : column + shape] = references[part].reshape(-1, shape)
        words[position] = count
        # Rows come by entity: the n-th row of all is so many words behind the first of its entity.
        first = position + 1 - width * (np.cumsum(count) - count)
        at = first[rows.entity] + width * np.arange(rows.entity.size)
        words[at[:, None] + np.arange(width)] = matrix
        position = position + 1 + count * width
    if heap_bytes.size:
        words.view(np.uint8)[position[heap_entity] * 8 + ragged(heap_sizes)[1]] = heap_bytes
    whole, ends = words.tobytes(), ((starts + total) * 8).tolist()
    return [whole[a:b] for a, b in zip((starts * 8).tolist(), ends, strict=True)]


def _records(
    group: Group, rows: TileRows, heap: _Heap, encode_text: Encoder
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """The group's records as a matrix of words, and which columns await heap references (column, part, width)."""
    matrix = np.empty((rows.ids.size, record_words(group)), np.int64)
    matrix[:, 0] = rows.ids
    waiting: list[tuple[int, int, int]] = []
    column = 1
    for field, values in zip(_fields(group), [f for state in rows.states for f in state], strict=True):
        width = words_of(field)
        if field.kind == "u1":
            waiting.append((column, heap.add(rows.entity, *_sketch_bytes(values)), 1))
        elif field.kind == "text":
            waiting.append((column, heap.add(np.repeat(rows.entity, width), *encode_text(values.reshape(-1))), width))
        else:
            flat = np.ascontiguousarray(values).reshape(rows.ids.size, width)
            matrix[:, column : column + width] = flat.view(np.int64)
        column += width
    return matrix, waiting


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


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """n stored values end to end, checked as a whole; what their tiles hold is still words."""

    header: np.ndarray
    """`int64[n, HEADER_WORDS]`"""
    buffer: bytes
    """Behind the last value come as many bytes as the longest has: a run of words that is copied for each entity alike
    may reach past its own."""
    words: np.ndarray
    """The buffer, `int64`."""
    heap: tuple[np.ndarray, np.ndarray]
    """First byte of each value's heap within the buffer, and the first behind it (`int64[n]`)."""
    tiles: np.ndarray
    """`int64[groups, n]`: how many tiles each value has."""
    ends: np.ndarray
    """`int64[groups, n]`: the place in `words` where they end."""


def open_values(layout: Layout, values: Sequence[bytes]) -> Opened:
    """Raises Corrupt for bytes of another format or view."""
    sizes = list(map(len, values))
    lengths = np.array(sizes, np.int64)
    if min(sizes, default=HEADER_WORDS * 8) < HEADER_WORDS * 8 or some(lengths & 7 != 0):
        raise Corrupt("a stored value is no whole number of words", hint=REREAD)
    buffer = joined(layout, values, max(sizes, default=0))
    words = np.frombuffer(buffer, "<i8")
    starts = (lengths.cumsum() - lengths) >> 3
    header = runs(words, HEADER_WORDS)[starts]
    _check(layout, header, lengths)
    end = starts + header[:, HEAP_WORD]
    position = starts + HEADER_WORDS
    tiles = np.empty((len(layout.groups), lengths.size), np.int64)
    ends = np.empty_like(tiles)
    for number, group in enumerate(layout.groups):
        width = record_words(group)
        count = words.take(position)
        first = position + 1
        # A negative number is a large one without its sign.
        if some(count.view(np.uint64) > ((end - first) // width).view(np.uint64)):
            raise _broken()
        position = first + count * width
        tiles[number], ends[number] = count, position
    if some(position != end):
        raise _broken()
    return Opened(header, buffer, words, (end << 3, (starts + header[:, TOTAL_WORDS]) << 3), tiles, ends)


def joined(layout: Layout, values: Sequence[bytes], longest: int) -> bytes:
    """The buffer of `Opened`; `longest` is the length of the longest value."""
    # No layout is wider than its widest tile, also where no value is that long.
    return b"".join((*values, bytes(max(longest, 8 * _widest(layout), HEADER_WORDS * 8))))


@lru_cache(maxsize=4096)
def _widest(layout: Layout) -> int:
    return max((record_words(group) for group in layout.groups), default=0)


def unpack(layout: Layout, values: Sequence[bytes]) -> Unpacked:
    """n stored values → header and tiles. Raises Corrupt for bytes of another format or view."""
    opened = open_values(layout, values)
    heap = tuple(edge[:, None] for edge in opened.heap)
    groups: list[Tiles] = []
    for group, count, end in zip(layout.groups, opened.tiles, opened.ends, strict=True):
        width = record_words(group)
        most = max(1, int(count.max(initial=0)))
        block = runs(opened.words, most * width)[end - count * width].reshape(-1, most, width)
        live = np.arange(most) < count[:, None]
        ids = np.where(live, block[:, :, 0], NO_TILE)
        columns = np.moveaxis(block, 2, 0)
        groups.append(Tiles(ids, states_of(group, columns, live, heap, opened.buffer)))
    return Unpacked(opened.header, tuple(groups), opened.buffer)


def headers(values: Sequence[bytes | None]) -> np.ndarray:
    """`int64[m, HEADER_WORDS]` of the values that are there and long enough to have one, in their order, unchecked."""
    size = HEADER_WORDS * 8
    parts = [value[:size] for value in values if value is not None and len(value) >= size]
    return np.frombuffer(b"".join(parts), "<i8").reshape(-1, HEADER_WORDS)


def runs(words: np.ndarray, width: int) -> np.ndarray:
    """Every run of so many words, as a view: row i starts at word i."""
    return np.ndarray((max(0, words.size - width + 1), width), "<i8", words, strides=(8, 8))


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


Heap = Sequence[np.ndarray]
"""First byte of each entity's heap, and the first behind it, in a shape that fits what refers to it."""


def states_of(group: Group, columns: np.ndarray, live: np.ndarray, heap: Heap, buffer: bytes) -> tuple[State, ...]:
    """The words of tiles, `[record_words, n, k]`, → fields `[n, k, …]`, by stored partial.

    Where it is not `live` (`bool[n, k]`) a field holds anything.
    """
    states: list[State] = []
    column = 1
    for stored in group.stored:
        fields: list[np.ndarray] = []
        for field in stored.partial.fields:
            width = words_of(field)
            fields.append(read_field(field, columns[column : column + width], live, heap, buffer))
            column += width
        states.append(tuple(fields))
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


_READ_FIELD: dict[str, Callable[[np.ndarray, np.ndarray, Heap, bytes], np.ndarray]] = {
    "i8": _ints,
    "f8": _floats,
    "text": _references,
    "u1": _sketches,
}
