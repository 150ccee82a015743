"""Expressions over columns, on NumPy or CuPy.

Null rules: arithmetic and comparisons with null are null; `&` and `|` are Kleene's; division and remainder by zero
are null, and so are integer results outside int64 and float results that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featurestore.definitions.expressions import Expr, literal_dtype, unify
from featurestore.engine.array import Array
from featurestore.engine.columns import NUMPY_DTYPES, Column, StringPool
from featurestore.types import Dtype

Leaves = Mapping[tuple[str, str], Column]
"""Columns by (`col`, `feature` or `request`, name)."""


def evaluate(xp: Any, expr: Expr, leaves: Leaves, rows: int, pool: StringPool) -> Column:
    """The expression's n = `rows` values. Types were checked when the view was compiled."""
    if expr.op in ("col", "feature"):
        return leaves[expr.op, expr.value]
    if expr.op == "request":
        return leaves[expr.op, expr.value.name]
    if expr.op == "lit":
        return _literal(xp, expr.value, rows, pool)
    operands = [evaluate(xp, a, leaves, rows, pool) for a in expr.args]
    if expr.op == "is_in":
        return _is_in(xp, operands[0], expr.value, pool)
    return KERNELS[expr.op](xp, *operands)


def is_true(xp: Any, condition: Expr | None, leaves: Leaves, rows: int, pool: StringPool) -> Array:
    """Where a condition holds; null is false, no condition is true."""
    if condition is None:
        return xp.ones(rows, xp.bool_)
    column = evaluate(xp, condition, leaves, rows, pool)
    return column.valid & column.values.astype(xp.bool_)


def _literal(xp: Any, value: Any, rows: int, pool: StringPool) -> Column:
    dtype = literal_dtype(value)
    stored = pool.code(value) if dtype is Dtype.STRING else 0 if value is None else value
    kind = NUMPY_DTYPES[dtype or Dtype.INT]
    return Column(xp.full(rows, stored, kind), xp.full(rows, value is not None, xp.bool_), dtype)


def _as(xp: Any, column: Column, dtype: Dtype | None) -> Array:
    return column.values.astype(NUMPY_DTYPES[dtype or Dtype.INT])


def _is_in(xp: Any, column: Column, values: tuple[Any, ...], pool: StringPool) -> Column:
    hit = xp.zeros(column.values.shape, xp.bool_)
    for value in values:
        if value is not None:
            hit = hit | (column.values == (pool.code(value) if isinstance(value, str) else value))
    return Column(hit, column.valid, Dtype.BOOL)


def _add(xp: Any, a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    return total, ((a ^ total) & (b ^ total)) >= 0


def _sub(xp: Any, a: Array, b: Array) -> tuple[Array, Array]:
    total = a - b
    return total, ((a ^ b) & (a ^ total)) >= 0


def _mul(xp: Any, a: Array, b: Array) -> tuple[Array, Array]:
    product = a * b
    # Division undoes the product exactly unless it wrapped; -1 * int64's minimum wraps onto itself.
    divisor = xp.where((a == 0) | (a == -1), 1, a)
    undone = (xp.floor_divide(product, divisor) == b) & (xp.remainder(product, divisor) == 0)
    return product, (a == 0) | xp.where(a == -1, b != -(2**63), undone)


INTEGER_KERNELS: dict[str, Callable[[Any, Array, Array], tuple[Array, Array]]] = {"add": _add, "sub": _sub, "mul": _mul}
FLOAT_KERNELS: dict[str, Callable[[Array, Array], Array]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


def _arithmetic(op: str) -> Callable[[Any, Column, Column], Column]:
    def kernel(xp: Any, left: Column, right: Column) -> Column:
        dtype = unify(left.dtype, right.dtype)
        a, b = _as(xp, left, dtype), _as(xp, right, dtype)
        valid = left.valid & right.valid
        if dtype is Dtype.FLOAT:
            return _finite(xp, FLOAT_KERNELS[op](a, b), valid)
        values, fits = INTEGER_KERNELS[op](xp, a, b)
        return Column(values, valid & fits, dtype)

    return kernel


def _finite(xp: Any, values: Array, valid: Array) -> Column:
    ok = xp.isfinite(values)
    return Column(xp.where(ok, values, 0.0), valid & ok, Dtype.FLOAT)


def _div(xp: Any, left: Column, right: Column) -> Column:
    a, b = _as(xp, left, Dtype.FLOAT), _as(xp, right, Dtype.FLOAT)
    zero = b == 0
    return _finite(xp, a / xp.where(zero, 1.0, b), left.valid & right.valid & ~zero)


def _mod(xp: Any, left: Column, right: Column) -> Column:
    dtype = unify(left.dtype, right.dtype)
    a, b = _as(xp, left, dtype), _as(xp, right, dtype)
    zero = b == 0
    return Column(xp.remainder(a, xp.where(zero, 1, b)), left.valid & right.valid & ~zero, dtype)


def _neg(xp: Any, operand: Column) -> Column:
    if operand.dtype is Dtype.FLOAT:
        return Column(-operand.values, operand.valid, operand.dtype)
    return Column(-operand.values, operand.valid & (operand.values != -(2**63)), operand.dtype)


def _comparison(compare: Callable[[Array, Array], Array]) -> Callable[[Any, Column, Column], Column]:
    def kernel(xp: Any, left: Column, right: Column) -> Column:
        dtype = unify(left.dtype, right.dtype)
        hit = compare(_as(xp, left, dtype), _as(xp, right, dtype))
        return Column(hit, left.valid & right.valid, Dtype.BOOL)

    return kernel


def _and(xp: Any, left: Column, right: Column) -> Column:
    a, b = left.values.astype(xp.bool_), right.values.astype(xp.bool_)
    false = (left.valid & ~a) | (right.valid & ~b)
    return Column(a & b & ~false, false | (left.valid & right.valid), Dtype.BOOL)


def _or(xp: Any, left: Column, right: Column) -> Column:
    a, b = left.values.astype(xp.bool_), right.values.astype(xp.bool_)
    true = (left.valid & a) | (right.valid & b)
    return Column(true, true | (left.valid & right.valid), Dtype.BOOL)


def _not(xp: Any, operand: Column) -> Column:
    return Column(~operand.values.astype(xp.bool_), operand.valid, Dtype.BOOL)


def _is_null(xp: Any, operand: Column) -> Column:
    return Column(~operand.valid, xp.ones(operand.valid.shape, xp.bool_), Dtype.BOOL)


def _choose(xp: Any, where: Array, left: Column, right: Column) -> Column:
    dtype = unify(left.dtype, right.dtype)
    values = xp.where(where, _as(xp, left, dtype), _as(xp, right, dtype))
    return Column(values, xp.where(where, left.valid, right.valid), dtype)


def _fill_null(xp: Any, operand: Column, filler: Column) -> Column:
    return _choose(xp, operand.valid, operand, filler)


def _case(xp: Any, condition: Column, then: Column, otherwise: Column) -> Column:
    return _choose(xp, condition.valid & condition.values.astype(xp.bool_), then, otherwise)


KERNELS: dict[str, Callable[..., Column]] = {
    "add": _arithmetic("add"),
    "sub": _arithmetic("sub"),
    "mul": _arithmetic("mul"),
    "div": _div,
    "mod": _mod,
    "neg": _neg,
    "eq": _comparison(lambda a, b: a == b),
    "ne": _comparison(lambda a, b: a != b),
    "lt": _comparison(lambda a, b: a < b),
    "le": _comparison(lambda a, b: a <= b),
    "gt": _comparison(lambda a, b: a > b),
    "ge": _comparison(lambda a, b: a >= b),
    "and": _and,
    "or": _or,
    "not": _not,
    "is_null": _is_null,
    "fill_null": _fill_null,
    "case": _case,
}
"""One kernel for each entry of `expressions.TYPE_RULES`."""
