"""Expressions over event columns and features: a small tree, never code.

One node class; what an operation means lives in tables keyed by its name: types here (`TYPE_RULES`), evaluation in
`featurestore.engine.evaluate`.
"""

from __future__ import annotations

import json
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
    """A node: operation, operands, and the constant of leaves (`col`, `feature`, `lit`) and of `is_in`."""

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
    """Another feature of the same view."""
    return Expr("feature", (), name)


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
        "lit": lambda: repr(expr.value),
        "neg": lambda: f"-{args[0]}",
        "not": lambda: f"~{args[0]}",
        "is_null": lambda: f"{args[0]}.is_null()",
        "fill_null": lambda: f"{args[0]}.fill_null({args[1]})",
        "is_in": lambda: f"{args[0]}.is_in({_listed(expr.value)!r})",
        "case": lambda: f"when({args[0]}).then({args[1]}).otherwise({args[2]})",
    }
    return forms[expr.op]()


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
    operands = [infer(a, leaf) for a in expr.args]
    try:
        if expr.op == "is_in":
            return _membership(operands[0], expr.value)
        return TYPE_RULES[expr.op](*operands)
    except TypeFault as fault:
        raise TypeFault(f"{render(expr)} {fault}") from None


def to_data(expr: Expr) -> list[Any]:
    """JSON form: `[op, constant, operands…]`. Members of `is_in` are sorted, since their order means nothing."""
    value = sorted(expr.value, key=json.dumps) if expr.op == "is_in" else expr.value
    return [expr.op, value, *(to_data(a) for a in expr.args)]


_ARITY = {"col": 0, "feature": 0, "lit": 0, "is_in": 1, "neg": 1, "not": 1, "is_null": 1, "case": 3}
_OPERATIONS = {*TYPE_RULES, "col", "feature", "lit", "is_in"}
_SCALARS = (bool, int, float, str, type(None))
_CONSTANTS: dict[str, Callable[[Any], bool]] = {
    "col": lambda value: isinstance(value, str),
    "feature": lambda value: isinstance(value, str),
    "lit": lambda value: isinstance(value, _SCALARS),
    "is_in": lambda value: isinstance(value, list) and all(isinstance(v, _SCALARS) for v in value),
}
"""Which constant each operation carries; all others carry null."""


def from_data(data: Any, depth: int = 1) -> Expr:
    """Reads what `to_data` wrote. Raises ValueError on anything else; nothing is executed."""
    if depth > MAX_DEPTH:
        raise ValueError(f"an expression is nested deeper than {MAX_DEPTH}")
    if not isinstance(data, list) or len(data) < 2 or not isinstance(data[0], str) or data[0] not in _OPERATIONS:
        raise ValueError(f"{reprlib.repr(data)} is no expression")
    op, value, *args = data
    if len(args) != _ARITY.get(op, 2):
        raise ValueError(f"{op} has {len(args)} operands")
    if not _CONSTANTS.get(op, lambda v: v is None)(value):
        raise ValueError(f"{op} has the constant {reprlib.repr(value)}")
    return Expr(op, tuple(from_data(a, depth + 1) for a in args), tuple(value) if op == "is_in" else value)


def canonical(expr: Expr) -> Expr:
    """One tree for all spellings of the same: what stored state is laid out by must not depend on the spelling."""
    return from_data(to_data(expr))


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
