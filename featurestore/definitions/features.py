"""Checks the features of a view: aggregates over the columns of an event, and expressions over other features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from featurestore.clock import SECOND, parse_instant
from featurestore.definitions.aggregates import MAX_LAST_N, RULES, Aggregate, Rule, column_expr
from featurestore.definitions.compiled import CompiledAggregate, CompiledDerived
from featurestore.definitions.expressions import Expr, Scalar, TypeFault, infer, names, oversize, walk
from featurestore.definitions.faults import Faults, Unresolved, shown
from featurestore.definitions.treedata import canonical
from featurestore.types import Dtype, default_hop, format_duration

MAX_TILES = 10_000
"""Tiles that one window (and the source's lateness) may span: they are kept for every entity."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What expressions of one view can refer to."""

    label: str
    columns: Mapping[str, Dtype] | None
    """None where the contract is missing; then nothing that depends on a column's type is checked."""
    lateness: int
    faults: Faults
    service: bool = False
    """Whether the expressions are a service's, to which fields of the request are there."""


def compile_condition(scope: Scope, where: str, condition: Any) -> Expr | None:
    """A `where=` over columns: None where it is absent or at fault."""
    if condition is None:
        return None
    dtype = _over_columns(scope, where, "where", condition)
    if dtype not in (None, Dtype.BOOL):
        scope.faults.add(where, f"where is {dtype}", "a condition, as col('delay') > 15")
    return None if dtype is None else canonical(condition)


_ANY = Rule(lambda dtype: dtype, column=False)
"""Stands in for an operation that is not known, so that its arguments are checked all the same."""


def compile_aggregate(scope: Scope, name: str, aggregate: Aggregate) -> CompiledAggregate | None:
    """None after adding faults, or where the contract is not there to check against."""
    where, before = f"{scope.label}.{name}", len(scope.faults.found)
    rule = RULES.get(aggregate.op)
    if rule is None:
        scope.faults.unknown(where, "operation", aggregate.op, RULES)
        _window(scope, where, aggregate)
        compile_condition(scope, where, aggregate.where)
        _column(scope, where, _ANY, aggregate)
        return None
    _check_arguments(scope, where, rule, aggregate)
    n = _length(scope, where, rule, dict(aggregate.extra))
    window, hop = _window(scope, where, aggregate)
    condition = compile_condition(scope, where, aggregate.where)
    column, input_dtype = _column(scope, where, rule, aggregate)
    unresolved = column is not None and input_dtype is None
    if unresolved:
        _check_default_allowed(scope, where, rule, aggregate)
    if unresolved or len(scope.faults.found) > before:
        return None
    dtype = rule.gives(input_dtype or Dtype.INT)
    default = _default(scope, where, rule, aggregate, dtype)
    if len(scope.faults.found) > before:
        return None
    latest = rule.latest and window is None
    return CompiledAggregate(
        name, aggregate.op, column, input_dtype, window, hop, condition, default, n, dtype, rule.many, latest
    )


def _check_arguments(scope: Scope, where: str, rule: Rule, aggregate: Aggregate) -> None:
    call = f"agg.{aggregate.op}"
    if aggregate.surplus:
        values = ", ".join(shown(v) for v in aggregate.surplus)
        scope.faults.add(where, f"{call} takes one positional argument, the column; also got {values}", "keywords")
    allowed = (*rule.parameters, "window", "hop", "where", "default")
    for parameter, _ in aggregate.extra:
        if parameter not in rule.parameters:
            scope.faults.unknown(where, f"argument of {call}", parameter, allowed)


def _length(scope: Scope, where: str, rule: Rule, extra: Mapping[str, Any]) -> int:
    if "n" not in rule.parameters:
        return 0
    n = extra.get("n")
    if type(n) is int and 1 <= n <= MAX_LAST_N:
        return n
    problem = f"n is {shown(n)}" if "n" in extra else "n is missing"
    scope.faults.add(where, problem, f"n=, a whole number from 1 to {MAX_LAST_N}")
    return 0


def _window(scope: Scope, where: str, aggregate: Aggregate) -> tuple[int | None, int | None]:
    """Window and hop in microseconds; a hop that is not given follows from the window."""
    faults = scope.faults
    if aggregate.window is None:
        if aggregate.hop is not None:
            faults.add(where, f"hop {shown(aggregate.hop)} has no window", "window= beside hop=, or neither")
        return None, None
    window = faults.duration(where, "window", aggregate.window)
    given = None if aggregate.hop is None else faults.duration(where, "hop", aggregate.hop)
    if window is None or (aggregate.hop is not None and given is None):
        return None, None
    hop = default_hop(window) if given is None else given
    if hop < SECOND:
        faults.add(where, f"hop {format_duration(hop)} is too short", "at least 1s")
    elif window < hop:
        faults.add(where, f"window {format_duration(window)} is shorter than its hop {format_duration(hop)}",
                   f"window at least {format_duration(hop)}")  # fmt: skip
    elif (tiles := (window + scope.lateness) // hop) > MAX_TILES:
        faults.add(where, f"window {format_duration(window)} in hops of {format_duration(hop)} makes {tiles} tiles",
                   f"at most {MAX_TILES} (window and the source's lateness, divided by hop)")  # fmt: skip
    return window, hop


def _column(scope: Scope, where: str, rule: Rule, aggregate: Aggregate) -> tuple[Expr | None, Dtype | None]:
    if aggregate.column is None:
        if rule.column:
            scope.faults.add(where, f"{aggregate.op} needs a column", f"agg.{aggregate.op}(col('…'))")
        return None, None
    column: Any = column_expr(aggregate)
    dtype = _over_columns(scope, where, "column", column)
    if dtype is not None and dtype not in rule.accepts:
        accepted = " or ".join(sorted(rule.accepts))
        scope.faults.add(where, f"{aggregate.op} of {column!r}, which is {dtype}", accepted)
    return (column if dtype is None else canonical(column)), dtype


def _over_columns(scope: Scope, where: str, role: str, expr: Any) -> Dtype | None:
    """Dtype of an expression over the event; None after adding faults, or where a column's type is not known."""
    if not _well_formed(scope, where, role, expr):
        return None
    for name in names(expr, "feature"):
        scope.faults.add(where, f"{role} refers to feature({name!r})",
                         "columns of the event; a feature computed from features stands on its own line")  # fmt: skip
    columns = names(expr, "col")
    if not columns and not names(expr, "feature"):
        scope.faults.add(where, f"{role} {expr!r} refers to no column", "at least one col('…')")
        return None
    for name in columns:
        if scope.columns is not None and name not in scope.columns:
            scope.faults.unknown(where, "column", name, scope.columns)
    return _typed(scope, where, role, expr, scope.columns or {})


def _well_formed(scope: Scope, where: str, role: str, expr: Any) -> bool:
    """Whether the tree is one, and small enough to be looked at further."""
    if not isinstance(expr, Expr):
        scope.faults.add(where, f"{role} is {shown(expr)}", f"an expression, as {_EXAMPLES[scope.service]}")
        return False
    if problem := oversize(expr):
        scope.faults.add(where, f"{role} {problem}", "a smaller expression, in parts that have names")
        return False
    nodes = list(walk(expr))
    if any(node.op == "lit" and isinstance(node.value, Aggregate) for node in nodes):
        scope.faults.add(where, f"{role} has an aggregate inside an expression",
                         "the aggregate on a line of its own, and feature('its name') here")  # fmt: skip
        return False
    for node in nodes:
        if node.op in ("col", "feature") and not isinstance(node.value, str):
            scope.faults.add(where, f"{role} has {node.op}({shown(node.value)})", "a name")
            return False
        if node.op == "request" and not scope.service:
            hint = "no field of a request here: features that need one are those of a FeatureService"
            scope.faults.add(where, f"{role} refers to {node!r}", hint)
            return False
    return True


_EXAMPLES = {False: "col('delay') or col('delay') > 15", True: "request('amount', float) / feature('view.name')"}
_LEAVES = {
    False: "features of this view, as feature('…'); a column has to be aggregated first",
    True: "features of the service's views, as feature('view.name'), and fields of the request",
}
"""What expressions of a view, and of a service, may refer to."""


def _typed(scope: Scope, where: str, role: str, expr: Expr, known: Mapping[str, Dtype]) -> Dtype | None:
    def leaf(_: str, name: str) -> Dtype:
        if name not in known:
            raise Unresolved(name)
        return known[name]

    try:
        dtype = infer(expr, leaf)
    except Unresolved:
        return None
    except TypeFault as fault:
        scope.faults.add(where, f"{role}: {fault}")
        return None
    if dtype is None:
        scope.faults.add(where, f"{role} {expr!r} is always null", "an expression that can have a value")
    return dtype


def _check_default_allowed(scope: Scope, where: str, rule: Rule, aggregate: Aggregate) -> bool:
    if aggregate.default is None:
        return False
    if rule.empty_is_null:
        return True
    empty = "[]" if rule.many else "0"
    scope.faults.add(where, f"{aggregate.op} takes no default", f"no default=: an empty window gives {empty}")
    return False


def _default(scope: Scope, where: str, rule: Rule, aggregate: Aggregate, dtype: Dtype) -> Scalar:
    """The declared default as a value of the feature's dtype."""
    if not _check_default_allowed(scope, where, rule, aggregate):
        return None
    try:
        return DEFAULTS[dtype](aggregate.default)
    except ValueError as error:
        scope.faults.add(where, f"default {shown(aggregate.default)} does not fit type {dtype}", str(error))
        return None


def _bool_default(value: Any) -> Scalar:
    if type(value) is not bool:
        raise ValueError("True or False")
    return value


def _int_default(value: Any) -> Scalar:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError("a whole number that fits int64")
    return value


def _float_default(value: Any) -> Scalar:
    if type(value) not in (int, float) or not abs(value) < 2**1023 or not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value) + 0.0


def _string_default(value: Any) -> Scalar:
    if type(value) is not str or any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("a string")
    return value


def _timestamp_default(value: Any) -> Scalar:
    if type(value) is not str:
        raise ValueError("an instant as RFC 3339 text, as '2026-03-01T12:00:00Z'")
    return parse_instant(value)


DEFAULTS: dict[Dtype, Callable[[Any], Scalar]] = {
    Dtype.BOOL: _bool_default,
    Dtype.INT: _int_default,
    Dtype.FLOAT: _float_default,
    Dtype.STRING: _string_default,
    Dtype.TIMESTAMP: _timestamp_default,
}


def compile_derived(
    scope: Scope, derived: Mapping[str, Expr], others: Mapping[str, Dtype | None], lists: Set[str]
) -> tuple[CompiledDerived, ...]:
    """Derived features in an order in which each needs only others and earlier ones.

    `others` has the dtype of every feature that is no expression of this scope; None stands for one that has faults of
    its own. `lists` names those whose value is a list.
    """
    known = {name: dtype for name, dtype in others.items() if dtype is not None}
    every = {*others, *derived}
    sound = {name: expr for name, expr in derived.items() if _refers_well(scope, name, expr, every, lists)}
    compiled = []
    for name in _in_order(scope, sound):
        dtype = _typed(scope, f"{scope.label}.{name}", "expression", sound[name], known)
        if dtype is not None:
            known[name] = dtype
            compiled.append(CompiledDerived(name, canonical(sound[name]), dtype))
    return tuple(compiled)


def _refers_well(scope: Scope, name: str, expr: Expr, every: Set[str], lists: Set[str]) -> bool:
    where, before = f"{scope.label}.{name}", len(scope.faults.found)
    if not _well_formed(scope, where, "expression", expr):
        return False
    for column in names(expr, "col"):
        scope.faults.add(where, f"expression refers to col({column!r})", _LEAVES[scope.service])
    referred = names(expr, "feature")
    for other in referred:
        if other not in every:
            _unknown_feature(scope, where, other, every - {name})
        elif other in lists:
            scope.faults.add(where, f"expression uses {other!r}, which is a list", "features with a single value")
    if not referred and not any(node.op == "request" for node in walk(expr)) and len(scope.faults.found) == before:
        scope.faults.add(where, f"expression {expr!r} refers to no feature", "at least one feature('…')")
    return len(scope.faults.found) == before


def _unknown_feature(scope: Scope, where: str, name: str, known: Set[str]) -> None:
    """In a service a feature of a view goes by its full name; whoever leaves the view out is told it."""
    full = sorted(option for option in known if option.endswith(f".{name}"))
    if full:
        scope.faults.add(where, f"unknown feature {shown(name)}", near=full[:3])
    else:
        scope.faults.unknown(where, "feature", name, known)


def _in_order(scope: Scope, derived: Mapping[str, Expr]) -> list[str]:
    """Each after those it needs; ties by name, so that the order is a function of the content. Reports cycles."""
    graph = {name: {f for f in names(expr, "feature") if f in derived} for name, expr in sorted(derived.items())}
    while True:
        try:
            sorter = TopologicalSorter(graph)
            sorter.prepare()
        except CycleError as error:
            cycle: list[str] = error.args[1][::-1]
            first = min(cycle)
            scope.faults.add(f"{scope.label}.{first}", f"needs itself: {' -> '.join(_from(first, cycle))}",
                             "features that do not lead back to themselves")  # fmt: skip
            graph = {name: needs - set(cycle) for name, needs in graph.items() if name not in cycle}
            continue
        order: list[str] = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready())
            order.extend(ready)
            sorter.done(*ready)
        return order


def _from(first: str, cycle: list[str]) -> list[str]:
    """The closed walk `[a, b, c, a]`, started at `first`."""
    ring = cycle[:-1]
    start = ring.index(first)
    return [*ring[start:], *ring[:start], first]
