"""Feature rows as they were materialised: what a view's flush wrote online, kept for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import ARROW_TYPES, FeatureColumn
from featurestore.offline.events import VISIBLE_TIME, months
from featurestore.offline.files import EVENT_TIME, MONTH, OFFSET, PARTITION

INSTANT = pa.timestamp("us", "UTC")
KEY = "_key"


def features_table(view: CompiledView) -> str:
    return f"features/{view.id}"


def feature_rows(
    view: CompiledView,
    keys: pa.Array,
    parts: Mapping[str, pa.Array],
    columns: Sequence[FeatureColumn],
    *,
    latest: np.ndarray,
    visible_time: int,
    partition: int,
    offset: np.ndarray,
) -> pa.Table:
    """Rows of `features/<view>@<v>` for one flush, as `Lake.append` takes them.

    n entities of fold partition `partition`: `keys` canonical, `parts` by key column, `latest` the entity's latest
    event time (`int64[n]` µs), `offset` the log offset that its values stand at (`int64[n]`).
    A feature named like a key column, `event_time` or `visible_time` is in the column `_feature_<name>`.
    """
    rows = len(keys)
    data: dict[str, pa.Array] = {
        KEY: keys,
        PARTITION: pa.array(np.full(rows, partition, np.int32)),
        OFFSET: pa.array(np.asarray(offset, np.int64)),
        EVENT_TIME: pa.array(np.asarray(latest, np.int64)).cast(INSTANT),
        VISIBLE_TIME: pa.array(np.full(rows, visible_time, np.int64)).cast(INSTANT),
        MONTH: months(np.asarray(latest, np.int64)),
    }
    data |= {name: parts[name].cast(ARROW_TYPES[dtype]) for name, dtype in view.keys.items()}
    data |= {name if name not in data else f"_feature_{name}": values for name, values in _values(columns).items()}
    order = np.argsort(latest, kind="stable")
    return pa.table(data).take(pa.array(order))


def _values(columns: Sequence[FeatureColumn]) -> dict[str, pa.Array]:
    return {column.name: column.to_arrow() for column in columns}
