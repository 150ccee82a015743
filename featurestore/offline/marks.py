"""Marks: up to which offset of each partition a table holds everything. What makes a repeated append a no-op."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.offline.files import OFFSET, PARTITION


def app_id(stream: str, partition: int) -> str:
    """Under which name a partition's last offset is recorded in a table; `Lake.append` reads the partition back."""
    return f"{stream}/{partition}"


def check_rows(batch: pa.Table, marks: Mapping[str, int]) -> None:
    """Every row must be covered by a mark, or the next append would write it again."""
    missing = [name for name in (PARTITION, OFFSET) if name not in batch.column_names]
    if missing:
        raise UsageError(f"rows for the lake lack the column {missing[0]}", field=missing[0])
    limits = _by_partition(marks)
    partitions, offsets = _positions(batch)
    outside = np.flatnonzero(offsets > _per_row(limits, partitions))
    if outside.size:
        row = int(outside[0])
        where = f"partition {partitions[row]}, offset {offsets[row]}"
        raise UsageError(f"row {row} ({where}) is beyond the marks it comes with: {limits}", field="marks")


def rows_beyond(batch: pa.Table, recorded: Mapping[str, int]) -> pa.Table:
    """The rows whose offset is above the recorded one of their partition, by app id."""
    partitions, offsets = _positions(batch)
    fresh = offsets > _per_row(_by_partition(recorded), partitions)
    return batch if fresh.all() else batch.filter(pa.array(fresh))


def _positions(batch: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return batch[PARTITION].to_numpy().astype(np.int64), batch[OFFSET].to_numpy().astype(np.int64)


def _by_partition(marks: Mapping[str, int]) -> dict[int, int]:
    return {int(app.rpartition("/")[2]): mark for app, mark in marks.items()}


def _per_row(marks: Mapping[int, int], partitions: np.ndarray) -> np.ndarray:
    """The mark of each row's partition, -1 where it has none."""
    known = np.array(sorted(marks), np.int64)
    values = np.array([marks[p] for p in known.tolist()], np.int64)
    if not known.size:
        return np.full(partitions.size, -1, np.int64)
    at = np.minimum(np.searchsorted(known, partitions), known.size - 1)
    return np.where(known[at] == partitions, values[at], -1)
