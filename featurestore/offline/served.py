"""What lookups were answered with, as rows of `served/<service>`: the raw material of skew checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import pyarrow as pa

from featurestore.engine.columns import ARROW_TYPES
from featurestore.errors import UsageError
from featurestore.offline.events import INSTANT, months
from featurestore.offline.files import ANSWERED_AT, MONTH
from featurestore.offline.lake import Lake
from featurestore.types import STATUS_SUFFIX, STATUSES

_TYPE_NAMES = {kind: dtype.value for dtype, kind in ARROW_TYPES.items()}
_STATUS_TEXTS = pa.array([status.value for status in STATUSES], pa.string())


@dataclass(frozen=True, slots=True)
class Answered:
    """What the rows of one answer have in common."""

    request: int
    """Below 2**63. Another for each answer: with the row's number it names a row."""
    version: int
    """Of the service."""
    revision: int
    """Of the registry."""
    at: int
    """T, µs."""
    answered_at: int
    """µs."""
    source: str
    """`online`, `lake` or `mixed`."""
    rows: int


_FACTS = {
    "_request": pa.int64(),
    "_version": pa.int32(),
    "_revision": pa.int64(),
    "_at": pa.int64(),
    ANSWERED_AT: pa.int64(),
    "_source": pa.string(),
}
_READ_FACTS = attrgetter(*(name.removeprefix("_") for name in _FACTS))
_ROW = "_row"
SYSTEM = frozenset({*_FACTS, _ROW, MONTH})
"""Columns that are there whatever the service."""


def served_table(service: str) -> str:
    return f"served/{service}"


def served_rows(
    answers: Sequence[Answered],
    keys: Mapping[str, pa.Array],
    features: Mapping[str, pa.Array],
    statuses: Mapping[str, np.ndarray],
) -> pa.Table:
    """One row for each row of the answers, which have the same columns.

    `keys`, `features` and `statuses` (codes of `types.STATUS_CODES`) have the rows of all answers, one answer after
    the other. `keys` are those of the entity and the fields of the request; one that is named like a column of the
    store is in `_key_<name>`. A feature's status is in the column `<feature>__status`.
    """
    rows = [answer.rows for answer in answers]
    row = np.concatenate([np.arange(n, dtype=np.int32) for n in rows])
    facts = zip(*map(_READ_FACTS, answers), strict=True)
    each = pa.table([pa.array(values, kind) for values, kind in zip(facts, _FACTS.values(), strict=True)], list(_FACTS))
    data = dict(zip(_FACTS, each.take(pa.array(np.repeat(np.arange(len(rows)), rows))).columns, strict=True))
    data[MONTH] = months(data[ANSWERED_AT].to_numpy())
    data["_at"], data[ANSWERED_AT] = data["_at"].cast(INSTANT), data[ANSWERED_AT].cast(INSTANT)
    data[_ROW] = pa.array(row)
    data |= {f"_key_{name}" if name in SYSTEM else name: values for name, values in keys.items()}
    for name, values in features.items():
        data[name] = values
        data[name + STATUS_SUFFIX] = _STATUS_TEXTS.take(pa.array(statuses[name]))
    return pa.table(data)


def add_served(lake: Lake, service: str, rows: pa.Table) -> None:
    """Appends rows of `served_rows`. Raises Unavailable.

    Where a version of the service gives a column another type than the table has, the values are in a column of their
    own, `<column>__<type>`: a table keeps its types for good, and versions may change theirs.
    """
    table = served_table(service)
    try:
        lake.add(table, _fitting(rows, lake.schema(table)))
    except UsageError:
        # Another process made a column of the name, with another type, since the schema was read.
        lake.add(table, _fitting(rows, lake.schema(table)))


def _fitting(rows: pa.Table, known: pa.Schema | None) -> pa.Table:
    if known is None:
        return rows
    return rows.rename_columns(
        [
            f"{field.name}__{_type_text(field.type)}"
            if field.name in known.names and known.field(field.name).type != field.type
            else field.name
            for field in rows.schema
        ]
    )


def _type_text(kind: pa.DataType) -> str:
    return f"list_{_TYPE_NAMES[kind.value_type]}" if pa.types.is_list(kind) else _TYPE_NAMES[kind]
