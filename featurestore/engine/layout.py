"""How a view's aggregates share state: tiles of one hop form a group, equal partials in a group are kept once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from featurestore.definitions.compiled import CompiledAggregate, CompiledView
from featurestore.definitions.expressions import Expr, names, render
from featurestore.engine.operations import OPERATIONS, Operation
from featurestore.engine.partials import Partial


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A partial kept per tile, and what feeds it."""

    partial: Partial
    source: CompiledAggregate
    """Any of the aggregates it serves: all agree on column, condition and dtype."""
    kind: tuple[object, ...]
    """Equal where, of the same events, the same is kept, in whatever group."""

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.source.op]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Tiles of one hop. `hop` None is the single tile of the whole history."""

    hop: int | None
    reach: int
    """Microseconds before the entity's latest event that the tiles must cover: longest window + lateness."""
    stored: tuple[Stored, ...]

    @property
    def ring(self) -> int:
        """Tiles that can be live at once."""
        return 1 if self.hop is None else -(-self.reach // self.hop) + 1


@dataclass(frozen=True, eq=False)
class Layout:
    view: CompiledView
    groups: tuple[Group, ...]
    places: tuple[tuple[int, int], ...]
    """For each aggregate of the view: (group, partial in the group)."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Event columns that folding needs, each once."""
        exprs: list[Expr | None] = [self.view.where]
        for aggregate in self.view.aggregates:
            exprs += [aggregate.column, aggregate.where]
        return tuple(dict.fromkeys(name for e in exprs if e is not None for name in names(e, "col")))


def layout_of(view: CompiledView) -> Layout:
    hops: dict[int | None, dict[tuple[object, ...], CompiledAggregate]] = {}
    wanted: list[tuple[int | None, tuple[object, ...]]] = []
    for aggregate in view.aggregates:
        kind = (
            *OPERATIONS[aggregate.op].kind(aggregate),
            render(aggregate.column) if aggregate.column is not None else "",
            render(aggregate.where) if aggregate.where is not None else "",
        )
        hops.setdefault(aggregate.hop, {}).setdefault(kind, aggregate)
        wanted.append((aggregate.hop, kind))
    order = sorted(hops, key=lambda hop: -1 if hop is None else hop)
    groups = tuple(
        Group(
            hop=hop,
            reach=_reach(view, hop),
            stored=tuple(Stored(OPERATIONS[a.op].partial(a), a, kind) for kind, a in hops[hop].items()),
        )
        for hop in order
    )
    places = tuple((order.index(hop), list(hops[hop]).index(kind)) for hop, kind in wanted)
    return Layout(view, groups, places)


def _reach(view: CompiledView, hop: int | None) -> int:
    windows = [a.window for a in view.aggregates if a.hop == hop and a.window is not None]
    return max(windows, default=0) + view.source.lateness
