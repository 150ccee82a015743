"""Tables (Parquet files, data frames) checked against a contract: only casts that keep every value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import MAX_INSTANT, MIN_INSTANT
from featurestore.contracts.arrow import ARROW_TYPES, Mask, arrow_schema, build_column, one_batch
from featurestore.contracts.contract import Contract
from featurestore.contracts.field import NO_DEFAULT, Field
from featurestore.contracts.reasons import MAX_VALUE_BYTES, Reason, Reject
from featurestore.errors import ContractError, near_matches
from featurestore.types import Dtype

_EXACT_INT = 2**53
_MICROS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True, slots=True)
class _Fault:
    """Rows of one column that cannot be taken."""

    rows: Mask
    reason: Reason
    error: str


_Checked = tuple[pa.Array, tuple[_Fault, ...]]


def check_table(contract: Contract, table: pa.Table) -> tuple[pa.Table, tuple[Reject, ...]]:
    """The valid rows in the contract's schema, and the refused ones by their index in `table`.

    A missing column takes the contract's default; columns the contract does not know are dropped. Raises ContractError
    that names the column where one is missing without a default, is there twice, or has a type that cannot be cast
    without loss (a timestamp without a zone, a float for an int, a string for a number).
    """
    arrays, faults = [], []
    for field in contract.fields:
        array, found = _check_column(contract, table, field)
        arrays.append(array)
        faults += [_Fault(f.rows, f.reason, f"{field.name}: {f.error}") for f in found if f.rows.any()]
    checked = pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(contract))
    if not faults:
        return pa.Table.from_batches([checked]), ()
    first: dict[int, Reject] = {}
    for fault in faults:
        for row in np.flatnonzero(fault.rows).tolist():
            first.setdefault(row, Reject(row, fault.reason, fault.error))
    keep = np.ones(table.num_rows, np.bool_)
    keep[list(first)] = False
    return pa.Table.from_batches([checked.filter(pa.array(keep))]), tuple(first[row] for row in sorted(first))


def _check_column(contract: Contract, table: pa.Table, field: Field) -> _Checked:
    there = table.schema.names.count(field.name)
    if there > 1:
        raise ContractError(f"the table has {there} columns {field.name!r}", field=field.name)
    if not there:
        return _absent(contract, table, field), ()
    array = _whole(table.select([field.name]))
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        array = array.cast(ARROW_TYPES[field.dtype])
    accepted, cast = _CASTS[field.dtype]
    if not accepted(array.type):
        raise ContractError(
            f"column {field.name!r} is {array.type}, which is no {field.dtype} without loss",
            hint=_type_hint(field, array.type),
            field=field.name,
        )
    result, faults = cast(field, array)
    nulls = pc.is_null(array).to_numpy(zero_copy_only=False)
    if not field.nullable and nulls.any():
        faults = (*faults, _Fault(nulls, Reason.WRONG_TYPE, "null, and the contract allows none"))
    return result, faults


def _whole(table: pa.Table) -> pa.Array:
    return one_batch(table.unify_dictionaries()).column(0)


def _absent(contract: Contract, table: pa.Table, field: Field) -> pa.Array:
    if field.default is NO_DEFAULT:
        near = near_matches(field.name, table.schema.names)
        guess = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        raise ContractError(
            f"the table has no column {field.name!r}, and contract {contract.id} has no default for it{guess}",
            hint=f"the table has {', '.join(table.schema.names[:40]) or 'no columns'}",
            field=field.name,
        )
    return pa.repeat(build_column([field.default], field)[0], table.num_rows)


def _type_hint(field: Field, found: pa.DataType) -> str:
    if field.dtype is Dtype.TIMESTAMP:
        if pa.types.is_timestamp(found):
            return "say which zone it is in: in pandas .dt.tz_localize('UTC'), in Polars .dt.replace_time_zone('UTC')"
        return "pass a timestamp column with a zone"
    return f"cast the column to {ARROW_TYPES[field.dtype]} before"


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    """With 0 for null."""
    return np.asarray(pc.fill_null(array, pa.scalar(0).cast(array.type)))


def _cast_bool(_: Field, array: pa.Array) -> _Checked:
    return array, ()


def _cast_int(field: Field, array: pa.Array) -> _Checked:
    low, high = field.bounds
    numbers = _numbers(array)
    outside = (numbers > high) if array.type == pa.uint64() else ((numbers < low) | (numbers > high))
    fault = _Fault(np.asarray(outside), Reason.OUT_OF_RANGE, f"an integer outside {low} to {high}")
    return array.cast(pa.int64(), safe=False), (fault,)


def _cast_float(_: Field, array: pa.Array) -> _Checked:
    if pa.types.is_integer(array.type):
        numbers = _numbers(array)
        outside = (numbers > _EXACT_INT) | ((numbers < 0) & (numbers < -_EXACT_INT))
        fault = _Fault(np.asarray(outside), Reason.OUT_OF_RANGE, "an integer that no double holds exactly")
        return array.cast(pa.float64(), safe=False), (fault,)
    wide = array.cast(pa.float64())
    fault = _Fault(
        ~np.isfinite(_numbers(wide)), Reason.NOT_FINITE, "NaN or infinite (a missing value is null, not NaN)"
    )
    return pc.add(wide, 0.0), (fault,)


def _cast_string(field: Field, array: pa.Array) -> _Checked:
    text, faults = _sound_text(array)
    large = np.asarray(pc.greater_equal(pc.binary_length(text), MAX_VALUE_BYTES).fill_null(False))
    faults = (*faults, _Fault(large, Reason.TOO_LARGE, f"a text of {MAX_VALUE_BYTES} bytes or more"))
    if field.symbols:
        known = pc.is_in(text, value_set=pa.array([*field.symbols, None], pa.string())).to_numpy(zero_copy_only=False)
        faults = (*faults, _Fault(~known, Reason.BAD_ENUM, f"none of {', '.join(field.symbols[:20])}"))
    return text, faults


def _sound_text(array: pa.Array) -> _Checked:
    """Files are read without a look at their texts: what is no UTF-8 is found here, and is empty in the result."""
    try:
        array.validate(full=True)
        return array.cast(pa.string()), ()
    except pa.ArrowInvalid:
        raw = array.cast(pa.binary()).to_pylist()
    broken = np.array([value is not None and not _is_utf8(value) for value in raw], np.bool_)
    texts = ["" if bad else value for value, bad in zip(raw, broken.tolist(), strict=True)]
    return pa.array(texts, pa.binary()).cast(pa.string()), (_Fault(broken, Reason.BAD_UTF8, "no valid UTF-8"),)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _cast_timestamp(_: Field, array: pa.Array) -> _Checked:
    steps = _numbers(array.cast(pa.int64()))
    if array.type.unit == "ns":
        micros = steps // 1_000
        faults = [_Fault(steps % 1_000 != 0, Reason.BAD_TIMESTAMP, "finer than a microsecond")]
        outside = np.zeros(len(steps), np.bool_)
    else:
        factor = _MICROS[array.type.unit]
        outside = (steps < -(-MIN_INSTANT // factor)) | (steps > MAX_INSTANT // factor)
        micros = np.where(outside, 0, steps) * factor
        faults = []
    faults.append(_Fault(outside, Reason.OUT_OF_RANGE, "an instant outside the years 1 to 9999"))
    nulls = pc.is_null(array).to_numpy(zero_copy_only=False)
    return pa.array(micros, pa.int64(), mask=nulls).cast(ARROW_TYPES[Dtype.TIMESTAMP]), tuple(faults)


def _is_text(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_number(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_integer, pa.types.is_floating))


def _has_zone(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind)) and kind.tz is not None


_CASTS: dict[Dtype, tuple[Callable[[pa.DataType], bool], Callable[[Field, pa.Array], _Checked]]] = {
    Dtype.BOOL: (pa.types.is_boolean, _cast_bool),
    Dtype.INT: (pa.types.is_integer, _cast_int),
    Dtype.FLOAT: (_is_number, _cast_float),
    Dtype.STRING: (_is_text, _cast_string),
    Dtype.TIMESTAMP: (_has_zone, _cast_timestamp),
}
