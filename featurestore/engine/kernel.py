"""`walk`, and what it calls of `exact`, compiled by Numba. The only module that imports it.

A process that wants it compiles it when it starts, which takes some seconds. Nothing is kept on disk: what Numba would
keep there is code, and reading it means unpickling it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any

from featurestore.engine import exact, walk
from featurestore.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Kernel:
    """`walk.check` and `walk.fold`, compiled or as they stand."""

    check: Callable[..., bool]
    fold: Callable[..., None]


PLAIN = Kernel(walk.check, walk.fold)
"""Not compiled: right, and slow."""


@lru_cache(maxsize=1)
def compiled() -> Kernel:
    """Compiles once in a process. Raises ConfigError where Numba is missing, or fits neither NumPy nor the machine."""
    try:
        return _compile(importlib.import_module("numba"))
    except Exception as problem:  # Numba raises many types
        reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
        raise ConfigError(
            f"FS_LOOKUP_KERNEL=numba, but Numba cannot be used ({reason})",
            field="FS_LOOKUP_KERNEL",
            hint="pip install 'featurestore[fast]', or leave FS_LOOKUP_KERNEL at numpy",
        ) from problem


def select(name: str) -> Kernel | None:
    """The kernel for a value of FS_LOOKUP_KERNEL; None where NumPy does without. Raises ConfigError."""
    return compiled() if name == "numba" else None


def _compile(numba: Any) -> Kernel:
    built: dict[str, Any] = {**vars(exact), **vars(walk)}
    source = {name: each for name, each in built.items() if isinstance(each, FunctionType)}
    for name, each in source.items():
        # Each sees the others compiled; the module itself stays as it is. Calls with arrays cost more than what the
        # small ones do, unless they are put where they are called.
        inline = "always" if name.startswith("_") else "never"
        built[name] = numba.njit(FunctionType(each.__code__, built, name, each.__defaults__), inline=inline)
    array, whole = numba.types.Array, numba.types.int64
    words, table, forms = whole[::1], whole[:, ::1], whole[:, :, ::1]
    stored, halves = (array(kind, 1, "C", readonly=True) for kind in (whole, numba.types.float32))
    several = numba.types.Tuple
    found = several((table, table, table, table, table))
    built["check"].compile((stored, words, several((words, table, forms)), found))
    built["fold"].compile(
        (several((stored, halves, table, table, table, table)), words, several((table, table, table)), table)
    )
    for name in ("check", "fold"):
        built[name].disable_compile()  # arrays of other types are a mistake, and not worth seconds in a lookup
    return Kernel(built["check"], built["fold"])
