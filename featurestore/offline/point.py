"""Values at past instants for a few entities: what the API asks when the online state no longer knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import MIN_INSTANT
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.engine.columns import FeatureColumn, canonical_keys
from featurestore.offline.events import events_table, read_events
from featurestore.offline.history import History
from featurestore.offline.lake import Lake
from featurestore.offline.marks import app_id

MAX_EVENTS = 5_000_000
"""Events that one lookup may read; a training set is the job of `export`."""


def lookup_at(
    lake: Lake, views: Sequence[CompiledView], keys: Mapping[str, pa.Array], at: np.ndarray
) -> dict[str, list[FeatureColumn]]:
    """By view id, the view's features in its order, exact, for row i's entity at `at[i]` (int64 µs).

    `keys` has every key column of the views, n rows each, in the entity's types (string, int64, bool), nulls allowed.
    All history up to the latest instant is read, also for windows: whether an entity was ever seen decides between
    `ok` and `not_found`. Events that are in the log but not in the lake yet are missing: ask `covers` first. Raises
    AtOutOfRange where there are more than `MAX_EVENTS` to read.
    """
    until = int(at.max(initial=MIN_INSTANT))

    def read(source: CompiledSource, columns: Sequence[str], group: Sequence[CompiledView]) -> pa.Table:
        shared = set.intersection(*(set(view.keys) for view in group))
        asked = {name: pc.unique(keys[name]).drop_null() for name in sorted(shared)}
        return read_events(lake, source, columns, keys=asked, until=until, limit=MAX_EVENTS)

    canonical = {view.id: canonical_keys([keys[name] for name in view.keys]) for view in views}
    return History(views, read).evaluate(canonical, at)


def covers(lake: Lake, source: CompiledSource, vector: Mapping[int, int]) -> bool:
    """Whether the lake holds every event up to these offsets, by source partition."""
    apps = {app_id(source.name, partition): offset for partition, offset in vector.items()}
    known = lake.recorded(events_table(source.name), list(apps))
    return all(known.get(app, -1) >= offset for app, offset in apps.items())
