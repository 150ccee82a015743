"""One feature of one entity over time, from all its events: what a plot shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions.compile import compile_view
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.model import FeatureView
from featurestore.engine.columns import ARROW_TYPES, EventBatch, FeatureColumn, canonical_key, event_batch
from featurestore.engine.history import evaluate_history
from featurestore.errors import DefinitionError, InvalidRequest, NotFound
from featurestore.offline.events import read_events
from featurestore.offline.history import columns_of, narrowed
from featurestore.offline.lake import Lake
from featurestore.offline.point import MAX_EVENTS
from featurestore.registry.log import Registry
from featurestore.types import PYTHON_DTYPES


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A feature of an entity, to be asked at any instants."""

    view: CompiledView
    """Narrowed to what the feature needs."""
    feature: str
    key: str
    """Canonical."""
    events: EventBatch
    """Those of the entity are among them."""

    def times(self) -> np.ndarray:
        """Instants (int64 µs, ascending) of the entity's events."""
        mine = pc.equal(self.events.keys, self.key).fill_null(False).to_numpy(zero_copy_only=False)
        return np.sort(self.events.time[mine])

    def at(self, instants: np.ndarray) -> FeatureColumn:
        """Exact values: every event up to the instant counts, however late it arrived."""
        asked = pa.array([self.key] * instants.size, pa.string())
        [column] = [c for c in evaluate_history(self.view, self.events, asked, instants) if c.name == self.feature]
        return column


class Histories(Protocol):
    """Where events are: the lake, or a `featurestore.testing.LocalStore`."""

    def series(self, view: FeatureView, feature: str, entity: Mapping[str, Any], until: int | None = None) -> Series:
        """Events after `until` (µs) may be left out. Raises UsageError for what there is not."""
        ...


class LakeHistories:
    """Events of the lake, under the view as Python has it: published or not, so long as its contract is there."""

    def __init__(self, place: str) -> None:
        self._lake, self._registry = Lake(place), Registry(place)

    def series(self, view: FeatureView, feature: str, entity: Mapping[str, Any], until: int | None = None) -> Series:
        contracts = self._registry.head().contracts
        if view.source.contract not in contracts:
            hint = "apply a view of the source first, or draw from a table of events: store=LocalStore([…], events)"
            raise NotFound("contract", view.source.contract, contracts, hint=hint)
        compiled, faults = compile_view(view, contracts[view.source.contract])
        if compiled is None:
            raise DefinitionError(faults)
        chosen, key = narrowed_to(compiled, feature), key_of(compiled, entity)
        columns = columns_of([chosen])
        values = {name: pa.array([entity[name]], ARROW_TYPES[dtype]) for name, dtype in compiled.keys.items()}
        found = read_events(self._lake, chosen.source, columns, keys=values, until=until, limit=MAX_EVENTS)
        return Series(chosen, feature, key, event_batch(chosen.source, tuple(chosen.keys), found))


def narrowed_to(view: CompiledView, feature: str) -> CompiledView:
    """The view, with what this feature needs. NotFound with near matches where it has no such feature."""
    if feature not in view.order:
        raise NotFound("feature", feature, view.order, hint=f"features of {view.id}: {', '.join(view.order)}")
    return narrowed(view, [feature])


def key_of(view: CompiledView, entity: Mapping[str, Any]) -> str:
    """The entity's canonical key. Raises NotFound, or InvalidRequest that names the key and what it must be."""
    for name in entity:
        if name not in view.keys:
            raise NotFound("entity key", name, view.keys, hint=f"{view.id} is by {', '.join(view.keys)}")
    for name, dtype in view.keys.items():
        if name not in entity:
            raise InvalidRequest(f"{name} is missing", hint=f"{view.id} is by {', '.join(view.keys)}", field=name)
        if PYTHON_DTYPES.get(type(entity[name])) is not dtype:
            raise InvalidRequest(f"{name} is {entity[name]!r}, expected {dtype}", field=name)
    return canonical_key([entity[name] for name in view.keys])
