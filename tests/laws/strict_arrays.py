"""A stand-in for CuPy on a machine without a GPU: NumPy behind a wall.

A `DeviceArray` refuses what a device array refuses: becoming a host array by itself, mixing with one, being indexed
by one. The module object offers only functions that CuPy has with the same meaning, so a kernel that passes here
keeps off NumPy-only ground.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

FUNCTIONS = (
    "abs", "arange", "argsort", "ceil", "concatenate", "cumsum", "empty", "exp2", "floor", "floor_divide", "full",
    "isfinite", "lexsort", "log", "log2", "max", "maximum", "min", "minimum", "nonzero", "ones", "remainder",
    "searchsorted", "sqrt", "stack", "sum", "take_along_axis", "where", "zeros", "zeros_like",
)  # fmt: skip
DTYPES = ("bool_", "float64", "int64", "uint8", "uint64")


class DeviceArray:
    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    def get(self) -> np.ndarray:
        return self._host

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("a device array does not become a host array by itself; use to_host")

    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def dtype(self) -> Any:
        return self._host.dtype

    def __getitem__(self, index: Any) -> DeviceArray:
        return DeviceArray(np.asarray(self._host[_index(index)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[_index(index)] = _inside(value)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __getattr__(self, name: str) -> Any:
        if name not in ("any", "astype", "copy", "reshape", "view"):
            raise AttributeError(f"DeviceArray has no {name}")
        method = getattr(self._host, name)
        return lambda *args: DeviceArray(np.asarray(method(*args)))


def _inside(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("host and device arrays do not mix")
    return value.get() if isinstance(value, DeviceArray) else value


def _index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_index(i) for i in index)
    return _inside(index)


def _operator(function: Callable[..., Any], *, swap: bool = False) -> Callable[..., DeviceArray]:
    def apply(self: DeviceArray, *other: Any) -> DeviceArray:
        operands = [self.get(), *map(_inside, other)]
        return DeviceArray(np.asarray(function(*(operands[::-1] if swap else operands))))

    return apply


_OPERATORS = ("add", "sub", "mul", "truediv", "and", "or", "xor", "lshift", "rshift", "mod")
for _name in _OPERATORS:
    _function = getattr(operator, _name + "_" if _name in ("and", "or") else _name)
    setattr(DeviceArray, f"__{_name}__", _operator(_function))
    setattr(DeviceArray, f"__r{_name}__", _operator(_function, swap=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "invert"):
    setattr(DeviceArray, f"__{_name}__", _operator(getattr(operator, _name)))


class StrictModule:
    """What kernels take as `xp`."""

    def asarray(self, value: Any) -> DeviceArray:
        return value if isinstance(value, DeviceArray) else DeviceArray(np.array(value))

    def __getattr__(self, name: str) -> Any:
        if name in DTYPES:
            return getattr(np, name)
        if name not in FUNCTIONS:
            raise AttributeError(f"{name} is not among the functions that NumPy and CuPy share here")
        function = getattr(np, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*map(_deep, args), **kwargs)
            if isinstance(result, tuple):
                return tuple(DeviceArray(r) for r in result)
            return DeviceArray(np.asarray(result))

        return call


def _deep(value: Any) -> Any:
    return [_inside(v) for v in value] if isinstance(value, list) else _inside(value)


strict = StrictModule()
