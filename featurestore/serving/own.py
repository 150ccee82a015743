"""Adds a service's own features to what was looked up for it, whatever that is worth and wherever it came from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.engine.columns import ARROW_TYPES, FeatureColumn, StringPool, column_from_arrow
from featurestore.engine.own import own_features
from featurestore.serving.answers import Answer, Block
from featurestore.serving.arrow import typed
from featurestore.serving.plan import LookupPlan
from featurestore.types import Dtype


def with_own_features(plan: LookupPlan, answer: Answer, request: Mapping[str, pa.Array]) -> Answer:
    """The answer as its caller gets it: without hidden columns, and with own features after those of the views.

    `request` is what `plan.fields` read. Expressions are over the values as they are answered: a default, a fallback or
    the null of a value that could not be read counts as such, and shows in the status.
    """
    block, part = answer.block, slice(answer.start, answer.stop)
    status = block.status[:, part]
    found = {
        name: _column(name, plan.dtypes[i], block.columns[i][part], status[i], block.as_of[i][part])
        for name, i in plan.inputs
    }
    own = own_features(plan.service, found, request, answer.stop - answer.start)
    shown = len(plan.service.columns)
    at = [instants[part] for instants in block.at]
    latest = reduce(np.maximum, at, np.full(answer.stop - answer.start, answer.at))
    made = Block(
        lambda: [*(values[part] for values in block.columns[:shown]), *(column.to_list() for column in own)],
        status=np.stack([*status[:shown], *(column.status for column in own)]),
        as_of=[*(as_of[part] for as_of in block.as_of[:shown]), *(column.as_of for column in own)],
        at=[*at[:shown], *(latest for _ in own)],
    )
    return Answer(made, 0, answer.stop - answer.start, answer.at, answer.source)


def _column(name: str, dtype: Dtype, values: list[Any], status: np.ndarray, as_of: np.ndarray) -> FeatureColumn:
    """JSON-ready values as the engine has them."""
    if dtype is Dtype.STRING:
        texts = np.array(values, object)
        return FeatureColumn(
            name, dtype, False, texts, np.array([text is not None for text in values], np.bool_), status, as_of
        )
    column = column_from_arrow(typed(values, ARROW_TYPES[dtype]), dtype, StringPool())
    return FeatureColumn(name, dtype, False, column.values, column.valid, status, as_of)
