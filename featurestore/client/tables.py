"""Tables of answers: the half of the client that needs pyarrow, which takes longer to import than all the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import format_instant
from featurestore.types import STATUS_SUFFIX, STATUSES, Dtype

_INSTANT = pa.timestamp("us", tz="UTC")
_PLAIN: dict[str, pa.DataType] = {
    Dtype.BOOL: pa.bool_(),
    Dtype.INT: pa.int64(),
    Dtype.FLOAT: pa.float64(),
    Dtype.STRING: pa.string(),
    Dtype.TIMESTAMP: _INSTANT,
}
_TYPES = _PLAIN | {f"list<{name}>": pa.list_(kind) for name, kind in _PLAIN.items()}
"""As the API writes them → as Arrow has them."""
_WRITTEN_AS = {_INSTANT: pa.string(), pa.list_(_INSTANT): pa.list_(pa.string())}
"""Types whose JSON values have to be read, and as what."""
_STATUS_TEXTS = pa.array([status.value for status in STATUSES], pa.string())

MALFORMED = (pa.ArrowException, ValueError, KeyError)
"""What reading a stream raises where it is none, or not one of a lookup."""


def typed_table(
    types: Mapping[str, str], keys: Mapping[str, Sequence[Any]], features: Mapping[str, tuple[Sequence[Any], list[str]]]
) -> pa.Table:
    """The table that an Arrow answer would have held.

    `types` has the API's words for each column, in order; `features` values as JSON has them, and their statuses.
    """
    columns: dict[str, pa.Array] = {}
    for name, written in types.items():
        values, statuses = features.get(name, (keys.get(name, ()), None))
        columns[name] = _typed(values, _TYPES[written])
        if statuses is not None:
            codes = pc.index_in(pa.array(statuses, pa.string()), value_set=_STATUS_TEXTS)
            columns[name + STATUS_SUFFIX] = pa.DictionaryArray.from_arrays(codes.cast(pa.int8()), _STATUS_TEXTS)
    return pa.table(columns)


def read_stream(body: bytes) -> tuple[dict[str, str], pa.Table]:
    """The envelope and the table of an Arrow answer. Raises what MALFORMED lists."""
    with pa.ipc.open_stream(body) as stream:
        table = stream.read_all()
    table.validate()
    metadata = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    return metadata, table.replace_schema_metadata(None)


def features_of(table: pa.Table) -> tuple[str, ...]:
    """Columns that have a status."""
    names = set(table.schema.names)
    return tuple(name for name in table.schema.names if name + STATUS_SUFFIX in names)


def plain_values(table: pa.Table, feature: str) -> list[Any]:
    """A feature's values as a JSON answer has them."""
    column = table.column(feature)
    if column.type in _NUMBERS and not column.null_count:
        numbers: list[Any] = column.to_numpy().tolist()
        return numbers
    values: list[Any] = column.cast(_AS_INTEGERS.get(column.type, column.type)).to_pylist()
    show = _SHOWN.get(column.type)
    return values if show is None else [None if value is None else show(value) for value in values]


def statuses(table: pa.Table, feature: str) -> list[str]:
    column = table.column(feature + STATUS_SUFFIX).combine_chunks()
    texts = column.dictionary.to_pylist()
    return [texts[code] for code in column.indices.to_numpy().tolist()]


def _typed(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    written = _WRITTEN_AS.get(kind)
    return pa.array(values, kind) if written is None else pa.array(values, written).cast(kind)


def _show_all(instants: Sequence[int | None]) -> list[str | None]:
    return [None if instant is None else format_instant(instant) for instant in instants]


_NUMBERS = (pa.int64(), pa.float64())
_AS_INTEGERS = {_INSTANT: pa.int64(), pa.list_(_INSTANT): pa.list_(pa.int64())}
_SHOWN: Mapping[pa.DataType, Callable[[Any], Any]] = {_INSTANT: format_instant, pa.list_(_INSTANT): _show_all}
