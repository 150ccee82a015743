"""How much this process gets done, in time that it wanted the processor for: what a limit of concurrency follows from.

How long lookups take would mislead: they also wait for Redis, which more of them at a time do not make slower.
"""

from __future__ import annotations

import time
from pathlib import Path

SHARE_WANTED = 0.5
"""Of the time, at which the processor counts as what work waits for."""
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def wanted_seconds() -> float:
    """Seconds that this thread has run or, on Linux, has waited for a processor: for others, or for its quota."""
    try:
        ran, waited, _ = _SCHEDSTAT.read_bytes().split()
        return (int(ran) + int(waited)) / 1e9
    except (OSError, ValueError):
        return time.thread_time()


def limit_of(done: int, wanted: float, passed: float, within: float) -> float:
    """How much may be under way, for all of it to be done within so many seconds; infinite where the processor is idle.

    `done` was, while `passed` seconds went by, and the processor was wanted for `wanted` of them.
    """
    if wanted < SHARE_WANTED * passed:
        return float("inf")
    return done / wanted * within
