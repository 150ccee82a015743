"""An export in pieces, in files: events by bucket, rows by bucket, answers. Each function is one task of the map.

Tasks are the same wherever they run, and leave the same files: a task that is done again, since its process ended in
the middle or two were given it, changes nothing. So what is there need not be done, after a kill too.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.offline.lots import ENTITY, Job, Reading, evaluate, events_schema
from featurestore.offline.visibility import Known
from featurestore.telemetry import package_version

MARK = "request.json"
PIECE_ROWS = 1 << 20
"""Events that are put in order of their buckets at a time."""


def divide(work: str, job: Job, number: int, piece: int, paths: Sequence[str], engine: str) -> None:
    """Writes a file with the events of some files of the lake, bucket by bucket, and one that counts them."""
    folder, lot = _folder(work, engine), job.lots[number]
    target = piece_path(folder, number, piece)
    if target.exists():
        return
    reading = Reading(job, lot, _read_file(keys_path(folder, number)).column(0).combine_chunks())
    held: list[pa.Table] = []
    with _Ordered(target, job.buckets) as ordered:
        for batch in reading.batches(paths):
            held.append(batch)
            if sum(part.num_rows for part in held) >= PIECE_ROWS:
                ordered.add(pa.concat_tables(held))
                held = []
        if held:
            ordered.add(pa.concat_tables(held))
        counts = {view: asdict(known) for view, known in reading.known.items()}
        target.with_suffix(".json").write_text(json.dumps(counts), encoding="utf-8")


def answer(work: str, job: Job, number: int, bucket: int, engine: str) -> int:
    """Writes the answers of one bucket; returns how many rows of the spine it has."""
    folder, lot = _folder(work, engine), job.lots[number]
    target = answers_path(folder, number, bucket)
    rows = _slices(rows_path(folder, number), bucket, job.buckets)
    if target.exists():
        return int(rows.num_rows)
    pieces = sorted(folder.glob(f"events-{number}-*.arrow"))
    events = [part for path in pieces if (part := _slices(path, bucket, job.buckets)).num_rows]
    table = pa.concat_tables(events) if events else events_schema(job, lot).empty_table()
    result = evaluate(job, lot, table, rows)
    _write_file(target, lambda writer: writer.write_table(result), result.schema)
    return int(rows.num_rows)


def counted(folder: Path, number: int) -> dict[str, Known]:
    """What `divide` counted, by view id."""
    total: dict[str, Known] = {}
    for path in sorted(folder.glob(f"events-{number}-*.json")):
        for view, counts in json.loads(path.read_text(encoding="utf-8")).items():
            total[view] = total.get(view, Known()) + Known(**counts)
    return total


def write_rows(folder: Path, number: int, rows: pa.Table, buckets: int) -> None:
    with _Ordered(rows_path(folder, number), buckets) as ordered:
        ordered.add(rows)


def write_keys(folder: Path, number: int, keys: pa.Array) -> None:
    table = pa.table({"key": keys})
    _write_file(keys_path(folder, number), lambda writer: writer.write_table(table), table.schema)


def read_answers(folder: Path, number: int, bucket: int) -> pa.Table:
    """Mapped, not read."""
    return _read_file(answers_path(folder, number, bucket))


def keys_path(folder: Path, number: int) -> Path:
    return folder / f"keys-{number}.arrow"


def rows_path(folder: Path, number: int) -> Path:
    return folder / f"rows-{number}.arrow"


def piece_path(folder: Path, number: int, piece: int) -> Path:
    return folder / f"events-{number}-{piece:05}.arrow"


def answers_path(folder: Path, number: int, bucket: int) -> Path:
    return folder / f"answers-{number}-{bucket:05}.arrow"


def _folder(work: str, engine: str) -> Path:
    folder = Path(work)
    if engine != package_version():
        raise UsageError(
            f"this worker runs featurestore {package_version()}, and the export {engine}",
            hint="give every machine the same version", field="executor",
        )  # fmt: skip
    if not (folder / MARK).is_file():
        raise UsageError(
            f"this worker does not see the export's directory {work}",
            hint="on other machines the output's directory must be under the same path: put it on a shared file system",
            field="executor",
        )
    return folder


class _Ordered:
    """An Arrow file in which batch i has rows of bucket i modulo B: one bucket can be read without the others."""

    def __init__(self, target: Path, buckets: int) -> None:
        self._target, self._buckets = target, buckets
        self._draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        self._writer: pa.RecordBatchFileWriter | None = None

    def __enter__(self) -> _Ordered:
        return self

    def add(self, rows: pa.Table) -> None:
        bucket = rows[ENTITY].fill_null(0).to_numpy() % self._buckets
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(self._buckets + 1))
        grouped = rows.take(pa.array(order)).combine_chunks() if self._buckets > 1 else rows.combine_chunks()
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._draft, rows.schema)
        for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            part = grouped.slice(start, end - start).combine_chunks()
            batches = part.to_batches() or [pa.RecordBatch.from_pylist([], rows.schema)]
            self._writer.write_batch(batches[0])

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            if self._writer is None:
                pa.ipc.new_file(self._draft, pa.schema([])).close()
            self._draft.rename(self._target)
        else:
            with suppress(OSError):
                self._draft.unlink()


def _slices(path: Path, bucket: int, buckets: int) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(i) for i in range(bucket, reader.num_record_batches, buckets)]
        return pa.Table.from_batches(batches, reader.schema)


def _write_file(target: Path, write: Callable[[pa.RecordBatchFileWriter], None], schema: pa.Schema) -> None:
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with pa.ipc.new_file(draft, schema) as writer:
            write(writer)
        draft.rename(target)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def _read_file(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
