"""What a user writes: entities, sources, feature views and services, as frozen data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from featurestore.clock import Instant
from featurestore.definitions.aggregates import Aggregate
from featurestore.definitions.expressions import Expr
from featurestore.definitions.notebook import html_table


@dataclass(frozen=True, slots=True)
class Entity:
    """What features are about. `keys` maps each key column to `str`, `int` or `bool`; several make a composite."""

    name: str
    keys: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A Kafka topic of events under a contract.

    `key` names the columns of the message key; equal to a view's entity keys it saves that view the shuffle.
    `lateness` widens how far back online lookups can answer; an event further than `max_future_skew` ahead of the
    broker's clock becomes a dead letter.
    """

    name: str
    topic: str
    contract: str
    event_time: str
    key: Sequence[str] = ()
    lateness: str = "0s"
    max_future_skew: str = "5m"
    owner: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    name: str
    spec: Aggregate | Expr


@dataclass(frozen=True, slots=True, eq=False)
class FeatureView:
    """Features of one entity from one source. Made by the `feature_view` decorator."""

    name: str
    entity: Entity
    source: Source
    version: int
    features: tuple[Feature, ...]
    owner: str = ""
    freshness: str | None = None
    ttl: str | None = None
    where: Expr | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    on_missing: str = "default"
    on_stale: str = "serve"
    description: str = ""
    label: str = ""
    """The class name, which messages use."""
    unknown: tuple[tuple[str, Any], ...] = ()
    """What stands in the class and is no feature (an annotation without a value, too): each is a fault."""

    def pick(self, *features: str) -> Selection:
        """Some features of the view, for a service, in this order."""
        return Selection(self, features)

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    def plot(  # noqa: PLR0913 - each says one thing about the picture
        self,
        feature: str,
        entity: Mapping[str, Any] | None = None,
        /,
        *,
        start: Instant | None = None,
        end: Instant | None = None,
        points: int = 500,
        every: str | None = None,
        ax: Any = None,
        store: Any = None,
        lake: str = "",
        **keys: Any,
    ) -> Any:
        """Draws a feature of one entity over time: `AirportDelay.plot("delay_mean_1h", origin="JFK")`.

        Exact values, from the events in the lake (`lake`; without it, FS_LAKE) or in a `LocalStore` (`store`), of the
        view as it stands in this program, published or not. `start` to `end` (datetime or RFC 3339 text; without them
        the entity's first to last event), at `points` instants, or each `every` (as "15m") from `start` on. A value is
        drawn until the next instant; null, and an entity that was not seen yet, is a gap. Keys whose names are those of
        arguments go into `entity`. Draws into `ax`, a matplotlib Axes, or the current one, and returns it. Raises
        UsageError, also where matplotlib is not installed.
        """
        # By name: definitions know nothing of lakes, and load nothing of them until somebody draws.
        draw = import_module("featurestore.offline.plotting").plot
        told = {"start": start, "end": end, "points": points, "every": every, "ax": ax, "store": store, "lake": lake}
        return draw(self, feature, {**(entity or {}), **keys}, **told)

    def _repr_html_(self) -> str:
        rows = [(f.name, f.spec.written if isinstance(f.spec, Aggregate) else repr(f.spec)) for f in self.features]
        of = f"{self.id}: {self.entity.name} by {', '.join(self.entity.keys)}, from {self.source.name}"
        return html_table(of, ("feature", "is"), rows, below=self.description)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    view: FeatureView
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureService:
    """What one model or product reads: whole views or `View.pick(…)`, and what is computed from them and requests."""

    name: str
    views: Sequence[FeatureView | Selection | type]
    """`type` only because type checkers see a decorated class as the class it was; a plain class is a fault."""
    owner: str = ""
    description: str = ""
    budget_ms: float | None = None
    features: Mapping[str, Expr] = field(default_factory=dict)
    """The service's own: expressions over features of its views and fields of the request."""

    def _repr_html_(self) -> str:
        rows = [row for view in self.views for row in _listed(view)]
        rows += [(self.name, name, repr(expr)) for name, expr in self.features.items()]
        return html_table(f"service {self.name}", ("view", "feature", "is"), rows, below=self.description)


def _listed(part: FeatureView | Selection | type) -> list[tuple[str, str, str]]:
    """View, feature and what it is, of what a service reads of one view."""
    view = part.view if isinstance(part, Selection) else part
    if not isinstance(view, FeatureView):
        return [(repr(view), "", "no view")]
    known = {f.name: f.spec.written if isinstance(f.spec, Aggregate) else repr(f.spec) for f in view.features}
    names = part.features if isinstance(part, Selection) else tuple(known)
    return [(view.id, name, known.get(name, "there is no such feature")) for name in names]


def snake_case(name: str) -> str:
    """`AirportDelay` → `airport_delay`, `HTTPErrors5m` → `http_errors5m`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@dataclass(frozen=True, slots=True)
class NoValue:
    """Stands for what a class names and does not hold: a bare annotation, or the body of a base class."""

    why: str


def _private(name: str, value: Any) -> bool:
    return name.startswith("__") or (name.startswith("_") and not isinstance(value, Aggregate))


def _without_value(cls: type) -> Iterable[tuple[str, NoValue]]:
    """Features that would be lost in silence: `x: agg.count()` in place of `x = agg.count()`, and inherited ones."""
    for name in vars(cls).get("__annotations__", {}):
        if name not in vars(cls):
            yield name, NoValue("is annotated and has no value")
    for base in cls.__bases__:
        if base is not object:
            yield base.__name__, NoValue("is a base class, and features are not inherited")


def feature_view(  # noqa: PLR0913 - the words of the definition language
    *,
    entity: Entity,
    source: Source,
    version: int,
    owner: str = "",
    freshness: str | None = None,
    ttl: str | None = None,
    where: Expr | None = None,
    tags: Mapping[str, str] | Iterable[str] = (),
    on_missing: str = "default",
    on_stale: str = "serve",
) -> Callable[[type], FeatureView]:
    """Class decorator: each attribute of the class that is an aggregate or an expression becomes a feature.

    Expressions under a name with a leading underscore are private: parts of others, no features.
    """

    def build(cls: type) -> FeatureView:
        body = {name: value for name, value in vars(cls).items() if not _private(name, value)}
        specs = {name: value for name, value in body.items() if isinstance(value, Aggregate | Expr)}
        return FeatureView(
            name=snake_case(cls.__name__),
            entity=entity,
            source=source,
            version=version,
            features=tuple(Feature(name, spec) for name, spec in specs.items()),
            owner=owner,
            freshness=freshness,
            ttl=ttl,
            where=where,
            tags=dict(tags) if isinstance(tags, Mapping) else dict.fromkeys(tags, ""),
            on_missing=on_missing,
            on_stale=on_stale,
            description=(cls.__doc__ or "").strip(),
            label=cls.__name__,
            unknown=(*((n, v) for n, v in body.items() if n not in specs), *_without_value(cls)),
        )

    return build
