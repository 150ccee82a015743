"""Event columns → what partials are prepared from. Shared by the stream and the export path."""

from __future__ import annotations

from typing import Any

import numpy as np

from featurestore.definitions.compiled import CompiledAggregate, CompiledView
from featurestore.engine.array import Array
from featurestore.engine.columns import NUMPY_DTYPES, Column, EventBatch, StringPool, column_from_arrow
from featurestore.engine.evaluate import Leaves, evaluate, is_true
from featurestore.engine.layout import Stored
from featurestore.engine.partials import Events, int_hash
from featurestore.types import Dtype


def leaves_of(xp: Any, view: CompiledView, columns: tuple[str, ...], batch: EventBatch, pool: StringPool) -> Leaves:
    """The event columns a view needs, on the compute device."""
    dtypes = {f.name: f.dtype for f in view.source.contract.fields}
    leaves: dict[tuple[str, str], Column] = {}
    for name in columns:
        host = column_from_arrow(batch.columns[name], dtypes[name], pool)
        leaves["col", name] = Column(xp.asarray(host.values), xp.asarray(host.valid), host.dtype)
    return leaves


def concerned(view: CompiledView, leaves: Leaves, batch: EventBatch, xp: Any, pool: StringPool) -> Array:
    """Rows the view looks at: a whole key, and its `where` holds."""
    whole = xp.asarray(batch.keys.is_valid().to_numpy(zero_copy_only=False))
    return whole & is_true(xp, view.where, leaves, len(batch), pool)


def events_of(xp: Any, stored: Stored, leaves: Leaves, time: Array, seq: Array, pool: StringPool) -> Events:
    """n rows → the input of one partial."""
    a: CompiledAggregate = stored.source
    rows = time.shape[0]
    chosen = is_true(xp, a.where, leaves, rows, pool)
    if a.column is None:
        return Events(time, chosen, time, seq)
    column = evaluate(xp, a.column, leaves, rows, pool)
    values = column.values.astype(NUMPY_DTYPES[a.input_dtype or Dtype.INT])
    if stored.operation.hashed:
        values = hashed(xp, values, a.input_dtype, pool)
    return Events(values, chosen & column.valid, time, seq)


def hashed(xp: Any, values: Array, dtype: Dtype | None, pool: StringPool) -> Array:
    """64-bit hashes (uint64) of a column's values; equal values hash alike, 0.0 as -0.0."""
    if dtype is Dtype.STRING:
        table = np.append(pool.hashes(), np.uint64(0))
        return xp.asarray(table)[values]
    if dtype is Dtype.FLOAT:
        values = (values + 0.0).view(xp.int64)
    return int_hash(xp, values.astype(xp.int64))


def take_leaves(leaves: Leaves, rows: Array) -> Leaves:
    return {name: Column(c.values[rows], c.valid[rows], c.dtype) for name, c in leaves.items()}
