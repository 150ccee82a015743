"""Checks services: which features of which views they answer, and their own, computed while a lookup is answered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from featurestore.definitions.compiled import CompiledDerived, CompiledService, CompiledView
from featurestore.definitions.expressions import Expr, RequestField, names, oversize, walk
from featurestore.definitions.faults import Faults, shown
from featurestore.definitions.features import DEFAULTS, Scope, compile_derived
from featurestore.definitions.jsontext import dumps
from featurestore.definitions.model import FeatureService, FeatureView, Selection
from featurestore.definitions.treedata import to_data
from featurestore.errors import Fault
from featurestore.types import PYTHON_DTYPES, Dtype

MAX_FEATURES = 500
"""Of a service: each lookup answers all of them."""

ViewKey = tuple[str, int]


def compile_service(
    service: FeatureService, views: Mapping[ViewKey, CompiledView]
) -> tuple[CompiledService | None, list[Fault]]:
    """The service ready to answer, or None and its faults. None without a fault where a view of it did not compile."""
    faults, label = Faults(), str(service.name)
    _check_service(label, service, faults)
    chosen = _selections(label, service, faults)
    used, columns = _columns(label, chosen, faults)
    read = [views.get(key) for key in used.items()]
    sound = [view for view in read if view is not None]
    _check_keys(label, sound, faults)
    own = _compile_own(label, service, [chosen_of(item)[0] for item in chosen], sound, faults)
    if (count := len(columns) + len(own.order)) > MAX_FEATURES:
        faults.add(label, f"has {count} features", f"at most {MAX_FEATURES}; several services can share a view")
    if faults.found or None in read:
        return None, faults.found
    budget = None if service.budget_ms is None else float(service.budget_ms)
    compiled = CompiledService(
        name=service.name,
        views=tuple(used.items()),
        columns=columns,
        fingerprint=sha256(dumps(_meaning(used, columns, budget, own))).hexdigest(),
        owner=service.owner,
        description=service.description,
        budget_ms=budget,
        inputs=own.inputs,
        derived=own.derived,
        order=own.order,
        request=own.request,
    )
    return compiled, []


def _columns(
    label: str, chosen: Sequence[FeatureView | Selection], faults: Faults
) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Versions by view, and `(view name, feature)` in the order of the answer."""
    columns: dict[tuple[str, str], None] = {}
    used: dict[str, int] = {}
    for item in chosen:
        view, wanted = chosen_of(item)
        label_of_view = view.label or str(view.name)
        if used.setdefault(view.name, view.version) != view.version:
            faults.add(label, f"has versions {used[view.name]} and {view.version} of {label_of_view}", "one of them")
        known = {feature.name for feature in view.features}
        for name in wanted:
            if name not in known:
                faults.unknown(f"{label}.{label_of_view}", "feature", name, known)
            elif (view.name, name) in columns:
                faults.add(label, f"has {view.name}.{name} twice", "each feature once")
            else:
                columns[view.name, name] = None
    return used, tuple(columns)


@dataclass(frozen=True, slots=True, eq=False)
class _Own:
    """A service's own features, and what they stand on."""

    order: tuple[str, ...] = ()
    derived: tuple[CompiledDerived, ...] = ()
    request: tuple[RequestField, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()


def _compile_own(
    label: str, service: FeatureService, raws: Sequence[FeatureView], views: Sequence[CompiledView], faults: Faults
) -> _Own:
    """`views` are those of `raws` that compiled: only their features have types."""
    given: Any = service.features
    if not isinstance(given, Mapping):
        faults.add(label, f"features is {shown(given)}", "{'name': request('amount', float) / feature('view.name')}")
        return _Own()
    given = {name: expr for name, expr in given.items() if faults.name(f"{label}.{name}", "feature", name)}
    if given and label in {raw.name for raw in raws}:
        faults.add(label, "has features of its own, and a view of the same name", "another name for the service")
    fields, unsound = _request_fields(label, given, faults)
    _check_fields(label, fields, views, faults)
    dtypes: dict[str, Dtype | None] = {f"{raw.name}.{feature.name}": None for raw in raws for feature in raw.features}
    dtypes |= dict.fromkeys(unsound)
    lists = set()
    for view in views:
        dtypes |= {f"{view.name}.{name}": dtype for name, (dtype, _) in view.types.items()}
        lists |= {f"{view.name}.{name}" for name, (_, many) in view.types.items() if many}
    scope = Scope(label, None, 0, faults, service=True)
    derived = compile_derived(scope, {n: e for n, e in given.items() if n not in unsound}, dtypes, lists)
    return _Own(
        tuple(given),
        tuple(replace(d, expr=_with_fields(d.expr, fields)) for d in derived),
        tuple(fields[name] for name in sorted(fields)),
        tuple(dict.fromkeys(_column(name) for d in derived for name in names(d.expr, "feature") if "." in name)),
    )


def _column(name: str) -> tuple[str, str]:
    view, _, feature = name.partition(".")
    return view, feature


def _request_fields(label: str, given: Mapping[str, Any], faults: Faults) -> tuple[dict[str, RequestField], set[str]]:
    """Every field mentioned, by name, its default as its type has it; and the features that mention a faulty one."""
    fields: dict[str, RequestField] = {}
    unsound = set()
    for name, expr in given.items():
        if not isinstance(expr, Expr) or oversize(expr):
            continue  # compile_derived says so
        where = f"{label}.{name}"
        for field in [node.value for node in walk(expr) if node.op == "request"]:
            sound = _sound(where, field, faults)
            if sound is None:
                unsound.add(name)
            elif (first := fields.setdefault(sound.name, sound)) != sound:
                problem = f"request field {sound.name!r} is {_described(sound)}, and {_described(first)} before"
                faults.add(where, problem, "one type and one default for a field of the request")
    return fields, unsound


def _sound(where: str, field: RequestField, faults: Faults) -> RequestField | None:
    if not faults.name(where, "request field", field.name):
        return None
    if not isinstance(field.kind, type) or field.kind not in PYTHON_DTYPES:
        faults.add(where, f"request field {field.name!r} is {shown(field.kind)}", "str, int, float or bool")
        return None
    if field.default is None:
        return field
    try:
        return replace(field, default=DEFAULTS[field.dtype](field.default))
    except ValueError as error:
        problem = f"request field {field.name!r}: default {shown(field.default)} does not fit type {field.dtype}"
        faults.add(where, problem, str(error))
        return None


def _described(field: RequestField) -> str:
    return f"{field.dtype}" if field.default is None else f"{field.dtype} with default {field.default!r}"


def _check_fields(
    label: str, fields: Mapping[str, RequestField], views: Iterable[CompiledView], faults: Faults
) -> None:
    """In the spine of a training set both are columns."""
    keys = {column: view for view in views for column in view.keys}
    for name in fields:
        if name in keys:
            problem = f"request field {name!r} has the name of an entity key of {keys[name].id}"
            faults.add(label, problem, "another name: a spine has one column of a name")


def _with_fields(expr: Expr, fields: Mapping[str, RequestField]) -> Expr:
    """The tree with each field of the request as it was checked."""
    value = fields[expr.value.name] if expr.op == "request" else expr.value
    return Expr(expr.op, tuple(_with_fields(a, fields) for a in expr.args), value)


def _meaning(
    views: Mapping[str, int], columns: Sequence[tuple[str, str]], budget: float | None, own: _Own
) -> dict[str, Any]:
    """What a service's version stands for. Services without features of their own are what they always were."""
    meaning = {"views": sorted(views.items()), "columns": [list(column) for column in columns], "budget_ms": budget}
    expressions = {derived.name: to_data(derived.expr) for derived in own.derived}
    listed = [[name, expressions.get(name)] for name in own.order]
    return meaning | ({"features": listed} if listed else {})


def service_differences(old: CompiledService, new: CompiledService) -> tuple[str, ...]:
    """What the newer answers otherwise, one line each, as `view airport_delay 1 -> 2` or `amount_share: added`."""
    before, after = _listed(old), _listed(new)
    lines = [f"{name}: removed" for name in before if name not in after]
    lines += [f"{name}: added" for name in after if name not in before]
    lines += [f"{n}: {before[n]} -> {after[n]}" for n in after if n in before and before[n] != after[n]]
    if not lines and list(before) != list(after):
        lines = ["features in another order"]
    return tuple(lines)


def _listed(service: CompiledService) -> dict[str, str]:
    """Everything that decides what is answered, by the name that people know it by."""
    expressions = {derived.name: repr(derived.expr) for derived in service.derived}
    return (
        {f"view {name}": str(version) for name, version in service.views}
        | dict.fromkeys((f"{view}.{feature}" for view, feature in service.columns), "")
        | {f"{service.name}.{name}": expressions[name] for name in service.order}
        | {f"request field {field.name}": _described(field) for field in service.request}
        | {"budget_ms": "none" if service.budget_ms is None else f"{service.budget_ms:g}"}
    )


def _check_keys(label: str, views: Iterable[CompiledView], faults: Faults) -> None:
    """A request has one column for each key, whatever the number of views that read it."""
    seen: dict[str, CompiledView] = {}
    for view in views:
        for column, dtype in view.keys.items():
            first = seen.setdefault(column, view)
            if first.keys[column] is not dtype:
                problem = f"key {column!r} is {first.keys[column]} in {first.id} and {dtype} in {view.id}"
                faults.add(label, problem, "one type for a key")


def _check_service(label: str, service: FeatureService, faults: Faults) -> None:
    faults.name(label, "service", service.name)
    faults.text(label, "owner", service.owner)
    faults.text(label, "description", service.description)
    budget = service.budget_ms
    if budget is not None and (type(budget) not in (int, float) or not 0 < budget <= 60_000 or math.isnan(budget)):
        faults.add(label, f"budget_ms is {shown(budget)}", "milliseconds, more than 0 and at most 60000")


def _selections(label: str, service: FeatureService, faults: Faults) -> list[FeatureView | Selection]:
    views: Any = service.views
    if not isinstance(views, list | tuple) or not views:
        faults.add(label, f"views is {shown(views)}", "a list of feature views")
        return []
    chosen: list[FeatureView | Selection] = []
    for item in views:
        if isinstance(item, FeatureView | Selection):
            chosen.append(item)
        else:
            faults.add(label, f"views has {shown(item)}", "a class under @feature_view(…), or View.pick('a', 'b')")
    for item in chosen:
        if isinstance(item, Selection) and not item.features:
            faults.add(label, f"picks nothing of {item.view.label or item.view.name}", "View.pick('a', 'b')")
    return chosen


def chosen_of(chosen: FeatureView | Selection) -> tuple[FeatureView, tuple[str, ...]]:
    """The view, and the features of it that the service answers."""
    if isinstance(chosen, Selection):
        return chosen.view, chosen.features
    return chosen, tuple(feature.name for feature in chosen.features)
