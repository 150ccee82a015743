"""`compact`: a table's small files merged into large ones, in time order, and what no version needs any more swept.

Rows, marks and versions stay what they are: readers see the same table before and after each step, and an export that
reads an older version finds its files until the retention is over. Writers are not in the way: they only add files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake.transaction import AddAction, RemoveAction

from featurestore.clock import Clock
from featurestore.engine.columns import LOADED
from featurestore.errors import Corrupt, Unavailable, UsageError
from featurestore.offline.files import EVENT_TIME, MONTH, OFFSET, PARTITION, READ
from featurestore.offline.lake import Lake, Snapshot

TARGET_ROWS = 1_000_000
"""Of a merged file."""
_ATTEMPTS = 50
"""Each fails only because another writer's commit succeeded."""
MIN_RETENTION_HOURS = 24
"""A load may be writing files for hours before they are part of the table."""

COMPACTIONS = "compactions"
"""The mark that each merge raises. Delta lets two transactions remove the same file, and refuses two with one mark: of
two processes that merge the same files, one does."""

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class Compacted:
    """What was done to one table."""

    table: str
    files_before: int = 0
    files_after: int = 0
    merged: int = 0
    """Files that were merged into others."""
    rows: int = 0
    """Of the files that were written."""
    swept: int = 0
    """Files that no version of the retention needs, and that are gone."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Files that become one or a few."""

    month: str | None
    paths: tuple[str, ...]
    rows: int


class Compactor:
    """Raises Unavailable("lake", …), and Corrupt where a file is not what was written: nothing is replaced then."""

    def __init__(self, lake: Lake, clock: Clock, tell: Tell, *, target_rows: int = TARGET_ROWS) -> None:
        self._lake, self._clock, self._tell = lake, clock, tell
        # Files of less than half of the target are merged, where there are others; twice the target is held in memory.
        self._target, self._small, self._at_once = target_rows, target_rows // 2, 2 * target_rows

    def run(self, table: str, *, retention_hours: int, dry: bool = False) -> Compacted:
        """Merges, then sweeps. `dry` only counts what would be merged and swept."""
        if retention_hours < MIN_RETENTION_HOURS:
            raise UsageError(
                f"a retention of {retention_hours} hours is too short",
                hint=f"at least {MIN_RETENTION_HOURS}: exports and loads that run may need what would be swept",
                field="retention_hours",
            )
        done = self.merge(table, dry=dry)
        done.swept = self._lake.sweep(table, retention_hours, dry=dry)
        return done

    def merge(self, table: str, *, dry: bool = False) -> Compacted:
        """Until nothing is left to merge, or others merge the rest."""
        done, passed = Compacted(table), set[tuple[str, ...]]()
        while True:
            snapshot = self._lake.snapshot(table)
            if snapshot is None:
                return done
            done.files_before = done.files_before or snapshot.files.num_rows
            done.files_after = snapshot.files.num_rows
            batches = [batch for batch in self._batches(snapshot) if batch.paths not in passed]
            if dry:
                done.merged, done.rows = sum(len(b.paths) for b in batches), sum(b.rows for b in batches)
            if dry or not batches:
                return done
            for batch in batches:
                passed.add(batch.paths)
                self._tell({"table": table, "merging": len(batch.paths), "rows": batch.rows})
                if self._merge(table, snapshot, batch):
                    done.merged += len(batch.paths)
                    done.rows += batch.rows

    def _batches(self, snapshot: Snapshot) -> Iterator[_Batch]:
        """Files of one month and kind, those of neighbouring times together."""
        names = snapshot.files.column_names
        # The record of visible times has no event time: it is kept in the order of the log.
        first = next((name for name in ("min.event_time", f"min.{OFFSET}") if name in names), None)
        if first is None or OFFSET not in snapshot.schema.names:
            return
        rows = snapshot.files.select([n for n in names if n in _READ]).to_pylist()
        small = [file for file in rows if (file["num_records"] or 0) < self._small]
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        columns = self._columns(snapshot, [file["path"] for file in small])
        for file in small:
            # A file that lacks a column stands for the contract's default: beside others it would stand for null.
            kind = (file.get("max._partition") == LOADED, columns[file["path"]])
            groups.setdefault((file.get(f"partition.{MONTH}"), *kind), []).append(file)
        for (month, *_), files in groups.items():
            files.sort(key=lambda file: (file[first], file["path"]))
            for some in _packed(files, self._at_once):
                if len(some) > 1:
                    yield _Batch(month, tuple(f["path"] for f in some), sum(f["num_records"] for f in some))

    def _columns(self, snapshot: Snapshot, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        with _sound(self._lake):
            for fragments in snapshot.place.fragments(paths):
                for fragment in fragments:
                    found[paths[len(found)]] = tuple(fragment.physical_schema.names)
        return found

    def _merge(self, table: str, snapshot: Snapshot, batch: _Batch) -> bool:
        """False where another process changed these files first."""
        mark = self._lake.recorded(table, [COMPACTIONS])
        actions = self._written(table, snapshot, batch)
        gone = [
            RemoveAction(
                path,
                data_change=False,
                deletion_timestamp=self._clock.now() // 1000,
                partition_values={} if batch.month is None else {MONTH: batch.month},
            )
            for path in batch.paths
        ]
        for _ in range(_ATTEMPTS):
            current = self._lake.snapshot(table)
            there = set(current.files["path"].to_pylist()) if current is not None else set()
            raised = {COMPACTIONS: mark.get(COMPACTIONS, 0) + 1}
            if not there.issuperset(batch.paths):
                self._lake.remove_files(table, [action.path for action in actions])
                return False
            if self._lake.commit_files(table, [*actions, *gone], mark, raised):
                return True
            # Where it was this very commit whose answer got lost, the files that it removed are not there any more;
            # ours must then stay.
            mark = self._lake.recorded(table, [COMPACTIONS])
            now = self._lake.snapshot(table)
            if now is not None and {a.path for a in actions} <= set(now.files["path"].to_pylist()):
                return True
        raise Unavailable("lake", f"compact {table}: other writers won {_ATTEMPTS} times in a row")

    def _written(self, table: str, snapshot: Snapshot, batch: _Batch) -> list[AddAction]:
        with _sound(self._lake):
            found = [
                pads.FileSystemDataset(fragments, fragments[0].physical_schema, READ).to_table()
                for fragments in snapshot.place.fragments(batch.paths)
            ]
            rows = pa.concat_tables(found)
        if rows.num_rows != batch.rows:
            raise Corrupt(
                f"{table}: {batch.rows} rows are in the log of {len(batch.paths)} files, {rows.num_rows} in them"
            )
        order = [rows[OFFSET], rows[PARTITION]]
        order += [rows[EVENT_TIME].cast(pa.int64())] if EVENT_TIME in rows.column_names else []
        rows = rows.take(pa.array(np.lexsort([column.to_numpy() for column in order])))
        if batch.month is not None:
            rows = rows.append_column(MONTH, pa.repeat(pa.scalar(batch.month, pa.string()), rows.num_rows))
        count = -(-rows.num_rows // self._target)
        step = -(-rows.num_rows // count)
        actions: list[AddAction] = []
        try:
            for start in range(0, rows.num_rows, step):
                actions += self._lake.write_files(table, rows.slice(start, step))
        except BaseException:
            self._lake.remove_files(table, [action.path for action in actions])
            raise
        for action in actions:
            action.data_change = False
        return actions


_READ = ("path", "num_records", "min.event_time", f"min.{OFFSET}", f"max.{PARTITION}", f"partition.{MONTH}")


def _packed(files: Sequence[dict[str, Any]], limit: int) -> Iterator[list[dict[str, Any]]]:
    """Runs of files of at most `limit` rows together."""
    some: list[dict[str, Any]] = []
    held = 0
    for file in files:
        if some and held + file["num_records"] > limit:
            yield some
            some, held = [], 0
        some.append(file)
        held += file["num_records"]
    if some:
        yield some


@contextmanager
def _sound(lake: Lake) -> Iterator[None]:
    """Arrow's errors as Corrupt: a damaged file is never merged into others."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        text = " ".join(str(error).split())[:300]
        raise Corrupt(
            f"a file of the lake at {lake.url} cannot be read: {text}",
            hint="nothing was merged with it; restore the file, or load its events again",
        ) from error
