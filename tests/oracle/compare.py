"""When two values are the same, operation by operation.

- `count min max first last last_n`, and sums of integers: the same type and the same bits.
- Floating results of `sum mean var std`, and of `derived` features: within 1e-9 of the expected value, relative to it,
  however small it is. There is no absolute floor, with one exception: where the expected value is exactly zero, the
  answer may differ from it by at most 1e-9 × `magnitude` (see `meaning.magnitude`), and without a magnitude not at all.
- `approx_distinct`: within `relative` of the exact number; what an estimate may miss is the caller's to say.

A null equals only a null. NaN and the infinities equal nothing.
"""

import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from tests.oracle.meaning import OracleFeature, Value

RELATIVE = 1e-9
TOLERANT = frozenset({"sum", "mean", "var", "std", "derived", "approx_distinct"})


def assert_same(
    expected: Value, got: Any, op: str, *, magnitude: float = 0.0, relative: float = RELATIVE, label: str = ""
) -> None:
    """AssertionError when `got` is not what `op` allows for `expected`. NumPy and Arrow scalars count as plain ones."""
    got = plain(got)
    same = is_close(expected, got, magnitude, relative) if is_tolerant(op, expected) else is_identical(expected, got)
    assert same, f"{label or op}: expected {expected!r}, got {got!r}"


def assert_values(
    features: Iterable[OracleFeature],
    expected: Mapping[str, Value],
    got: Mapping[str, Any],
    *,
    magnitudes: Mapping[str, float] | None = None,
    label: str = "",
) -> None:
    """`assert_same` for every feature, by name; both sides must name the same ones."""
    assert set(expected) == set(got), f"{label}: expected {sorted(expected)}, got {sorted(got)}"
    for feature in features:
        size = (magnitudes or {}).get(feature.name, 0.0)
        where = f"{label} {feature.name} ({feature.op})".strip()
        assert_same(expected[feature.name], got[feature.name], feature.op, magnitude=size, label=where)


def is_tolerant(op: str, expected: Value) -> bool:
    return op == "approx_distinct" or (op in TOLERANT and isinstance(expected, float))


def is_close(expected: Any, got: Any, magnitude: float, relative: float) -> bool:
    if type(got) is not type(expected) or not math.isfinite(got):
        return False
    scale = magnitude if expected == 0 else abs(expected)
    return bool(abs(got - expected) <= relative * scale)


def is_identical(expected: Any, got: Any) -> bool:
    if type(expected) is not type(got):
        return False
    if isinstance(expected, list):
        return len(expected) == len(got) and all(map(is_identical, expected, got))
    if isinstance(expected, float):
        return math.isfinite(got) and struct.pack("<d", expected) == struct.pack("<d", got)
    return bool(expected == got)


def plain(value: Any) -> Any:
    """NumPy scalars and arrays, Arrow scalars, tuples and their like → plain Python values, lists for sequences."""
    for method in ("as_py", "tolist"):
        if hasattr(value, method):
            value = getattr(value, method)()
            break
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
