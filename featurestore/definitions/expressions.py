"""Expressions over event columns, features and fields of a request: a small tree, never code.

One node class; what an operation means lives in tables keyed by its name: types here (`TYPE_RULES`), evaluation in
`featurestore.engine.evaluate`, JSON data in `featurestore.definitions.treedata`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from featurestore.types import PYTHON_DTYPES, Dtype

Scalar: TypeAlias = bool | int | float | str | None
Operand: TypeAlias = "Expr | Scalar"

MAX_DEPTH = 64
"""Deeper trees are refused, so that neither a definition nor hostile data can exhaust the stack."""
MAX_NODES = 2_000
"""Larger trees are refused. A tree may share branches, as `x + x` does, so depth alone does not bound its size."""

_INT64 = range(-(2**63), 2**63)


class TypeFault(Exception):
    """An expression does not type-check; the message says what was found."""


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    """A node: operation, operands, and the constant of leaves (`col`, `feature`, `request`, `lit`) and of `is_in`."""

    op: str
    args: tuple[Expr, ...] = ()
    value: Any = None

    def __add__(self, other: Operand) -> Expr:
        return _binary("add", self, other)

    def __radd__(self, other: Operand) -> Expr:
        return _binary("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return _binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return _binary("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return _binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return _binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return _binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return _binary("div", other, self)

    def __mod__(self, other: Operand) -> Expr:
        return _binary("mod", self, other)

    def __rmod__(self, other: Operand) -> Expr:
        return _binary("mod", other, self)

    def __neg__(self) -> Expr:
        return Expr("neg", (self,))

    def __eq__(self, other: Operand) -> Expr:  # type: ignore[override]
        return _binary("eq", self, other)

    def __ne__(self, other: Operand) -> Expr:  # type: ignore[override]
        return _binary("ne", self, other)

    def __lt__(self, other: Operand) -> Expr:
        return _binary("lt", self, other)

    def __le__(self, other: Operand) -> Expr:
        return _binary("le", self, other)

    def __gt__(self, other: Operand) -> Expr:
        return _binary("gt", self, other)

    def __ge__(self, other: Operand) -> Expr:
        return _binary("ge", self, other)

    def __and__(self, other: Operand) -> Expr:
        return _binary("and", self, other)

    def __rand__(self, other: Operand) -> Expr:
        return _binary("and", other, self)

    def __or__(self, other: Operand) -> Expr:
        return _binary("or", self, other)

    def __ror__(self, other: Operand) -> Expr:
        return _binary("or", other, self)

    def __invert__(self) -> Expr:
        return Expr("not", (self,))

    def __bool__(self) -> bool:
        raise TypeError("an expression has no truth value; combine conditions with & | ~ in place of and, or, not")

    __hash__ = object.__hash__

    def is_null(self) -> Expr:
        return Expr("is_null", (self,))

    def fill_null(self, value: Operand) -> Expr:
        return _binary("fill_null", self, value)

    def is_in(self, values: Iterable[Scalar]) -> Expr:
        # A string would silently become its letters; it is kept whole for the check to refuse.
        return Expr("is_in", (self,), values if isinstance(values, str) else tuple(values))

    def __repr__(self) -> str:
        return render(self)


def col(name: str) -> Expr:
    """A column of the event."""
    return Expr("col", (), name)


def feature(name: str) -> Expr:
    """Another feature: in a view by its name; in a service as `view.feature`, or one of the service's by its name."""
    return Expr("feature", (), name)


@dataclass(frozen=True, slots=True)
class RequestField:
    """A typed value that comes with a request: from the caller of a lookup, or from a column of a spine."""

    name: str
    kind: Any
    """`str`, `int`, `float` or `bool`, as its author wrote it."""
    default: Scalar = None
    """Stands where the field is absent or null; without one it has to be there."""

    @property
    def dtype(self) -> Dtype:
        return PYTHON_DTYPES[self.kind]


def request(name: str, kind: type, *, default: Scalar = None) -> Expr:
    """A field of the request, of type `str`, `int`, `float` or `bool`, for the `features` of a `FeatureService`."""
    return Expr("request", (), RequestField(name, kind, default))


def lit(value: Scalar) -> Expr:
    return Expr("lit", (), value)


def _expr(value: Operand) -> Expr:
    return value if isinstance(value, Expr) else lit(value)


def _binary(op: str, left: Operand, right: Operand) -> Expr:
    return Expr(op, (_expr(left), _expr(right)))


@dataclass(frozen=True, slots=True)
class When:
    """`when(c)` awaiting its `.then(a)`."""

    condition: Expr
    earlier: tuple[tuple[Expr, Expr], ...] = ()

    def then(self, value: Operand) -> Then:
        return Then((*self.earlier, (self.condition, _expr(value))))


@dataclass(frozen=True, slots=True)
class Then:
    """`when(c).then(a)` awaiting `.otherwise(b)`, or another `.when(d)`."""

    cases: tuple[tuple[Expr, Expr], ...]

    def when(self, condition: Operand) -> When:
        return When(_expr(condition), self.cases)

    def otherwise(self, value: Operand) -> Expr:
        result = _expr(value)
        for condition, outcome in reversed(self.cases):
            result = Expr("case", (condition, outcome, result))
        return result


def when(condition: Operand) -> When:
    """`when(c).then(a).otherwise(b)`; a null condition counts as false."""
    return When(_expr(condition))


def walk(expr: Expr) -> Iterator[Expr]:
    """Every node, parents first."""
    pending = [expr]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(reversed(node.args))


def names(expr: Expr, op: str) -> tuple[str, ...]:
    """Names that leaves of kind `op` (`col` or `feature`) refer to, in order, once each."""
    return tuple(dict.fromkeys(node.value for node in walk(expr) if node.op == op))


_SYMBOLS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
    "gt": ">", "ge": ">=", "and": "&", "or": "|",
}  # fmt: skip


def _listed(values: Any) -> Any:
    return list(values) if isinstance(values, tuple) else values


def render(expr: Expr) -> str:
    """The expression as its author would write it."""
    args = [render(a) for a in expr.args]
    if expr.op in _SYMBOLS:
        return f"({args[0]} {_SYMBOLS[expr.op]} {args[1]})"
    forms: dict[str, Callable[[], str]] = {
        "col": lambda: f"col({expr.value!r})",
        "feature": lambda: f"feature({expr.value!r})",
        "request": lambda: _render_field(expr.value),
        "lit": lambda: repr(expr.value),
        "neg": lambda: f"-{args[0]}",
        "not": lambda: f"~{args[0]}",
        "is_null": lambda: f"{args[0]}.is_null()",
        "fill_null": lambda: f"{args[0]}.fill_null({args[1]})",
        "is_in": lambda: f"{args[0]}.is_in({_listed(expr.value)!r})",
        "case": lambda: f"when({args[0]}).then({args[1]}).otherwise({args[2]})",
    }
    return forms[expr.op]()


def _render_field(field: RequestField) -> str:
    default = "" if field.default is None else f", default={field.default!r}"
    return f"request({field.name!r}, {getattr(field.kind, '__name__', field.kind)}{default})"


Known: TypeAlias = Dtype | None
"""A dtype, or None for the literal null, which fits any."""


def unify(left: Known, right: Known) -> Known:
    """The dtype that holds both. Raises TypeFault where there is none."""
    if left is None or right is None:
        return left or right
    if left == right:
        return left
    if left.is_number and right.is_number:
        return Dtype.FLOAT
    raise TypeFault(f"mixes {left} and {right}")


def _arithmetic(left: Known, right: Known) -> Known:
    for side in (left, right):
        if side is not None and not side.is_number:
            raise TypeFault(f"does arithmetic on {side}, which needs int or float")
    return unify(left, right)


def _quotient(left: Known, right: Known) -> Known:
    _arithmetic(left, right)
    return Dtype.FLOAT


def _negated(operand: Known) -> Known:
    return _arithmetic(operand, operand)


def _equality(left: Known, right: Known) -> Known:
    _not_null(left, right)
    unify(left, right)
    return Dtype.BOOL


def _not_null(*sides: Known) -> None:
    if None in sides:
        raise TypeFault("compares with None, which is null and so never true; use .is_null()")


def _ordering(left: Known, right: Known) -> Known:
    _not_null(left, right)
    if unify(left, right) in (Dtype.STRING, Dtype.BOOL):
        raise TypeFault(f"orders {left or right} values; only numbers and timestamps have an order, use == or is_in")
    return Dtype.BOOL


def _logical(*sides: Known) -> Known:
    for side in sides:
        if side not in (Dtype.BOOL, None):
            raise TypeFault(f"uses {side} as a condition; compare it first, as col('x') > 0")
    return Dtype.BOOL


def _case(condition: Known, then: Known, otherwise: Known) -> Known:
    _logical(condition)
    return unify(then, otherwise)


TYPE_RULES: dict[str, Callable[..., Known]] = {
    "add": _arithmetic, "sub": _arithmetic, "mul": _arithmetic, "mod": _arithmetic, "div": _quotient, "neg": _negated,
    "eq": _equality, "ne": _equality, "lt": _ordering, "le": _ordering, "gt": _ordering, "ge": _ordering,
    "and": _logical, "or": _logical, "not": _logical, "is_null": lambda _: Dtype.BOOL, "fill_null": unify,
    "case": _case,
}  # fmt: skip
"""Result dtype of each operation from those of its operands; raises TypeFault."""


def literal_dtype(value: Any) -> Known:
    """Raises TypeFault for a constant that no column could hold."""
    if value is None:
        return None
    dtype = PYTHON_DTYPES.get(type(value))
    if dtype is None:
        raise TypeFault(f"the constant {reprlib.repr(value)} is no bool, int, float, str or None")
    if dtype is Dtype.INT and value not in _INT64:
        raise TypeFault(f"the constant {reprlib.repr(value)} is no int64")
    if dtype is Dtype.FLOAT and not abs(value) < float("inf"):
        raise TypeFault(f"the constant {value!r} is not finite")
    if dtype is Dtype.STRING and any("\ud800" <= c <= "\udfff" for c in value):
        raise TypeFault(f"the constant {reprlib.repr(value)} is no Unicode text")
    return dtype


def _membership(operand: Known, values: Any) -> Known:
    if not isinstance(values, tuple):
        raise TypeFault(f"lists {reprlib.repr(values)}; is_in takes a list of constants")
    for value in values:
        if value is None:
            raise TypeFault("lists None, which no value equals; use .is_null()")
        unify(operand, literal_dtype(value))
    return Dtype.BOOL


def infer(expr: Expr, leaf: Callable[[str, str], Dtype]) -> Known:
    """Dtype of an expression within the size limits. `leaf(op, name)` types `col` and `feature` leaves.

    Raises TypeFault that shows the innermost expression at fault, and whatever `leaf` raises.
    """
    if expr.op == "lit":
        return literal_dtype(expr.value)
    if expr.op in ("col", "feature"):
        return leaf(expr.op, expr.value)
    if expr.op == "request":
        dtype: Dtype = expr.value.dtype
        return dtype
    operands = [infer(a, leaf) for a in expr.args]
    try:
        if expr.op == "is_in":
            return _membership(operands[0], expr.value)
        return TYPE_RULES[expr.op](*operands)
    except TypeFault as fault:
        raise TypeFault(f"{render(expr)} {fault}") from None


def oversize(expr: Expr) -> str:
    """What makes the tree too large, as `has more than 2000 parts`, or an empty text."""
    nodes, pending = 0, [(expr, 1)]
    while pending:
        node, level = pending.pop()
        nodes += 1 + (len(node.value) if isinstance(node.value, tuple) else 0)
        if level > MAX_DEPTH:
            return f"is nested deeper than {MAX_DEPTH}"
        if nodes > MAX_NODES:
            return f"has more than {MAX_NODES} parts"
        pending.extend((a, level + 1) for a in node.args)
    return ""
