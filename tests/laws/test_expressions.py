"""Expressions mean what plain Python says they mean, null by null, whatever the tree."""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.definitions.expressions import TYPE_RULES, Expr, TypeFault, col, infer, lit, when
from featurestore.definitions.treedata import from_data, to_data
from featurestore.engine.columns import NUMPY_DTYPES, Column, StringPool
from featurestore.engine.evaluate import KERNELS, evaluate
from featurestore.types import Dtype

INT64 = range(-(2**63), 2**63)
ints = st.one_of(st.none(), st.integers(-4, 4), st.sampled_from((2**63 - 1, -(2**63), 2**62, 3_037_000_500)))
floats = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from((0.0, -0.0, 1e308, -1e308, 0.5)))
bools = st.sampled_from((None, True, False))
texts = st.sampled_from((None, "", "a", "b", "é"))
COLUMNS = {"i": ints, "j": ints, "x": floats, "y": floats, "p": bools, "q": bools, "s": texts, "t": texts}
KINDS = {"i": Dtype.INT, "x": Dtype.FLOAT, "p": Dtype.BOOL, "s": Dtype.STRING}
DTYPES = {name: KINDS[kind] for name, kind in zip("ijxypqst", "iixxppss", strict=True)}

leaves = st.one_of(
    st.sampled_from([col(name) for name in COLUMNS]),
    st.sampled_from([lit(v) for v in (None, 0, 1, -1, 2, 0.0, 2.5, True, False, "a", 2**62)]),
)
BINARY = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.mod, operator.eq, operator.ne, operator.lt,
    operator.le, operator.gt, operator.ge, operator.and_, operator.or_,
)  # fmt: skip


def _grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(lambda f, a, b: f(a, b), st.sampled_from(BINARY), inner, inner),
        st.builds(operator.neg, inner),
        st.builds(operator.invert, inner),
        st.builds(lambda a: a.is_null(), inner),
        st.builds(lambda a, b: a.fill_null(b), inner, inner),
        st.builds(lambda a: a.is_in([1, 2]), st.sampled_from([col("i"), col("x")])),
        st.builds(lambda a: a.is_in(["a", "é"]), st.sampled_from([col("s")])),
        st.builds(lambda c, a, b: when(c).then(a).otherwise(b), inner, inner, inner),
    )


trees = st.recursive(leaves, _grown, max_leaves=8)
rows = st.lists(st.fixed_dictionaries(COLUMNS), min_size=1, max_size=6)


def _number(value: int | float, dtype: Dtype | None) -> int | float | None:
    if dtype is Dtype.INT:
        return value if value in INT64 else None
    return value if math.isfinite(value) else None


def _arithmetic(f: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def apply(dtype: Dtype | None, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return None
        return _number(f(float(a), float(b)) if dtype is Dtype.FLOAT else f(a, b), dtype)

    return apply


def _division(f: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def apply(dtype: Dtype | None, a: Any, b: Any) -> Any:
        if a is None or b is None or b == 0:
            return None
        return _number(f(float(a), float(b)) if dtype is Dtype.FLOAT else f(a, b), dtype)

    return apply


def _compare(f: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    def apply(dtype: Dtype | None, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return None
        if isinstance(a, float) or isinstance(b, float):
            a, b = float(a), float(b)
        return f(a, b)

    return apply


def _and(_: Any, a: Any, b: Any) -> Any:
    return False if a is False or b is False else None if None in (a, b) else True


def _or(_: Any, a: Any, b: Any) -> Any:
    return True if a is True or b is True else None if None in (a, b) else False


PYTHON: dict[str, Callable[..., Any]] = {
    "add": _arithmetic(operator.add),
    "sub": _arithmetic(operator.sub),
    "mul": _arithmetic(operator.mul),
    "div": _division(operator.truediv),
    "mod": _division(lambda a, b: a % b),
    "neg": lambda d, a: None if a is None else _number(-a, d),
    "eq": _compare(operator.eq),
    "ne": _compare(operator.ne),
    "lt": _compare(operator.lt),
    "le": _compare(operator.le),
    "gt": _compare(operator.gt),
    "ge": _compare(operator.ge),
    "and": _and,
    "or": _or,
    "not": lambda _, a: None if a is None else not a,
    "is_null": lambda _, a: a is None,
    "fill_null": lambda _, a, b: b if a is None else a,
    "case": lambda _, c, a, b: a if c is True else b,
}


def plain(expr: Expr, row: dict[str, Any]) -> Any:
    if expr.op == "col":
        return row[expr.value]
    if expr.op == "lit":
        return expr.value
    args = [plain(a, row) for a in expr.args]
    if expr.op == "is_in":
        return None if args[0] is None else args[0] in expr.value
    dtype = infer(expr, lambda _, name: DTYPES[name])
    value = PYTHON[expr.op](dtype, *args)
    return float(value) if dtype is Dtype.FLOAT and value is not None else value


def columns_of(table: list[dict[str, Any]], pool: StringPool) -> dict[tuple[str, str], Column]:
    leaves: dict[tuple[str, str], Column] = {}
    for name, dtype in DTYPES.items():
        cells = [row[name] for row in table]
        stored = [0 if c is None else pool.code(c) if dtype is Dtype.STRING else c for c in cells]
        valid = np.array([c is not None for c in cells])
        leaves["col", name] = Column(np.array(stored, NUMPY_DTYPES[dtype]), valid, dtype)
    return leaves


def test_every_type_rule_has_a_kernel() -> None:
    assert set(TYPE_RULES) == set(KERNELS) == set(PYTHON)


@settings(max_examples=800, deadline=None)
@given(expr=trees, table=rows)
def test_an_expression_means_what_python_says(expr: Expr, table: list[dict[str, Any]]) -> None:
    try:
        dtype = infer(expr, lambda _, name: DTYPES[name])
    except TypeFault:
        return
    pool = StringPool()
    with np.errstate(all="ignore"):
        column = evaluate(np, expr, columns_of(table, pool), len(table), pool)
    for i, row in enumerate(table):
        expected = plain(expr, row)
        if not column.valid[i]:
            assert expected is None, f"{expr}"
            continue
        got: Any = column.values[i].item()
        if dtype is Dtype.STRING:
            got = pool.texts(np.array([got]))[0]
        assert expected == got, f"{expr} of {row}"


@settings(max_examples=200, deadline=None)
@given(expr=trees)
def test_an_expression_survives_its_data_form(expr: Expr) -> None:
    assert to_data(expr) == to_data(from_data(to_data(expr)))
