"""Which features a training set is to have: those of a service, or a list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.definitions.compiled import CompiledService, CompiledView
from featurestore.errors import InvalidRequest, NotFound, UsageError
from featurestore.registry.catalog import Catalog
from featurestore.types import Dtype

LISTED = "features"
"""What stands in a manifest for the service of a list."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    service: CompiledService
    views: tuple[CompiledView, ...]
    """The service's."""
    version: int
    """Of the service; 0 of a list."""
    revision: int
    """Of the registry."""
    listed: tuple[str, ...]
    """The list, each feature with its view's version; empty where a service was asked for."""


def ask(features: str | Sequence[str], catalog: Catalog) -> Asked:
    """`features` is a service, as `flight_delay`, `flight_delay@prod` or `flight_delay@3`, or a list of features, as
    `airport_delay.departures_1h` or, of a certain version, `airport_delay@2.departures_1h`. Raises NotFound with near
    matches, and UsageError for what cannot be together."""
    if isinstance(features, str):
        service, version = catalog.resolve(features)
        return Asked(service, tuple(catalog.views[key] for key in service.views), version, catalog.revision, ())
    return _listed(list(features), catalog)


def key_columns(views: Sequence[CompiledView]) -> dict[str, Dtype]:
    """Every entity key of the views, in order. UsageError where a name has two types, which a service cannot have."""
    found: dict[str, Dtype] = {}
    for view in views:
        for name, dtype in view.keys.items():
            if found.setdefault(name, dtype) is not dtype:
                raise UsageError(f"key {name!r} is {found[name]} in one view and {dtype} in {view.id}",
                                 hint="export their features one after the other", field=name)  # fmt: skip
    return found


def _listed(features: list[str], catalog: Catalog) -> Asked:
    if not features:
        raise UsageError("the list of features is empty", hint="as airport_delay.departures_1h", field="features")
    views: dict[str, CompiledView] = {}
    columns: list[tuple[str, str]] = []
    for name in features:
        label, dot, feature = name.rpartition(".")
        if not dot:
            raise InvalidRequest(f"{name!r} is no feature", hint="write it as view.feature", field=name)
        view = catalog.view(label)
        if views.setdefault(view.name, view) is not view:
            raise UsageError(f"{view.name} is asked for in two versions", hint="columns have the view's name without "
                             "its version: export them one after the other", field=name)  # fmt: skip
        if feature not in view.order:
            raise NotFound("feature", name, [f"{view.name}.{known}" for known in view.order])
        if (view.name, feature) in columns:
            raise UsageError(f"{name} is there twice", field=name)
        columns.append((view.name, feature))
    listed = tuple(f"{views[view].id}.{feature}" for view, feature in columns)
    digest = hashlib.sha256("\n".join(f"{name} {views[name.split('@')[0]].fingerprint}" for name in listed).encode())
    service = CompiledService(
        LISTED, tuple((view.name, view.version) for view in views.values()), tuple(columns), digest.hexdigest()
    )
    return Asked(service, tuple(views.values()), 0, catalog.revision, listed)
