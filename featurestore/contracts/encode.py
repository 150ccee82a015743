"""Columns to JSON values, for `publish`."""

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import SECOND
from featurestore.contracts.arrow import arrow_schema
from featurestore.contracts.contract import Contract
from featurestore.errors import ContractError
from featurestore.types import Dtype


def encode_json(contract: Contract, batch: pa.RecordBatch | pa.Table) -> list[bytes]:
    """One JSON object per row, as `decode` reads it back bit for bit; timestamps in RFC 3339 with `Z`.

    `batch` has the contract's schema and values, as `check_table` and `decode` return it; else raises ContractError.
    """
    _demand_contract(contract, batch)
    columns = []
    for field, column in zip(contract.fields, batch.columns, strict=True):
        held = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        columns.append(_instant_texts(held) if field.dtype is Dtype.TIMESTAMP else held.to_pylist())
    encode, names = msgspec.json.Encoder().encode, contract.names
    return [encode(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _demand_contract(contract: Contract, batch: pa.RecordBatch | pa.Table) -> None:
    hint = "pass the table that check_table returns"
    expected = arrow_schema(contract)
    if list(zip(batch.schema.names, batch.schema.types, strict=True)) != list(
        zip(expected.names, expected.types, strict=True)
    ):
        raise ContractError(f"the columns are not those of contract {contract.id}", hint=hint)
    for field, column in zip(contract.fields, batch.columns, strict=True):
        if column.null_count and not field.nullable:
            raise ContractError(f"{field.name}: null, and {contract.id} allows none", hint=hint, field=field.name)
        if field.dtype is Dtype.FLOAT and not pc.all(pc.is_finite(column)).as_py() and column.null_count < len(column):
            raise ContractError(f"{field.name}: NaN or infinite", hint=hint, field=field.name)


def _instant_texts(column: pa.Array) -> list[str | None]:
    """RFC 3339, six digits only where there is a fraction."""
    micros: npt.NDArray[np.int64] = column.cast(pa.int64()).fill_null(0).to_numpy()
    moments = micros.view("datetime64[us]")
    texts = np.char.add(np.datetime_as_string(moments, unit="s"), "Z")
    fractions = micros % SECOND != 0
    if fractions.any():
        texts = texts.astype("U27")
        texts[fractions] = np.char.add(np.datetime_as_string(moments[fractions], unit="us"), "Z")
    nulls = pc.is_null(column).to_numpy(zero_copy_only=False)
    return [None if null else text for text, null in zip(texts.tolist(), nulls.tolist(), strict=True)]
