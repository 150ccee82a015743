"""From what an author wrote to what the engine runs. One check finds every fault of every definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from featurestore.contracts.contract import Contract
from featurestore.definitions.aggregates import RULES, Aggregate
from featurestore.definitions.compiled import CompiledAggregate, CompiledDerived, CompiledService, CompiledView
from featurestore.definitions.expressions import Expr, Then, When
from featurestore.definitions.faults import Faults, shown
from featurestore.definitions.features import Scope, compile_aggregate, compile_condition, compile_derived
from featurestore.definitions.fingerprint import fingerprint
from featurestore.definitions.model import Entity, FeatureService, FeatureView, NoValue, Selection, Source
from featurestore.definitions.policy import ON_MISSING, ON_STALE, parse_on_stale
from featurestore.definitions.services import ViewKey, chosen_of, compile_service
from featurestore.definitions.sources import ContractOrError, compile_entity, compile_source, usable_contract
from featurestore.errors import DefinitionError, Fault

MAX_VERSION = 2**31 - 1
_MAX_TOPIC = 249


@dataclass(frozen=True, slots=True, eq=False)
class Definitions:
    """A file of definitions that holds together. `raw_*` is what was written, in the same order."""

    views: tuple[CompiledView, ...]
    services: tuple[CompiledService, ...]
    raw_views: tuple[FeatureView, ...]
    raw_services: tuple[FeatureService, ...]
    contracts: Mapping[str, Contract]


def check(
    views: Iterable[FeatureView | type],
    services: Iterable[FeatureService],
    contracts: Mapping[str, ContractOrError],
    *,
    earlier: Iterable[Fault] = (),
) -> Definitions:
    """Compile everything, views that only a service names included. `contracts` may hold the error a file gave.

    Raises DefinitionError with all faults, `earlier` ones first.
    """
    raw_services = _distinct(services)
    given = _distinct([*views, *(view for service in raw_services for view in _views_of(service))])
    raw_views = tuple(view for view in given if isinstance(view, FeatureView))
    faults = [*earlier, *_undecorated(given), *_clashes(raw_views, raw_services)]
    compiled: dict[ViewKey, CompiledView] = {}
    for raw in raw_views:
        view, found = compile_view(raw, contracts.get(_contract_id(raw)))
        faults += found
        if view is not None:
            compiled[view.name, view.version] = view
    compiled_services = []
    for raw_service in raw_services:
        service, found = compile_service(raw_service, compiled)
        faults += found
        compiled_services += [] if service is None else [service]
    if faults:
        raise DefinitionError(dict.fromkeys(faults))
    used = {view.source.contract.id: view.source.contract for view in compiled.values()}
    return Definitions(tuple(compiled.values()), tuple(compiled_services), raw_views, raw_services, used)


def compile_view(view: FeatureView, contract: ContractOrError) -> tuple[CompiledView | None, list[Fault]]:
    """The view ready to run, or None and everything that is wrong with it."""
    faults = Faults()
    label = view.label or str(view.name)
    _check_view(label, view, faults)
    if not _has_subject(label, view, faults):
        return None, faults.found
    usable = usable_contract(view.source, contract, faults)
    source = compile_source(view.source, usable, faults)
    keys = compile_entity(view.entity, usable, faults)
    columns = {field.name: field.dtype for field in usable.fields} if usable else None
    scope = Scope(label, columns, source.lateness if source else 0, faults)
    body = _compile_body(scope, view)
    if faults.found or source is None:
        return None, faults.found
    compiled = CompiledView(
        name=view.name,
        version=view.version,
        fingerprint="",
        entity=view.entity.name,
        keys=keys,
        source=source,
        where=body.where,
        ttl=body.ttl,
        freshness=body.freshness,
        aggregates=body.aggregates,
        derived=body.derived,
        order=tuple(feature.name for feature in view.features),
        owner=view.owner,
        description=view.description,
        tags=view.tags,
        on_missing=view.on_missing,
        on_stale=view.on_stale,
    )
    return _identified(label, compiled)


@dataclass(frozen=True, slots=True, eq=False)
class _Body:
    where: Expr | None
    ttl: int | None
    freshness: int | None
    aggregates: tuple[CompiledAggregate, ...]
    derived: tuple[CompiledDerived, ...]


def _compile_body(scope: Scope, view: FeatureView) -> _Body:
    specs = {feature.name: feature.spec for feature in view.features}
    aggregates = {n: compile_aggregate(scope, n, s) for n, s in sorted(specs.items()) if isinstance(s, Aggregate)}
    lists = {n for n, s in specs.items() if isinstance(s, Aggregate) and s.op in RULES and RULES[s.op].many}
    ttl, freshness = (
        None if value is None else scope.faults.duration(scope.label, field, value)
        for field, value in (("ttl", view.ttl), ("freshness", view.freshness))
    )
    return _Body(
        compile_condition(scope, scope.label, view.where),
        ttl,
        freshness,
        tuple(a for a in aggregates.values() if a is not None),
        compile_derived(
            scope,
            {n: s for n, s in specs.items() if isinstance(s, Expr)},
            {n: None if a is None else a.dtype for n, a in aggregates.items()},
            lists,
        ),
    )


def _identified(label: str, view: CompiledView) -> tuple[CompiledView | None, list[Fault]]:
    topic = f"fs.shuffle.{view.lane}"
    if len(topic) > _MAX_TOPIC:
        return None, [Fault(label, f"its shuffle topic {shown(topic)} has a name of {len(topic)} characters",
                            f"shorter names of source and key columns: at most {_MAX_TOPIC} together")]  # fmt: skip
    return replace(view, fingerprint=fingerprint(view)), []


def _check_view(label: str, view: FeatureView, faults: Faults) -> None:
    faults.name(label, "view", view.name)
    if type(view.version) is not int or not 1 <= view.version <= MAX_VERSION:
        faults.add(label, f"version is {shown(view.version)}", "a whole number, 1 or more")
    if view.on_missing not in ON_MISSING:
        faults.unknown(label, "on_missing", view.on_missing, ON_MISSING)
    try:
        parse_on_stale(view.on_stale)
    except KeyError:
        faults.unknown(label, "on_stale", view.on_stale, ON_STALE)
    except ValueError as error:
        faults.add(label, f"on_stale is {shown(view.on_stale)}: {error}", "an age, as in last_known(5m)")
    faults.text(label, "owner", view.owner)
    for tag, text in view.tags.items():
        faults.text(label, f"tag {shown(tag)}", text)
        faults.text(label, "a tag's name", tag)
    _check_features(label, view, faults)


def _has_subject(label: str, view: FeatureView, faults: Faults) -> bool:
    subject: tuple[tuple[str, Any, type], ...] = (("entity", view.entity, Entity), ("source", view.source, Source))
    wrong = [(field, value, kind) for field, value, kind in subject if not isinstance(value, kind)]
    for field, value, kind in wrong:
        faults.add(label, f"{field} is {shown(value)}", f"{kind.__name__}(…)")
    return not wrong


def _check_features(label: str, view: FeatureView, faults: Faults) -> None:
    if not view.features and not view.unknown:
        faults.add(label, "has no features", "attributes such as orders_1h = agg.count(window='1h')")
    seen: set[str] = set()
    for feature in view.features:
        faults.name(f"{label}.{feature.name}", "feature", feature.name)
        if feature.name in seen:
            faults.add(f"{label}.{feature.name}", "is defined twice", "one definition for each name")
        seen.add(feature.name)
    for name, value in view.unknown:
        problem, expected = _unknown(value)
        faults.add(f"{label}.{name}", problem, expected)


def _unknown(value: Any) -> tuple[str, str]:
    """Problem and expectation for what stands in a view and is no feature."""
    if isinstance(value, NoValue):
        return value.why, "name = agg.…, in the class itself"
    if isinstance(value, When | Then):
        return "is a when(…) without an end", ".then(a).otherwise(b)"
    if callable(value) and getattr(value, "__qualname__", "").startswith("_Aggregations."):
        return "is an operation that was not called", f"agg.{value.__name__}(…)"
    return f"{shown(value)} is no feature", "agg.…, or an expression over feature('…')"


def _views_of(service: FeatureService) -> list[FeatureView]:
    views: Any = service.views
    items = views if isinstance(views, list | tuple) else ()
    return [chosen_of(item)[0] for item in items if isinstance(item, FeatureView | Selection)]


def _contract_id(view: FeatureView) -> str:
    contract: Any = getattr(view.source, "contract", "")
    return contract if isinstance(contract, str) else ""


_T = TypeVar("_T")


def _distinct(items: Iterable[_T]) -> tuple[_T, ...]:
    """Each object once: a file that imports a view and a service that names it mean the same one."""
    return tuple({id(item): item for item in items}.values())


def _undecorated(views: Iterable[FeatureView | type]) -> Iterator[Fault]:
    for view in views:
        if not isinstance(view, FeatureView):
            yield Fault(
                getattr(view, "__name__", shown(view)), "is no feature view", "@feature_view(…) above the class"
            )


def _clashes(views: Sequence[FeatureView], services: Sequence[FeatureService]) -> Iterable[Fault]:
    """One name for two things."""
    seen: dict[tuple[str, str], object] = {}
    for view in views:
        label, here = view.label or str(view.name), f"{view.name}@{view.version}"
        if ("view", here) in seen:
            yield Fault(label, f"a second view {here}", "another name, or another version=")
        seen["view", here] = view
        for kind, thing in (("entity", view.entity), ("source", view.source)):
            name = str(getattr(thing, "name", ""))
            if seen.setdefault((kind, name), thing) != thing:
                yield Fault(label, f"a second {kind} {name!r} that differs from the first", f"one {kind} of that name")
    for service in services:
        if ("service", str(service.name)) in seen:
            yield Fault(str(service.name), "a second service of that name", "another name")
        seen["service", str(service.name)] = service
