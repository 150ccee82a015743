"""A contract's columns in Arrow, and batches put together from rows and pieces."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.contracts.contract import Contract
from featurestore.contracts.field import Field, Scalar
from featurestore.contracts.reasons import Reject
from featurestore.errors import UsageError
from featurestore.types import Dtype

ARROW_TYPES: dict[Dtype, pa.DataType] = {
    Dtype.BOOL: pa.bool_(),
    Dtype.INT: pa.int64(),
    Dtype.FLOAT: pa.float64(),
    Dtype.STRING: pa.string(),
    Dtype.TIMESTAMP: pa.timestamp("us", tz="UTC"),
}

MAX_TEXT_BYTES = 2**31 - 1
"""What the 32-bit offsets of an Arrow string column reach."""

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a batch of values holds. Each input row is in exactly one of `rows` and `rejects`, both ascending."""

    columns: pa.RecordBatch
    """The valid rows, in the contract's schema."""
    rows: Rows
    """`rows[i]` is the index in the input of row i of `columns`."""
    rejects: tuple[Reject, ...]


@lru_cache(maxsize=256)
def arrow_schema(contract: Contract) -> pa.Schema:
    """One column per field, in order. Nullable as declared: a field that is not never holds a null."""
    return pa.schema([pa.field(f.name, ARROW_TYPES[f.dtype], nullable=f.nullable) for f in contract.fields])


def build_column(values: Any, field: Field) -> pa.Array:
    """Python values as a column of the field's type; timestamps in microseconds."""
    if field.dtype is Dtype.TIMESTAMP:
        return pa.array(values, pa.int64()).cast(ARROW_TYPES[field.dtype])
    return pa.array(values, ARROW_TYPES[field.dtype])


def rows_to_batch(contract: Contract, rows: Sequence[Sequence[Scalar]]) -> pa.RecordBatch:
    columns: Iterable[Sequence[Scalar]] = zip(*rows, strict=True) if rows else ((),) * len(contract.fields)
    arrays = [build_column(values, field) for values, field in zip(columns, contract.fields, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(contract))


def assemble(contract: Contract, pieces: Iterable[Decoded]) -> Decoded:
    """One result from parts that together cover the input, in any order."""
    held = list(pieces)
    rejects = tuple(sorted((r for piece in held for r in piece.rejects), key=lambda r: r.row))
    filled = [piece for piece in held if len(piece.rows)]
    if len(filled) == 1:
        return Decoded(filled[0].columns, filled[0].rows, rejects)
    if not filled:
        return Decoded(rows_to_batch(contract, ()), np.empty(0, np.int64), rejects)
    rows = np.concatenate([piece.rows for piece in filled])
    table = pa.Table.from_batches([piece.columns for piece in filled])
    if np.any(rows[1:] < rows[:-1]):
        order = np.argsort(rows)
        rows, table = rows[order], table.take(pa.array(order))
    return Decoded(one_batch(table), rows, rejects)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """The table as a single batch, without a copy where it has one chunk. Raises UsageError past 2 GiB of text."""
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        raise text_overflow()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def text_overflow() -> UsageError:
    return UsageError("more than 2 GiB of text in one column of a batch", hint="decode fewer values at a time")
