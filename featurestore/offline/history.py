"""Views over events of the lake: each source is read once, whatever number of views stands on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.definitions.expressions import names
from featurestore.engine.columns import EventBatch, FeatureColumn, event_batch
from featurestore.engine.history import evaluate_history
from featurestore.engine.layout import layout_of

Reader = Callable[[CompiledSource, Sequence[str], Sequence[CompiledView]], pa.Table]
"""Reads the named contract columns of a source, for the views that need them."""


Instants = Callable[[CompiledView, EventBatch], np.ndarray]
"""`int64[n]` µs: when each event became visible in a view."""


class History:
    """Events of the sources of some views, read once, to be asked any number of times."""

    def __init__(self, views: Sequence[CompiledView], read: Reader, visible: Instants | None = None) -> None:
        """With `visible`, an event counts at an instant only where it was visible by then."""
        self._views, self._visible = tuple(views), visible
        self._seen: dict[str, np.ndarray] = {}
        self._events: dict[tuple[str, str, str], pa.Table] = {}
        for identity, group in by_source(views).items():
            source = group[0].source
            self._events[identity] = read(source, columns_of(group), group)

    def evaluate(self, keys: Mapping[str, pa.Array], at: np.ndarray) -> dict[str, list[FeatureColumn]]:
        """By view id, each view's features, one value for each row. `keys`: by view id, canonical, null allowed."""
        return {view.id: self._evaluate(view, keys[view.id], at) for view in self._views}

    def _evaluate(self, view: CompiledView, keys: pa.Array, at: np.ndarray) -> list[FeatureColumn]:
        batch = event_batch(view.source, tuple(view.keys), self._events[identity_of(view.source)])
        if self._visible is not None and view.id not in self._seen:
            self._seen[view.id] = self._visible(view, batch)
        return evaluate_history(view, batch, keys, at, self._seen.get(view.id))


def narrowed(view: CompiledView, wanted: Collection[str]) -> CompiledView:
    """The view with these features only, and those they are derived from; the values are the same."""
    needed = set(wanted)
    for derived in reversed(view.derived):
        if derived.name in needed:
            needed.update(names(derived.expr, "feature"))
    return replace(
        view,
        aggregates=tuple(a for a in view.aggregates if a.name in needed),
        derived=tuple(d for d in view.derived if d.name in needed),
        order=tuple(name for name in view.order if name in needed),
    )


def by_source(views: Sequence[CompiledView]) -> dict[tuple[str, str, str], list[CompiledView]]:
    """Views that can be computed from one reading of events."""
    groups: dict[tuple[str, str, str], list[CompiledView]] = {}
    for view in views:
        groups.setdefault(identity_of(view.source), []).append(view)
    return groups


def identity_of(source: CompiledSource) -> tuple[str, str, str]:
    """A view keeps the contract it was published with, so one source's name may stand for several."""
    return source.name, source.contract.fingerprint, source.event_time


def columns_of(views: Sequence[CompiledView]) -> tuple[str, ...]:
    """Event columns that these views look at, keys included, in the order of the contract."""
    wanted = {name for view in views for name in (*view.keys, *layout_of(view).columns)}
    return tuple(name for name in views[0].source.contract.names if name in wanted)
