"""How a process that works in batches keeps its memory: blocks that one batch frees are there for the next.

Handed back to the kernel and fetched again page by page, they cost an eighth of a worker's processor time and a third
of a large lookup.
"""

from __future__ import annotations

import ctypes

import pyarrow as pa

# mallopt(3) of glibc, the only C library whose defaults give back that eagerly.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 512 << 20, _TOP_PAD: 16 << 20}


def keep_freed_memory() -> None:
    """Has the C library hold on to what is freed, and Arrow allocate from there: its own allocator gives back too.

    Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for setting, size in _SETTINGS.items():
        mallopt(setting, size)
    pa.set_memory_pool(pa.system_memory_pool())
