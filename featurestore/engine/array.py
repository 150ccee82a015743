"""The array seam: NumPy, or CuPy where there is a GPU. The only module that imports cupy.

Kernels take the array module as `xp` and use only functions that NumPy and CuPy share; they never mix host and device
arrays and never rely on atomics, so a result does not depend on scheduling.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from featurestore.errors import ConfigError

Array = Any
"""An array of the backend in use: `numpy.ndarray` or `cupy.ndarray`."""


def select(compute: str) -> tuple[Any, str]:
    """`auto`, `cpu` or `gpu` → (array module, one line saying what was chosen and why).

    Raises ConfigError for `gpu` where CuPy or a device is missing.
    """
    if compute == "cpu":
        return np, "computing on the CPU, as FS_COMPUTE=cpu asks"
    try:
        cupy = importlib.import_module("cupy")
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    except Exception as problem:  # CuPy raises many types for a missing driver, device or library
        reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
        if compute == "gpu":
            raise ConfigError(
                f"FS_COMPUTE=gpu, but no GPU can be used ({reason})",
                field="FS_COMPUTE",
                hint="install featurestore[gpu] and a CUDA driver, or set FS_COMPUTE=auto",
            ) from problem
        return np, f"computing on the CPU: no GPU can be used ({reason})"
    return cupy, f"computing on the GPU {name}"


def to_host(array: Array) -> np.ndarray:
    """The array in host memory; free where it is there already."""
    return array if isinstance(array, np.ndarray) else array.get()


def every(flags: np.ndarray) -> bool:
    """As `flags.all()`, in a tenth of its time where they are few, as in most lookups."""
    return b"\x00" not in flags.tobytes()


def some(flags: np.ndarray) -> bool:
    """As `flags.any()`, likewise."""
    return b"\x01" in flags.tobytes()


def ragged(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows of these lengths laid end to end: the row of each item, and the item's place in its row (host)."""
    total = int(lengths.sum())
    row = np.repeat(np.arange(lengths.size), lengths)
    return row, np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
