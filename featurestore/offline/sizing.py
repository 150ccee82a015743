"""Into how many buckets an export is divided so that it stays within its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featurestore.errors import UsageError
from featurestore.offline.lots import Lot

DEFAULT_MEMORY = 2 << 30
LEAST_MEMORY = 512 << 20

PROCESS_BYTES = 220 << 20
"""Of a process that has done nothing yet, with the parts of the lake and the engine that it needs."""
WHOLE_EVENTS = 200_000
"""Events up to which it is not worth the while to divide what is done in one process."""
PARTS = 16
"""Into which it is divided otherwise, for threads, and whatever the machine: the last digit of a sum must not depend on
that."""
MAX_BUCKETS = 1024


@dataclass(frozen=True, slots=True)
class Size:
    buckets: int
    processes: int


def size_of(
    lots: Sequence[Lot], events: Mapping[str, int], spine_rows: int, spine_bytes: int, *, memory: int, processes: int,
    as_served: bool, output_bytes: int,
) -> Size:  # fmt: skip
    """`events` by source. One bucket, in this process, where all fits into `memory` bytes; else as many as keep
    `processes` of them and this one within that. UsageError where the spine alone does not fit."""
    if memory < LEAST_MEMORY:
        least = f"{LEAST_MEMORY >> 20} MiB"
        raise UsageError(f"an export cannot do with {memory >> 20} MiB of memory", hint=f"{least} is the least it can",
                         field="memory")  # fmt: skip
    free = memory - PROCESS_BYTES - 2 * spine_bytes
    if free < output_bytes:
        raise UsageError(
            f"a spine of {spine_bytes >> 20} MiB does not fit into {memory >> 20} MiB beside its features",
            hint="give more --memory, or export the spine in parts", field="memory",
        )  # fmt: skip
    needs = [events[lot.source.name] * lot.event_bytes(as_served) + spine_rows * lot.row_bytes() for lot in lots]
    # Of all events what is kept, and of the parts that are evaluated at a time what that takes.
    at_once = min(processes, PARTS)
    peak = max((events[lot.source.name] * lot.held_bytes(as_served) + need * at_once // PARTS
                for lot, need in zip(lots, needs, strict=True)), default=0)  # fmt: skip
    if spine_rows * sum(lot.answer_bytes() for lot in lots) + max(peak, output_bytes) <= free:
        return Size(1, 1)
    processes = max(1, min(processes, free // (2 * PROCESS_BYTES)))
    each = free - output_bytes if processes == 1 else free // processes - PROCESS_BYTES
    buckets = max(-(-need // max(each, 1 << 20)) for need in needs)
    return Size(min(MAX_BUCKETS, max(buckets, 2 * processes)), processes)
