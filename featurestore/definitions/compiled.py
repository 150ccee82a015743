"""Definitions after checking: names resolved, types known, durations in microseconds. What the engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from featurestore.contracts.contract import Contract
from featurestore.definitions.expressions import Expr, RequestField, Scalar
from featurestore.definitions.policy import StalePolicy, parse_on_stale
from featurestore.types import Dtype


@dataclass(frozen=True, slots=True, eq=False)
class CompiledAggregate:
    """One aggregation. `window` None means the whole history; then `hop` is None too."""

    name: str
    op: str
    column: Expr | None
    input_dtype: Dtype | None
    """Dtype of `column`; None for `count()` without one."""
    window: int | None
    hop: int | None
    where: Expr | None
    default: Scalar
    n: int
    """Length of `last_n`, else 0."""
    dtype: Dtype
    """Dtype of the value, or of its elements where `many`."""
    many: bool
    latest: bool
    """Whether the view's `ttl` applies: a latest value without a window."""


@dataclass(frozen=True, slots=True, eq=False)
class CompiledDerived:
    """A feature computed from others: of its view, or in a service of its views and of the request.

    `expr` has `feature` leaves, and in a service `request` leaves.
    """

    name: str
    expr: Expr
    dtype: Dtype


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSource:
    name: str
    topic: str
    contract: Contract
    event_time: str
    key: tuple[str, ...]
    lateness: int
    max_future_skew: int


@dataclass(frozen=True, eq=False)
class CompiledView:
    """A view that holds together."""

    name: str
    version: int
    fingerprint: str
    """SHA-256 (hex) of everything that decides a value."""
    entity: str
    keys: Mapping[str, Dtype]
    source: CompiledSource
    where: Expr | None
    ttl: int | None
    freshness: int | None
    aggregates: tuple[CompiledAggregate, ...]
    """By name, so that the layout of stored state is a function of the fingerprint and not of the order of lines."""
    derived: tuple[CompiledDerived, ...]
    """In an order in which each needs only aggregates and earlier ones."""
    order: tuple[str, ...]
    """Every feature, as the author listed them."""
    owner: str = ""
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    on_missing: str = "default"
    on_stale: str = "serve"

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @cached_property
    def stale_policy(self) -> StalePolicy:
        return parse_on_stale(self.on_stale)

    @property
    def aligned(self) -> bool:
        """Whether the source is partitioned by this view's entity, so that no shuffle is needed."""
        return self.source.key == tuple(self.keys)

    @property
    def lane(self) -> str:
        """Names the stream of events by entity that this view folds; views of one lane share a shuffle topic."""
        return f"{self.source.name}.{'-'.join(self.keys)}"

    @cached_property
    def types(self) -> Mapping[str, tuple[Dtype, bool]]:
        """Feature → (dtype, whether the value is a list)."""
        known = {a.name: (a.dtype, a.many) for a in self.aggregates} | {d.name: (d.dtype, False) for d in self.derived}
        return {name: known[name] for name in self.order}

    @cached_property
    def reach(self) -> int | None:
        """How far back its values look (µs), with whole tail tiles and the source's lateness; None where over the whole
        history."""
        if any(a.window is None for a in self.aggregates):
            return None
        return max((a.window or 0) + (a.hop or 0) for a in self.aggregates) + self.source.lateness

    @cached_property
    def longest_window(self) -> int:
        """Microseconds; 0 where no feature has a window."""
        return max((a.window for a in self.aggregates if a.window is not None), default=0)


@dataclass(frozen=True, slots=True, eq=False)
class CompiledService:
    """What a service answers: `columns` of its views, then its own features, which are computed while it answers."""

    name: str
    views: tuple[tuple[str, int], ...]
    """`(view, version)` pairs the service reads."""
    columns: tuple[tuple[str, str], ...]
    """`(view name, feature)` in the order of the answer."""
    fingerprint: str
    owner: str = ""
    description: str = ""
    budget_ms: float | None = None
    inputs: tuple[tuple[str, str], ...] = ()
    """What its own features stand on, answered or not, as `columns`."""
    derived: tuple[CompiledDerived, ...] = ()
    """Its own features, in an order in which each needs only columns, fields of the request and earlier ones."""
    order: tuple[str, ...] = ()
    """Its own features, as the author listed them."""
    request: tuple[RequestField, ...] = ()
    """Fields of the request that they use, by name."""

    @property
    def read(self) -> tuple[tuple[str, str], ...]:
        """All columns that an answer needs: those that it has, then the other inputs of own features."""
        answered = set(self.columns)
        return (*self.columns, *(column for column in self.inputs if column not in answered))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """In the order of the answer."""
        own = (f"{self.name}.{feature}" for feature in self.order)
        return (*(f"{view}.{feature}" for view, feature in self.columns), *own)

    @property
    def own_types(self) -> Mapping[str, Dtype]:
        """Own feature → dtype, in the author's order."""
        known = {derived.name: derived.dtype for derived in self.derived}
        return {name: known[name] for name in self.order}
