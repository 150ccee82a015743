"""JSON values, a batch at a time: msgspec reads what leaves no doubt, the exact path judges the rest.

The result is always that of `json_rows`, row by row. A refusal is only ever worded there; here a row is either
understood without doubt or handed over, so a few broken rows cost their own time and not the batch's.

What msgspec takes differs from the exact path in three ways: of repeated keys it keeps the last, it hardly looks at
fields that nobody asked for, and it has other limits of size and depth. The quotes tell: a document has two for each
key and two for each string, so where the values that were read account for all of them, nothing else was there. Other
rows are read in full and written again, which keeps the number of quotes unless a key is repeated, at any depth.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, pairwise
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Meta, UnsetType

from featurestore.clock import MAX_INSTANT, MIN_INSTANT
from featurestore.contracts.arrow import (
    ARROW_TYPES,
    Decoded,
    Mask,
    Rows,
    arrow_schema,
    assemble,
    build_column,
    rows_to_batch,
)
from featurestore.contracts.contract import Contract
from featurestore.contracts.field import Field, Scalar
from featurestore.contracts.instants import parse_instants
from featurestore.contracts.json_rows import decode_json_row
from featurestore.contracts.reasons import MAX_DEPTH, MAX_VALUE_BYTES, Refused, Reject
from featurestore.types import Dtype

# Few enough for what is read to be still in the cache when it becomes columns, many enough for calls not to show.
CHUNK_ROWS = 2048
CHUNK_BYTES = 16 << 20

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_json(contract: Contract, values: Sequence[bytes | None]) -> Decoded:
    """Decode JSON values. Equal to `decode_json_exactly`, and several times faster."""
    return assemble(contract, _decode_chunks(contract, values))


def decode_json_exactly(contract: Contract, values: Sequence[bytes | None], rows: Rows | None = None) -> Decoded:
    """Decode one value at a time. `rows` numbers the values, 0, 1, … where it is not given."""
    numbers = np.arange(len(values)) if rows is None else rows
    kept: list[int] = []
    decoded: list[tuple[Scalar, ...]] = []
    rejects: list[Reject] = []
    for row, value in zip(numbers.tolist(), values, strict=True):
        try:
            decoded.append(decode_json_row(contract, value))
            kept.append(row)
        except Refused as refused:
            rejects.append(refused.at(row))
    return Decoded(rows_to_batch(contract, decoded), np.array(kept, np.int64), tuple(rejects))


def _decode_chunks(contract: Contract, values: Sequence[bytes | None]) -> Iterator[Decoded]:
    sized = _bounded(values)
    for start, stop in _chunks(sized):
        rows = np.arange(start, stop)
        batch, sure = _decode_plain(contract, sized[start:stop])
        if batch is not None:
            yield Decoded(batch, rows[sure], ())
        if not sure.all():
            yield decode_json_exactly(contract, list(compress(values[start:stop], ~sure)), rows[~sure])


def _bounded(values: Sequence[bytes | None]) -> Sequence[bytes]:
    """Nothing is read from an empty value: what is too large goes to the exact path like anything unreadable."""
    if None not in values and max(map(len, values), default=0) <= MAX_VALUE_BYTES:  # type: ignore[arg-type]
        return values  # type: ignore[return-value]
    return [value if value and len(value) <= MAX_VALUE_BYTES else b"" for value in values]


def _chunks(values: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Where each run of bounded size begins and ends."""
    bytes_before = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
    run = bytes_before // CHUNK_BYTES + np.arange(len(values)) // CHUNK_ROWS
    return pairwise([0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(values)])


def _decode_plain(contract: Contract, values: Sequence[bytes]) -> tuple[pa.RecordBatch | None, Mask]:
    """The rows that are understood without doubt, and which they are."""
    rows, sure = _read(_row_decoder(contract), values)
    if not rows:
        return None, sure
    raw = [list(map(attrgetter(slot), rows)) for slot in rows[0].__struct_fields__]
    columns = [_column(field, values_of) for field, values_of in zip(contract.fields, raw, strict=True)]
    batch = pa.RecordBatch.from_arrays([column.array for column in columns], schema=arrow_schema(contract))
    documents = list(compress(values, sure)) if len(rows) < len(values) else values
    fine = _names_keys_once(documents, [column.quotes for column in columns])
    for column in columns:
        fine &= column.fine
    sure[sure] = fine
    return (batch if fine.all() else batch.filter(pa.array(fine))), sure


def _read(decode: Callable[[bytes], Any], values: Sequence[bytes]) -> tuple[list[Any], Mask]:
    """What was read, and from which of the values."""
    read = np.ones(len(values), np.bool_)
    with suppress(*_UNREADABLE):
        return list(map(decode, values)), read
    found = []
    for place, value in enumerate(values):
        try:
            found.append(decode(value))
        except _UNREADABLE:
            read[place] = False
    return found, read


def _names_keys_once(documents: Sequence[bytes], known: Sequence[Rows | int]) -> Mask:
    """Which documents have no key twice in one object. `known` are the quotes of each field that was asked for."""
    expected: Rows = np.zeros(len(documents), np.int64)
    for of_field in known:
        expected += of_field
    text = b"\0".join([*documents, b""])
    # No document has fewer quotes than the fields that were read from it, so that equal sums leave none with more.
    if _quotes_in(text) == expected.sum():
        return np.ones(len(documents), np.bool_)
    quotes = _quotes_in_each(text, 0)
    once: Mask = quotes == expected
    found, same = _read(_decode_any(text, len(documents)), list(compress(documents, ~once)))
    same[same] = quotes[~once][same] == _quotes_in_each(_ENCODER.encode_lines(found), ord("\n"))
    once[~once] = same
    return once


def _decode_any(text: bytes, documents: int) -> Callable[[bytes], Any]:
    """A reader of everything in a document, which counts brackets only where the whole text has enough of them."""
    brackets = text.count(b"{") + text.count(b"[")
    return _DECODER.decode if brackets < documents + MAX_DEPTH else _decode_shallow


def _decode_shallow(document: bytes) -> Any:
    if document.count(b"{") + document.count(b"[") > MAX_DEPTH:
        raise msgspec.DecodeError("nested too deep")
    return _DECODER.decode(document)


_DECODER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()


def _unescaped(text: bytes) -> bytes:
    return text.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in text else text


def _quotes_in(text: bytes) -> int:
    """How many quotes begin or end a string."""
    return _unescaped(text).count(b'"')


def _quotes_in_each(text: bytes, end: int) -> Rows:
    """The same, of each document in the text. `end` is a byte that follows each document and is in none."""
    chars = np.frombuffer(_unescaped(text), np.uint8)
    marks = chars[(chars == ord('"')) | (chars == end)]
    return np.diff(np.flatnonzero(marks == end), prepend=-1) - 1


_LITERAL: Any = Literal
_JSON_TYPES: dict[Dtype, Callable[[Field], Any]] = {
    Dtype.BOOL: lambda _: bool,
    Dtype.INT: lambda field: _integer(*field.bounds),
    Dtype.FLOAT: lambda _: float,
    Dtype.STRING: lambda field: _LITERAL[field.symbols] if field.symbols else str,
    Dtype.TIMESTAMP: lambda field: (
        _integer(-(-MIN_INSTANT // field.unit_micros), MAX_INSTANT // field.unit_micros) | str
    ),
}


def _integer(low: int, high: int) -> Any:
    return Annotated[int, Meta(ge=low, le=high)]


@lru_cache(maxsize=256)
def _row_decoder(contract: Contract) -> Callable[[bytes], Any]:
    """Reads an object into a struct with the contract's fields in order; UNSET is a field that is not there."""
    slots: list[Any] = []
    for number, field in enumerate(contract.fields):
        kind = _JSON_TYPES[field.dtype](field)
        kind = kind | None if field.nullable else kind
        slots.append((f"f{number}", kind | UnsetType, UNSET) if field.has_default else (f"f{number}", kind))
    rename = {f"f{number}": name for number, name in enumerate(contract.names)}
    return msgspec.json.Decoder(msgspec.defstruct("Row", slots, rename=rename, kw_only=True, gc=False)).decode


@dataclass(frozen=True, slots=True)
class _Column:
    array: pa.Array
    fine: Mask | bool = True
    """Which values are understood."""
    quotes: Rows | int = 2
    """Around the key and the string of each row, where they are."""


def _column(field: Field, raw: Sequence[Any]) -> _Column:
    if not (field.has_default and UNSET in raw):
        return _COLUMNS[field.dtype](field, raw)
    absent = np.fromiter((value is UNSET for value in raw), np.bool_, len(raw))
    given = _COLUMNS[field.dtype](field, [None if value is UNSET else value for value in raw])
    array = pc.if_else(pa.array(absent), build_column([field.default], field)[0], given.array)
    return _Column(array, given.fine, given.quotes - 2 * absent)


def _plain_column(field: Field, raw: Sequence[Any]) -> _Column:
    return _Column(build_column(raw, field))


def _floats(field: Field, raw: Sequence[Any]) -> _Column:
    return _Column(pc.add(build_column(raw, field), 0.0))  # -0.0 becomes 0.0


def _strings(field: Field, raw: Sequence[Any]) -> _Column:
    array = build_column(raw, field)
    return _Column(array, quotes=2 + 2 * _is_there(array) if array.null_count else 4)


def _instants(field: Field, raw: Sequence[Any]) -> _Column:
    try:
        texts, steps = None, pa.array(raw, pa.int64())
    except pa.ArrowException:
        texts = pa.array([value if type(value) is str else None for value in raw], pa.string())
        steps = pa.array([value if type(value) is int else None for value in raw], pa.int64())
    micros = pc.multiply(steps, field.unit_micros)
    if texts is None:
        return _Column(micros.cast(ARROW_TYPES[field.dtype]))
    written = _is_there(texts)
    parsed, fine = parse_instants(texts)
    micros = pc.if_else(pa.array(written), parsed, micros)
    return _Column(micros.cast(ARROW_TYPES[field.dtype]), fine | ~written, 2 + 2 * written)


def _is_there(array: pa.Array) -> Mask:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)


_COLUMNS: dict[Dtype, Callable[[Field, Sequence[Any]], _Column]] = {
    Dtype.BOOL: _plain_column,
    Dtype.INT: _plain_column,
    Dtype.FLOAT: _floats,
    Dtype.STRING: _strings,
    Dtype.TIMESTAMP: _instants,
}
