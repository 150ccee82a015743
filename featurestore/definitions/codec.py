"""Definitions to plain JSON data and back. Reading builds the same data that an author's file would; it runs nothing.

Every reader raises ValueError that names the place. What it returns still has to be compiled: that is where names
and types are checked.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.definitions.aggregates import RULES, Aggregate, column_expr
from featurestore.definitions.expressions import Expr
from featurestore.definitions.model import Entity, Feature, FeatureService, FeatureView, Selection, Source
from featurestore.definitions.treedata import PYTHON_TYPES, from_data, to_data
from featurestore.types import PYTHON_DTYPES

_SCALAR = (bool, int, float, str, type(None))
_MAX_ITEMS = 10_000


@dataclass(frozen=True, slots=True)
class _Form:
    """How one attribute is written and read."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _expect(*types: type) -> _Form:
    def read(value: Any) -> Any:
        if type(value) not in types:
            raise ValueError(f"{reprlib.repr(value)} is no {' or '.join(t.__name__ for t in types)}")
        return value

    return _Form(lambda value: value, read)


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise ValueError(f"{reprlib.repr(value)} is no list of at most {_MAX_ITEMS}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_TEXT.read(item) for item in _items(value))


def _read_tags(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"{reprlib.repr(value)} is no mapping")
    return {key: _TEXT.read(text) for key, text in value.items()}


def _read_pair(value: Any) -> tuple[str, Any]:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise ValueError(f"{reprlib.repr(value)} is no pair of a name and a value")
    return value[0], value[1]


def _write_keys(keys: Mapping[str, Any]) -> list[list[str]]:
    return [[column, PYTHON_DTYPES[python].value] for column, python in keys.items()]


def _read_keys(value: Any) -> dict[str, type]:
    keys: dict[str, type] = {}
    for column, dtype in map(_read_pair, _items(value)):
        if not isinstance(dtype, str) or dtype not in PYTHON_TYPES or column in keys:
            raise ValueError(f"{column!r} is {reprlib.repr(dtype)}, or is there twice")
        keys[column] = PYTHON_TYPES[dtype]
    return keys


def _write_parameters(extra: tuple[tuple[str, Any], ...]) -> list[list[Any]]:
    return [[name, value] for name, value in extra]


def _read_parameters(value: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _SCALARS.read(item)) for name, item in map(_read_pair, _items(value)))


def _read_operation(value: Any) -> str:
    if not isinstance(value, str) or value not in RULES:
        raise ValueError(f"unknown operation {reprlib.repr(value)}")
    return value


def _optional(form: _Form) -> _Form:
    return _Form(
        lambda value: None if value is None else form.write(value),
        lambda value: None if value is None else form.read(value),
    )


_TEXT = _expect(str)
_OPTIONAL_TEXT = _expect(str, type(None))
_SCALARS = _expect(*_SCALAR)
_EXPRESSION = _Form(to_data, from_data)

_ENTITY: dict[str, _Form] = {"name": _TEXT, "keys": _Form(_write_keys, _read_keys), "description": _TEXT}
_SOURCE: dict[str, _Form] = {
    "name": _TEXT,
    "topic": _TEXT,
    "contract": _TEXT,
    "event_time": _TEXT,
    "key": _Form(list, _texts),
    "lateness": _TEXT,
    "max_future_skew": _TEXT,
    "owner": _TEXT,
    "description": _TEXT,
}
_AGGREGATE: dict[str, _Form] = {
    "op": _Form(lambda op: op, _read_operation),
    "column": _optional(_EXPRESSION),
    "window": _OPTIONAL_TEXT,
    "hop": _OPTIONAL_TEXT,
    "where": _optional(_EXPRESSION),
    "default": _SCALARS,
    "extra": _Form(_write_parameters, _read_parameters),
}


def _write(table: Mapping[str, _Form], value: Any) -> dict[str, Any]:
    return {name: form.write(getattr(value, name)) for name, form in table.items()}


def _read(kind: str, table: Mapping[str, _Form], data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{reprlib.repr(data)} is no {kind}")
    if data.keys() != table.keys():
        odd = ", ".join(sorted(data.keys() ^ table.keys()))
        raise ValueError(f"{kind} has other fields than expected: {reprlib.repr(odd)}")
    found: dict[str, Any] = {}
    for name, form in table.items():
        try:
            found[name] = form.read(data[name])
        except ValueError as error:
            raise ValueError(f"{kind}.{name}: {error}") from None
    return found


def entity_to_data(entity: Entity) -> dict[str, Any]:
    return _write(_ENTITY, entity)


def entity_from_data(data: Any) -> Entity:
    return Entity(**_read("entity", _ENTITY, data))


def source_to_data(source: Source) -> dict[str, Any]:
    return _write(_SOURCE, source)


def source_from_data(data: Any) -> Source:
    return Source(**_read("source", _SOURCE, data))


def _write_feature(feature: Feature) -> dict[str, Any]:
    if isinstance(feature.spec, Expr):
        return {"name": feature.name, "expression": to_data(feature.spec)}
    columns = {"column": column_expr(feature.spec)}
    aggregate = {name: form.write(columns.get(name, getattr(feature.spec, name))) for name, form in _AGGREGATE.items()}
    return {"name": feature.name, "aggregate": aggregate}


def _read_feature(data: Any) -> Feature:
    shape = frozenset(data) if isinstance(data, dict) else None
    reader = _FEATURE_SHAPES.get(shape) if shape else None
    if reader is None:
        raise ValueError(f"{reprlib.repr(data)} is no feature")
    return Feature(_TEXT.read(data["name"]), reader(data))


_FEATURE_SHAPES: dict[frozenset[str], Callable[[Any], Aggregate | Expr]] = {
    frozenset({"name", "expression"}): lambda data: _EXPRESSION.read(data["expression"]),
    frozenset({"name", "aggregate"}): lambda data: Aggregate(**_read("aggregate", _AGGREGATE, data["aggregate"])),
}


_VIEW: dict[str, _Form] = {
    "name": _TEXT,
    "entity": _Form(entity_to_data, entity_from_data),
    "source": _Form(source_to_data, source_from_data),
    "version": _expect(int),
    "features": _Form(
        lambda features: [_write_feature(f) for f in features],
        lambda data: tuple(_read_feature(f) for f in _items(data)),
    ),
    "owner": _TEXT,
    "freshness": _OPTIONAL_TEXT,
    "ttl": _OPTIONAL_TEXT,
    "where": _optional(_EXPRESSION),
    "tags": _Form(dict, _read_tags),
    "on_missing": _TEXT,
    "on_stale": _TEXT,
    "description": _TEXT,
    "label": _TEXT,
}


def view_to_data(view: FeatureView) -> dict[str, Any]:
    """`view` has passed its check."""
    return _write(_VIEW, view)


def view_from_data(data: Any) -> FeatureView:
    return FeatureView(**_read("view", _VIEW, data))


def _write_selection(selection: FeatureView | Selection) -> dict[str, Any]:
    view = selection.view if isinstance(selection, Selection) else selection
    features = selection.features if isinstance(selection, Selection) else tuple(f.name for f in view.features)
    return {"view": view.name, "version": view.version, "features": list(features)}


_SELECTION: dict[str, _Form] = {"view": _TEXT, "version": _expect(int), "features": _Form(list, _texts)}
_SERVICE: dict[str, _Form] = {
    "name": _TEXT,
    "views": _Form(
        lambda views: [_write_selection(v) for v in views],
        lambda data: [_read("selection", _SELECTION, s) for s in _items(data)],
    ),
    "owner": _TEXT,
    "description": _TEXT,
    "budget_ms": _expect(int, float, type(None)),
}


def _write_own_features(features: Mapping[str, Expr]) -> list[dict[str, Any]]:
    return [_write_feature(Feature(name, expr)) for name, expr in features.items()]


def _read_own_features(data: Any) -> dict[str, Expr]:
    features: dict[str, Expr] = {}
    for feature in map(_read_feature, _items(data)):
        if not isinstance(feature.spec, Expr) or feature.name in features:
            raise ValueError(f"{reprlib.repr(feature.name)} is no expression, or is there twice")
        features[feature.name] = feature.spec
    return features


_OWN_FEATURES = _Form(_write_own_features, _read_own_features)


def service_to_data(service: FeatureService) -> dict[str, Any]:
    """Whole views are written out feature by feature, so that a published service never changes with a view's file."""
    data = _write(_SERVICE, service)
    # Left out where there are none: so are they in registries that were written before services had any.
    return data | ({"features": _OWN_FEATURES.write(service.features)} if service.features else {})


def service_from_data(data: Any, views: Mapping[tuple[str, int], FeatureView]) -> FeatureService:
    """`views` has every published view by name and version."""
    known = _SERVICE | ({"features": _OWN_FEATURES} if isinstance(data, dict) and "features" in data else {})
    fields = _read("service", known, data)
    selections = []
    for selection in fields.pop("views"):
        view = views.get((selection["view"], selection["version"]))
        if view is None:
            raise ValueError(f"service.views: no view {selection['view']}@{selection['version']}")
        selections.append(view.pick(*selection["features"]))
    return FeatureService(views=tuple(selections), **fields)
