"""A streaming feature store: one definition, the same value online at T and in the training set at T.

Importing the package loads the definition language and nothing heavier; other names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.client.http import AsyncClient, Client
    from featurestore.definitions.aggregates import agg
    from featurestore.definitions.expressions import col, feature, request, when
    from featurestore.definitions.model import Entity, FeatureService, FeatureView, Source, feature_view
    from featurestore.errors import FeatureStoreError
    from featurestore.offline.training import export

_HOMES = {
    "AsyncClient": "featurestore.client.http",
    "Client": "featurestore.client.http",
    "Entity": "featurestore.definitions.model",
    "FeatureService": "featurestore.definitions.model",
    "FeatureStoreError": "featurestore.errors",
    "FeatureView": "featurestore.definitions.model",
    "Source": "featurestore.definitions.model",
    "agg": "featurestore.definitions.aggregates",
    "col": "featurestore.definitions.expressions",
    "export": "featurestore.offline.training",
    "feature": "featurestore.definitions.expressions",
    "feature_view": "featurestore.definitions.model",
    "request": "featurestore.definitions.expressions",
    "when": "featurestore.definitions.expressions",
}
"""Public name → module that defines it."""

__all__ = [
    "AsyncClient",
    "Client",
    "Entity",
    "FeatureService",
    "FeatureStoreError",
    "FeatureView",
    "Source",
    "agg",
    "col",
    "export",
    "feature",
    "feature_view",
    "request",
    "when",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'featurestore' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
