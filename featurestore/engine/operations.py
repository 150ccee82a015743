"""The one table of operations: which partial state each keeps and how a state becomes a value.

Every path (stream, rebuild, online read, export) goes prepare → merge → finalize through this table. To add an
operation, add a rule in `definitions.aggregates.RULES` and an entry here; the law tests run over every entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featurestore.definitions.compiled import CompiledAggregate
from featurestore.engine import exact, partials
from featurestore.engine.array import Array
from featurestore.engine.partials import INT_MAX, INT_MIN, REGISTERS, Partial
from featurestore.engine.reduce import State
from featurestore.types import Dtype


@dataclass(frozen=True, slots=True)
class Finalized:
    """Values of n states. `as_of` is set by operations whose value stands on one event."""

    values: Array
    """`[n]`, or `[n, k]` for lists, newest first."""
    valid: Array
    """`bool[n]`, or `bool[n, k]` for lists: which elements exist."""
    as_of: Array | None = None
    empty: Array | None = None
    """`bool[n]`: nothing was aggregated, so a default applies. None where that is the same as not valid."""


@dataclass(frozen=True, slots=True)
class Operation:
    partial: Callable[[CompiledAggregate], Partial]
    kind: Callable[[CompiledAggregate], tuple[Any, ...]]
    """What distinguishes partials over the same column and condition; equal kinds are stored once."""
    finalize: Callable[[Any, CompiledAggregate, State], Finalized]
    hashed: bool = False
    """Whether the column's hash is aggregated in place of its value."""


def _is_int(a: CompiledAggregate) -> bool:
    return a.input_dtype is Dtype.INT


def storage(dtype: Dtype | None) -> str:
    """How a value of this dtype is kept in a state (see `partials.Field.kind`)."""
    return {Dtype.FLOAT: "f8", Dtype.STRING: "text"}.get(dtype, "i8")  # type: ignore[arg-type]


def _sum_partial(a: CompiledAggregate) -> Partial:
    return partials.int_sum() if _is_int(a) else partials.float_sum()


def _whole(xp: Any, state: State) -> tuple[Array, Array]:
    """Halves of an integer sum → upper part with carries, lower 32 bits."""
    return state[1] + (state[2] >> 32), state[2] & 0xFFFFFFFF


def _total(xp: Any, a: CompiledAggregate, state: State) -> tuple[Array, Array]:
    """The sum as a double-double."""
    if not _is_int(a):
        return state[1], state[2]
    upper, lower = _whole(xp, state)
    return exact.two_sum(upper.astype(xp.float64) * 2.0**32, lower.astype(xp.float64))


def _count(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
    return Finalized(state[0], xp.ones(state[0].shape, xp.bool_))


def _sum(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
    some = state[0] > 0
    if _is_int(a):
        upper, lower = _whole(xp, state)
        fits = (upper >= -(2**31)) & (upper < 2**31)
        return Finalized((xp.where(fits, upper, 0) << 32) | lower, some & fits, empty=~some)
    return _finite(xp, state[1] + state[2], some, state[0])


def _finite(xp: Any, values: Array, valid: Array, count: Array) -> Finalized:
    ok = xp.isfinite(values)
    return Finalized(xp.where(ok, values, 0.0), valid & ok, empty=count == 0)


def _mean(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
    n = xp.maximum(state[0], 1).astype(xp.float64)
    return _finite(xp, exact.divide(_total(xp, a, state), n), state[0] > 0, state[0])


def _var(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
    n = state[0].astype(xp.float64)
    return _finite(xp, state[3] / xp.maximum(n - 1.0, 1.0), state[0] > 1, state[0])


def _std(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
    var = _var(xp, a, state)
    return Finalized(xp.sqrt(var.values), var.valid, empty=var.empty)


def _extreme(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
    some = state[0] > 0
    return Finalized(xp.where(some, state[1], 0), some)


def _end(never: int) -> Callable[[Any, CompiledAggregate, State], Finalized]:
    def finalize(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
        return Finalized(state[2], state[0] != never, state[0])

    return finalize


def _newest(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
    if a.n == 1:
        state = tuple(field[..., None] for field in state)
    return Finalized(state[2], state[0] != INT_MIN, state[0])


def _distinct(xp: Any, a: CompiledAggregate, state: State) -> Finalized:
    """HyperLogLog with linear counting below 2.5 registers; P. Flajolet et al. (2007), S. Heule et al. (2013)."""
    registers = state[0]
    harmonic = xp.sum(xp.exp2(-registers.astype(xp.float64)), axis=-1)
    raw = 0.7213 / (1 + 1.079 / REGISTERS) * REGISTERS * REGISTERS / harmonic
    empty = xp.sum(registers == 0, axis=-1).astype(xp.float64)
    linear = REGISTERS * xp.log(REGISTERS / xp.maximum(empty, 1.0))
    estimate = xp.where((raw <= 2.5 * REGISTERS) & (empty > 0), linear, raw)
    return Finalized(xp.floor(estimate + 0.5).astype(xp.int64), xp.ones(estimate.shape, xp.bool_))


OPERATIONS: dict[str, Operation] = {
    "count": Operation(lambda a: partials.count(), lambda a: ("count",), _count),
    "sum": Operation(_sum_partial, lambda a: ("sum",), _sum),
    "mean": Operation(_sum_partial, lambda a: ("sum",), _mean),
    "var": Operation(lambda a: partials.moments(), lambda a: ("moments",), _var),
    "std": Operation(lambda a: partials.moments(), lambda a: ("moments",), _std),
    "min": Operation(lambda a: partials.minimum(storage(a.input_dtype)), lambda a: ("min",), _extreme),
    "max": Operation(lambda a: partials.maximum(storage(a.input_dtype)), lambda a: ("max",), _extreme),
    "first": Operation(lambda a: partials.first(storage(a.input_dtype)), lambda a: ("first",), _end(INT_MAX)),
    "last": Operation(lambda a: partials.last(storage(a.input_dtype)), lambda a: ("last",), _end(INT_MIN)),
    "last_n": Operation(lambda a: partials.newest(storage(a.input_dtype), a.n), lambda a: ("last_n", a.n), _newest),
    "approx_distinct": Operation(lambda a: partials.sketch(), lambda a: ("sketch",), _distinct, hashed=True),
}
