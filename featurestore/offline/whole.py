"""An export in one piece: events of a lot in memory, divided between threads, since NumPy and Arrow let others run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from featurestore.offline.lots import Job, Lot, Reading, by_bucket, evaluate, events_schema


def events_by_bucket(reading: Reading, paths: Sequence[str], threads: int) -> list[pa.Table]:
    """The events of these files, as `Reading.batches` has them, of each of the job's buckets."""
    nothing = events_schema(reading.job, reading.lot).empty_table()
    found: list[list[pa.Table]] = [[nothing] for _ in range(reading.job.buckets)]
    waiting: deque[Future[list[pa.Table]]] = deque()

    def take(left: int) -> None:
        while len(waiting) > left:
            for bucket, part in zip(found, waiting.popleft().result(), strict=True):
                bucket.append(part)

    with ThreadPoolExecutor(threads) as pool:
        for events in reading.divided(paths):
            waiting.append(pool.submit(events))
            take(threads)
        take(0)
    return [pa.concat_tables(parts) for parts in found]


def answers_by_bucket(job: Job, lot: Lot, events: list[pa.Table], rows: pa.Table, threads: int) -> Iterator[pa.Table]:
    """The answers to `rows`, bucket by bucket. `events` is empty afterwards: what is done needs no memory."""
    asked = by_bucket(rows, job.buckets)
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(evaluate, job, lot, events.pop(0), some) for some in asked]
        while waiting:
            yield waiting.pop(0).result()
