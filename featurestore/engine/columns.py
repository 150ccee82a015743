"""Columns: events going in, feature values coming out, and the interning that keeps text off the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from featurestore.clock import MIN_INSTANT, format_instant
from featurestore.definitions.compiled import CompiledSource
from featurestore.engine.array import Array, every
from featurestore.types import Dtype

SEQ_BITS = 48
"""`seq = source partition << 48 | source offset` orders events of one instant."""

LOADED = -1
"""The partition of events that were loaded from files: of one instant, they are before all that came from a topic."""

NUMPY_DTYPES: dict[Dtype, Any] = {
    Dtype.BOOL: np.bool_,
    Dtype.INT: np.int64,
    Dtype.FLOAT: np.float64,
    Dtype.TIMESTAMP: np.int64,
    Dtype.STRING: np.int64,
}
"""What a column's values are inside the engine; strings are codes of a `StringPool`."""

ARROW_TYPES: dict[Dtype, pa.DataType] = {
    Dtype.BOOL: pa.bool_(),
    Dtype.INT: pa.int64(),
    Dtype.FLOAT: pa.float64(),
    Dtype.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    Dtype.STRING: pa.string(),
}


@dataclass(frozen=True, slots=True)
class Column:
    """n values and which of them are not null. Where `valid` is False the value is arbitrary but finite."""

    values: Array
    valid: Array
    dtype: Dtype | None
    """None for the literal null."""


class StringPool:
    """Text ↔ int64 codes, so that equal codes are equal texts and kernels see integers only."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._texts: list[str] = []
        self._hashes = np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self._texts)

    def code(self, text: str) -> int:
        known = self._codes.setdefault(text, len(self._texts))
        if known == len(self._texts):
            self._texts.append(text)
        return known

    def intern(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """String array → (int64 codes, valid); null rows have code -1."""
        encoded = array.dictionary_encode()
        table = np.fromiter(map(self.code, encoded.dictionary.to_pylist()), np.int64, len(encoded.dictionary))
        indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        table = np.append(table, -1)
        return table[indices], indices >= 0

    def texts(self, codes: np.ndarray) -> np.ndarray:
        """Object array of str; None for code -1."""
        distinct, inverse = np.unique(codes, return_inverse=True)
        words = np.empty(distinct.size, object)
        words[:] = [self._texts[c] if c >= 0 else None for c in distinct.tolist()]
        return words[inverse]

    def hashes(self) -> np.ndarray:
        """XXH3-64 of each text's UTF-8, by code."""
        fresh = self._texts[self._hashes.size :]
        if fresh:
            digests = map(xxhash.xxh3_64_intdigest, map(str.encode, fresh))
            self._hashes = np.append(self._hashes, np.fromiter(digests, np.uint64, len(fresh)))
        return self._hashes

    def keep(self, codes: np.ndarray) -> np.ndarray:
        """Forgets every text but these; returns the table old code → new code (-1 where forgotten)."""
        kept = np.unique(codes[codes >= 0])
        table = np.full(len(self._texts) + 1, -1, np.int64)
        table[kept] = np.arange(kept.size)
        texts = [self._texts[c] for c in kept.tolist()]
        self._texts, self._codes = texts, {text: code for code, text in enumerate(texts)}
        self._hashes = np.empty(0, np.uint64)
        return table


def column_from_arrow(array: pa.Array, dtype: Dtype, pool: StringPool) -> Column:
    """Arrow column of a contract → host column."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if dtype is Dtype.STRING:
        codes, valid = pool.intern(array)
        return Column(codes, valid, dtype)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if dtype is Dtype.TIMESTAMP:
        array = array.cast(ARROW_TYPES[dtype]).view(pa.int64())
    filler = False if dtype is Dtype.BOOL else 0
    filled = array.fill_null(filler) if array.null_count else array
    values = filled.to_numpy(zero_copy_only=False).astype(NUMPY_DTYPES[dtype], copy=False)
    return Column(values, valid, dtype)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureColumn:
    """One feature for n entities, on the host."""

    name: str
    dtype: Dtype
    many: bool
    values: np.ndarray
    """`[n]`: bool, int64 (also timestamps, µs), float64, or object (str; lists where `many`)."""
    valid: np.ndarray
    """`bool[n]`; False is null."""
    status: np.ndarray
    """`uint8[n]`, codes of `types.STATUS_CODES`."""
    as_of: np.ndarray
    """`int64[n]` µs: the event time the value stands on; `NEVER` where there is none."""

    def take(self, rows: np.ndarray) -> FeatureColumn:
        picked = (self.values[rows], self.valid[rows], self.status[rows], self.as_of[rows])
        return FeatureColumn(self.name, self.dtype, self.many, *picked)

    def to_list(self) -> list[Any]:
        """JSON-ready values: None for null, RFC 3339 text for timestamps."""
        items: list[Any] = self.values.tolist()
        if self.dtype is Dtype.TIMESTAMP:
            show: Callable[[Any], Any] = _show_instants if self.many else format_instant
            items = [show(v) if ok else None for v, ok in zip(items, self.valid.tolist(), strict=True)]
        elif not every(self.valid):
            items = [v if ok else None for v, ok in zip(items, self.valid.tolist(), strict=True)]
        return items

    def to_arrow(self) -> pa.Array:
        kind = ARROW_TYPES[self.dtype]
        if self.many:
            lists = [v if ok else None for v, ok in zip(self.values.tolist(), self.valid.tolist(), strict=True)]
            return pa.array(lists, pa.list_(kind))
        return pa.array(self.values, kind, mask=~self.valid)


NEVER = MIN_INSTANT
"""`as_of` of a value that stands on no event."""


def _show_instants(values: Sequence[int]) -> list[str]:
    return [format_instant(v) for v in values]


@dataclass(frozen=True, slots=True, eq=False)
class Entities:
    """The m distinct entities of a batch of n events."""

    keys: pa.Array
    """Canonical keys (string), without null."""
    names: list[str]
    """The same, as Python's."""
    codes: np.ndarray
    """`int32[n]`: the place of each event's entity in `keys`, -1 where its key is null."""


@dataclass(frozen=True, eq=False)
class EventBatch:
    """n events of one source, as a lane sees them: by entity."""

    keys: pa.Array
    """Canonical keys (string), null where a part of the key is null."""
    time: np.ndarray
    """`int64[n]` µs, event time."""
    seq: np.ndarray
    """`int64[n]`, see `SEQ_BITS`."""
    columns: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return int(self.time.size)

    @cached_property
    def entities(self) -> Entities:
        """Found once for all views and steps that ask."""
        encoded = self.keys.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return Entities(encoded.dictionary, encoded.dictionary.to_pylist(), codes)

    def take(self, rows: np.ndarray) -> EventBatch:
        index = pa.array(rows, pa.int64())
        columns = {name: column.take(index) for name, column in self.columns.items()}
        return EventBatch(self.keys.take(index), self.time[rows], self.seq[rows], columns)


def canonical_keys(parts: Sequence[pa.Array]) -> pa.Array:
    """Entity keys as text, one per row: parts joined by `|`, `\\` and `|` escaped; null where a part is null."""
    return pc.binary_join_element_wise(*(_key_text(p) for p in parts), "|") if len(parts) > 1 else _key_text(parts[0])


def _key_text(part: pa.Array) -> pa.Array:
    if isinstance(part, pa.ChunkedArray):
        part = part.combine_chunks()
    if not pa.types.is_string(part.type):
        return part.cast(pa.string())
    # To look for two bytes takes a tenth of the time that replacing none of them does.
    text = _text_of(part)
    if b"\\" not in text and b"|" not in text:
        return part
    return pc.replace_substring(pc.replace_substring(part, "\\", "\\\\"), "|", "\\|")


def _text_of(strings: pa.StringArray) -> bytes:
    """UTF-8 of all of them, end to end."""
    _, offsets, text = strings.buffers()
    if text is None or not len(strings):
        return b""
    first, last = np.frombuffer(offsets, np.int32)[[strings.offset, strings.offset + len(strings)]].tolist()
    found: bytes = text.slice(first, last - first).to_pybytes()
    return found


def canonical_key(values: Sequence[str | int | bool]) -> str:
    """One entity's key, the same text as `canonical_keys` gives."""
    return "|".join(_KEY_TEXT[type(v)](v) for v in values)


_KEY_TEXT: dict[type, Callable[[Any], str]] = {
    bool: lambda v: "true" if v else "false",
    int: str,
    str: lambda v: v.replace("\\", "\\\\").replace("|", "\\|"),
}


def event_batch(source: CompiledSource, keys: Sequence[str], table: pa.Table | pa.RecordBatch) -> EventBatch:
    """Contract columns plus `_partition` and `_offset` → the batch a lane with these key columns folds."""
    columns = {name: _one_chunk(table.column(name)) for name in table.schema.names}
    partition = columns["_partition"].to_numpy(zero_copy_only=False).astype(np.int64)
    offset = columns["_offset"].to_numpy(zero_copy_only=False).astype(np.int64)
    return EventBatch(
        keys=canonical_keys([columns[k] for k in keys]),
        time=columns[source.event_time]
        .cast(ARROW_TYPES[Dtype.TIMESTAMP])
        .view(pa.int64())
        .to_numpy(zero_copy_only=False),
        seq=(partition << SEQ_BITS) | offset,
        columns=columns,
    )


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
