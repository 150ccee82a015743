"""A service's own features: the same code computes them while a lookup is answered and for a training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa

from featurestore.definitions.compiled import CompiledService
from featurestore.definitions.expressions import RequestField
from featurestore.engine.columns import ARROW_TYPES, NEVER, Column, FeatureColumn, StringPool, column_from_arrow
from featurestore.engine.statuses import overlaid
from featurestore.engine.windows import OK, as_leaf, derive, inputs_of


def own_features(
    service: CompiledService, found: Mapping[str, FeatureColumn], request: Mapping[str, pa.Array], rows: int
) -> list[FeatureColumn]:
    """n = `rows` values of each, in the service's order.

    `found` has `service.inputs` by full name, `request` fields by name, in the types of `ARROW_TYPES`; a
    field that is absent or null has its default. A value is worth what the worst of the features is that it stands on,
    and as of the latest of them; a field of the request is worth as much as the request.
    """
    pool = StringPool()
    leaves = {("request", field.name): _field(field, request.get(field.name), rows, pool) for field in service.request}
    inputs = [f"{view}.{feature}" for view, feature in service.inputs]
    leaves |= {("feature", name): as_leaf(found[name], pool) for name in inputs}
    known = dict(found)
    with np.errstate(all="ignore"):
        for derived in service.derived:
            values, valid = derive(derived, leaves, rows, pool)
            stands_on = [known[name] for name in inputs_of(derived)]
            status, as_of = _worst(stands_on, rows), _latest(stands_on, rows)
            known[derived.name] = FeatureColumn(derived.name, derived.dtype, False, values, valid, status, as_of)
    return [known[name] for name in service.order]


def _field(field: RequestField, given: pa.Array | None, rows: int, pool: StringPool) -> Column:
    values = pa.nulls(rows, ARROW_TYPES[field.dtype]) if given is None else given
    if field.default is not None and values.null_count:
        values = values.fill_null(pa.scalar(field.default, ARROW_TYPES[field.dtype]))
    return column_from_arrow(values, field.dtype, pool)


def _worst(inputs: Sequence[FeatureColumn], rows: int) -> np.ndarray:
    return reduce(overlaid, (column.status for column in inputs), np.full(rows, OK, np.uint8))


def _latest(inputs: Sequence[FeatureColumn], rows: int) -> np.ndarray:
    return reduce(np.maximum, (column.as_of for column in inputs), np.full(rows, NEVER, np.int64))
