"""Avro binary, a batch at a time: one cursor per row, all rows read field by field.

Loops run over fields and over the at most ten bytes of a varint, never over rows. A row that breaks leaves with its
reason and its cursor is not looked at again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.clock import MAX_INSTANT, MIN_INSTANT
from featurestore.contracts.arrow import ARROW_TYPES, MAX_TEXT_BYTES, Decoded, Mask, Rows, arrow_schema, text_overflow
from featurestore.contracts.contract import Contract
from featurestore.contracts.field import Field
from featurestore.contracts.reasons import MAX_VALUE_BYTES, Reason, Reject
from featurestore.types import Dtype

_VARINT_BYTES = 10
_PAD = 16


@dataclass(slots=True)
class _Cursors:
    """Where each row is. Rows named in a call are always alive."""

    chars: npt.NDArray[np.uint8]
    """All values end to end, and some zero bytes behind them so that a read past the end stays in bounds."""
    at: Rows
    ends: Rows
    alive: Mask
    faults: dict[int, tuple[Reason, str]] = field(default_factory=dict)

    def refuse(self, rows: Rows, reason: Reason, error: str) -> None:
        self.alive[rows] = False
        self.faults.update(dict.fromkeys(rows.tolist(), (reason, error)))

    def keep(self, rows: Rows, good: Mask, reason: Reason, error: str) -> Rows:
        """The rows that are good; the others are refused."""
        if good.all():
            return rows
        self.refuse(rows[~good], reason, error)
        return rows[good]

    def advance(self, rows: Rows, size: int, what: str) -> tuple[Rows, Rows]:
        """Rows that have `size` more bytes, and where these begin."""
        starts = self.at[rows]
        fits = starts + size <= self.ends[rows]
        self.at[rows] = starts + size
        return self.keep(rows, fits, Reason.BAD_AVRO, f"{what}: the value ends early"), starts[fits]


def decode_avro(contract: Contract, values: Sequence[bytes | None], *, skip: int = 0) -> Decoded:
    """Decode records written with exactly this contract's schema, `skip` bytes into each value."""
    cursors = _open(values, skip)
    columns = [_COLUMNS[f.dtype](cursors, f, *_live_rows(cursors, f)) for f in contract.fields]
    alive = np.flatnonzero(cursors.alive)
    cursors.keep(
        alive, cursors.at[alive] == cursors.ends[alive], Reason.BAD_AVRO, "bytes are left over after the last field"
    )
    batch = pa.RecordBatch.from_arrays(columns, schema=arrow_schema(contract))
    rejects = tuple(Reject(row, *cursors.faults[row]) for row in sorted(cursors.faults))
    if rejects:
        batch = batch.filter(pa.array(cursors.alive))
    return Decoded(batch, np.flatnonzero(cursors.alive), rejects)


def _open(values: Sequence[bytes | None], skip: int) -> _Cursors:
    laid = pa.array(values, pa.large_binary())
    _, offset_bytes, data = laid.buffers()
    offsets = np.frombuffer(offset_bytes, np.int64, count=len(values) + 1) if len(values) else np.zeros(1, np.int64)
    chars = np.frombuffer((data.to_pybytes() if data is not None else b"") + bytes(_PAD), np.uint8)
    cursors = _Cursors(chars, offsets[:-1] + skip, offsets[1:].copy(), np.ones(len(values), np.bool_))
    rows, sizes = np.arange(len(values)), np.diff(offsets)
    rows = cursors.keep(rows, sizes > 0, Reason.EMPTY, "the value is null or empty")
    rows = cursors.keep(
        rows, sizes[rows] <= MAX_VALUE_BYTES, Reason.TOO_LARGE, f"more than {MAX_VALUE_BYTES} bytes are not read"
    )
    cursors.keep(rows, sizes[rows] >= skip, Reason.BAD_AVRO, f"the value has less than {skip} bytes")
    return cursors


def _live_rows(cursors: _Cursors, field: Field) -> tuple[Rows, Mask]:
    """Rows with a value to read, and the mask of the nulls among all rows."""
    rows = np.flatnonzero(cursors.alive)
    nulls = np.zeros(len(cursors.at), np.bool_)
    if field.null_branch is None:
        return rows, nulls
    rows, branch = _read_varints(cursors, rows, field)
    known = (branch == 0) | (branch == 1)
    rows = cursors.keep(rows, known, Reason.BAD_AVRO, f"{field.name}: no such branch of the union")
    is_null = branch[known] == field.null_branch
    nulls[rows[is_null]] = True
    return rows[~is_null], nulls


def _read_varints(cursors: _Cursors, rows: Rows, field: Field) -> tuple[Rows, Rows]:
    """Zigzag integers of 64 bits: the rows that have one, and their numbers."""
    number = np.zeros(len(rows), np.uint64)
    at, ends = cursors.at[rows], cursors.ends[rows]
    more = np.arange(len(rows))
    fine = np.ones(len(rows), np.bool_)
    for place in range(_VARINT_BYTES):
        byte = cursors.chars[np.minimum(at[more], len(cursors.chars) - 1)]
        number[more] |= (byte & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * place)
        at[more] += 1
        if place == _VARINT_BYTES - 1:
            fine[more[byte > 1]] = False
        more = more[byte >= 0x80]
        if not len(more):
            break
    cursors.at[rows] = at
    fine &= at <= ends
    kept = cursors.keep(rows, fine, Reason.BAD_AVRO, f"{field.name}: not a whole integer of at most 64 bits")
    number = number[fine]
    return kept, (number >> np.uint64(1)).astype(np.int64) ^ -(number & np.uint64(1)).astype(np.int64)


def _spread(cursors: _Cursors, rows: Rows, numbers: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Numbers of some rows as a column over all rows, zero elsewhere."""
    column = np.zeros(len(cursors.at), numbers.dtype)
    column[rows] = numbers
    return column


def _mask(nulls: Mask) -> Mask | None:
    return nulls if nulls.any() else None


def _bool_column(cursors: _Cursors, field: Field, rows: Rows, nulls: Mask) -> pa.Array:
    rows, starts = cursors.advance(rows, 1, field.name)
    byte = cursors.chars[starts]
    fine = byte <= 1
    rows = cursors.keep(rows, fine, Reason.BAD_AVRO, f"{field.name}: a boolean is one byte, 0 or 1")
    return pa.array(_spread(cursors, rows, byte[fine] == 1), mask=_mask(nulls))


def _int_column(cursors: _Cursors, field: Field, rows: Rows, nulls: Mask) -> pa.Array:
    rows, numbers = _read_varints(cursors, rows, field)
    low, high = field.bounds
    fine = (numbers >= low) & (numbers <= high)
    rows = cursors.keep(rows, fine, Reason.OUT_OF_RANGE, f"{field.name}: an integer outside {low} to {high}")
    return pa.array(_spread(cursors, rows, numbers[fine]), mask=_mask(nulls))


def _timestamp_column(cursors: _Cursors, field: Field, rows: Rows, nulls: Mask) -> pa.Array:
    rows, steps = _read_varints(cursors, rows, field)
    fine = (steps >= -(-MIN_INSTANT // field.unit_micros)) & (steps <= MAX_INSTANT // field.unit_micros)
    rows = cursors.keep(rows, fine, Reason.OUT_OF_RANGE, f"{field.name}: an instant outside the years 1 to 9999")
    micros = _spread(cursors, rows, steps[fine] * field.unit_micros)
    return pa.array(micros, pa.int64(), mask=_mask(nulls)).cast(ARROW_TYPES[Dtype.TIMESTAMP])


def _float_column(cursors: _Cursors, field: Field, rows: Rows, nulls: Mask) -> pa.Array:
    kind = np.dtype("<f4" if field.wire == "float" else "<f8")
    rows, starts = cursors.advance(rows, kind.itemsize, field.name)
    windows = np.ndarray(
        (len(cursors.chars) - kind.itemsize + 1,), f"V{kind.itemsize}", buffer=cursors.chars.data, strides=(1,)
    )
    numbers = windows[starts].view(kind)
    fine = np.isfinite(numbers)
    rows = cursors.keep(rows, fine, Reason.NOT_FINITE, f"{field.name}: NaN or infinite")
    # Widened after the check: NumPy warns when it converts a signalling NaN.
    return pa.array(_spread(cursors, rows, numbers[fine].astype(np.float64) + 0.0), mask=_mask(nulls))


def _string_column(cursors: _Cursors, field: Field, rows: Rows, nulls: Mask) -> pa.Array:
    return _enum_column(cursors, field, rows, nulls) if field.symbols else _text_column(cursors, field, rows, nulls)


def _enum_column(cursors: _Cursors, field: Field, rows: Rows, nulls: Mask) -> pa.Array:
    rows, places = _read_varints(cursors, rows, field)
    fine = (places >= 0) & (places < len(field.symbols))
    rows = cursors.keep(rows, fine, Reason.BAD_ENUM, f"{field.name}: the enum has {len(field.symbols)} symbols")
    codes = pa.array(_spread(cursors, rows, places[fine]), pa.int64(), mask=_mask(nulls))
    return pa.array(field.symbols, pa.string()).take(codes)


def _text_column(cursors: _Cursors, field: Field, rows: Rows, nulls: Mask) -> pa.Array:
    rows, sizes = _read_varints(cursors, rows, field)
    starts = cursors.at[rows]
    fine = (sizes >= 0) & (sizes <= cursors.ends[rows] - starts)
    rows = cursors.keep(rows, fine, Reason.BAD_AVRO, f"{field.name}: the string is longer than the value")
    starts, sizes = starts[fine], sizes[fine]
    cursors.at[rows] = starts + sizes
    column = _gather(cursors, rows, starts, sizes, nulls)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        good = _utf8_rows(cursors, starts, sizes)
        rows = cursors.keep(rows, good, Reason.BAD_UTF8, f"{field.name}: not UTF-8")
        column = _gather(cursors, rows, starts[good], sizes[good], nulls)
    return column


def _gather(cursors: _Cursors, rows: Rows, starts: Rows, sizes: Rows, nulls: Mask) -> pa.Array:
    """Spans of the values as a string column over all rows; rows without a span are empty strings, or null."""
    offsets = np.zeros(len(cursors.at) + 1, np.int64)
    offsets[rows + 1] = sizes
    offsets = np.cumsum(offsets)
    if offsets[-1] > MAX_TEXT_BYTES:
        raise text_overflow()
    source = np.repeat(starts - offsets[rows], sizes) + np.arange(offsets[-1])
    validity = pa.array(~nulls).buffers()[1] if nulls.any() else None
    ends, chars = pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(cursors.chars[source])
    return pa.StringArray.from_buffers(len(nulls), ends, chars, validity)


def _utf8_rows(cursors: _Cursors, starts: Rows, sizes: Rows) -> Mask:
    """Row by row, for the rare batch that holds text that is not UTF-8."""
    good = np.ones(len(starts), np.bool_)
    for row, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        try:
            cursors.chars[start : start + size].tobytes().decode("utf-8")
        except UnicodeDecodeError:
            good[row] = False
    return good


_COLUMNS: dict[Dtype, Callable[[_Cursors, Field, Rows, Mask], pa.Array]] = {
    Dtype.BOOL: _bool_column,
    Dtype.INT: _int_column,
    Dtype.FLOAT: _float_column,
    Dtype.STRING: _string_column,
    Dtype.TIMESTAMP: _timestamp_column,
}
