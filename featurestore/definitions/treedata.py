"""Expressions as plain JSON data and back, for definitions that are stored and sent: nothing is executed."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from typing import Any

from featurestore.definitions.expressions import MAX_DEPTH, TYPE_RULES, Expr, RequestField
from featurestore.types import PYTHON_DTYPES

PYTHON_TYPES = {dtype.value: kind for kind, dtype in PYTHON_DTYPES.items()}
"""A type's name in data → the type as authors write it."""


def to_data(expr: Expr) -> list[Any]:
    """JSON form: `[op, constant, operands…]`. Members of `is_in` are sorted, since their order means nothing."""
    write = _WRITTEN.get(expr.op)
    return [expr.op, write(expr.value) if write else expr.value, *(to_data(a) for a in expr.args)]


def _read_field(value: list[Any]) -> RequestField:
    name, kind, default = value
    return RequestField(name, PYTHON_TYPES[kind], default)


def _is_field(name: Any, kind: Any, default: Any) -> bool:
    known = isinstance(kind, str) and kind in PYTHON_TYPES
    return known and isinstance(name, str) and isinstance(default, _SCALARS)


_WRITTEN: dict[str, Callable[[Any], Any]] = {
    "is_in": lambda values: sorted(values, key=json.dumps),
    "request": lambda field: [field.name, field.dtype.value, field.default],
}
_READ: dict[str, Callable[[Any], Any]] = {"is_in": tuple, "request": _read_field}
"""Constants whose form in data is another than the one in the tree."""

_ARITY = {"col": 0, "feature": 0, "request": 0, "lit": 0, "is_in": 1, "neg": 1, "not": 1, "is_null": 1, "case": 3}
_OPERATIONS = {*TYPE_RULES, "col", "feature", "request", "lit", "is_in"}
_SCALARS = (bool, int, float, str, type(None))
_CONSTANTS: dict[str, Callable[[Any], bool]] = {
    "col": lambda value: isinstance(value, str),
    "feature": lambda value: isinstance(value, str),
    "request": lambda value: isinstance(value, list) and len(value) == 3 and _is_field(*value),
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
    read = _READ.get(op)
    return Expr(op, tuple(from_data(a, depth + 1) for a in args), read(value) if read else value)


def canonical(expr: Expr) -> Expr:
    """One tree for all spellings of the same: what stored state is laid out by must not depend on the spelling."""
    return from_data(to_data(expr))
