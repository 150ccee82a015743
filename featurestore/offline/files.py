"""Parquet files of a Delta table: how they are written so that they survive a power cut and show a flipped bit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake.transaction import AddAction
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from featurestore.clock import MAX_INSTANT, format_instant

MONTH = "_month"
PARTITION = "_partition"
OFFSET = "_offset"
EVENT_TIME = "event_time"
ANSWERED_AT = "_answered_at"

STATISTICS = (EVENT_TIME, ANSWERED_AT, PARTITION, OFFSET)
"""Columns that readers skip files by; minima and maxima of the others would cost more than they save."""

PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    # DuckDB and Arrow return wrong numbers, not errors, for most flipped bits in a page without a checksum.
    "write_page_checksum": True,
    "row_group_size": 128 * 1024,
}


def encodings(schema: pa.Schema) -> dict[str, Any]:
    """How columns are laid out, for a writer beside `PARQUET`: text by dictionary, instants and offsets, which rise, as
    differences, all else as it is. Dictionaries of numbers take a third of the time of a write and make it larger."""
    rising = {f.name: "DELTA_BINARY_PACKED" for f in schema if pa.types.is_timestamp(f.type) or f.name == OFFSET}
    return {"use_dictionary": [_leaf(f) for f in schema if _repeats(f)], "column_encoding": rising}


def _repeats(field: pa.Field) -> bool:
    kind = field.type.value_type if pa.types.is_list(field.type) else field.type
    return bool(pa.types.is_string(kind)) or field.name in (PARTITION, MONTH)


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


READ = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
)
FETCHED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The place where one table's data files are: a local directory, or an object store."""

    place: Path | ObjectStore

    def write(self, rows: pa.Table) -> list[AddAction]:
        """One file for each run of rows of one month, on stable storage before this returns. Not yet part of the table.

        After an error the files that were complete are removed again.
        """
        actions: list[AddAction] = []
        try:
            for month, part in _by_month(rows):
                actions.append(self._write_one(month, part))
        except BaseException:
            self.remove([action.path for action in actions])
            raise
        return actions

    def fragments(self, paths: Sequence[str]) -> Iterator[list[pads.ParquetFileFragment]]:
        """The files as parts of a dataset, some at a time; every page's checksum is checked when it is read.

        OSError that names the file where a footer is not what was written.

        Files of an object store are fetched whole: Arrow would read through a Python object from threads of its own,
        and about one process in thirty that did so was aborted when it ended.
        """
        if isinstance(self.place, Path):
            local = pafs.LocalFileSystem()
            for path in paths:
                with (self.place / path).open("rb") as file:
                    _require_footer(path, file)
            yield [READ.make_fragment(str(self.place / path), filesystem=local) for path in paths]
            return
        fetch = partial(_fetched, self.place)
        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            for start in range(0, len(paths), FETCHED_AT_ONCE):
                yield list(pool.map(fetch, paths[start : start + FETCHED_AT_ONCE]))

    def remove(self, paths: list[str]) -> None:
        """Best effort: a file that no commit names is invisible, and `compact` sweeps what stays behind."""
        for path in paths:
            with suppress(OSError, BaseError):
                if isinstance(self.place, Path):
                    (self.place / path).unlink()
                else:
                    obstore.delete(self.place, path)

    def _write_one(self, month: str | None, rows: pa.Table) -> AddAction:
        sink = pa.BufferOutputStream()
        columns = [c for c in STATISTICS if c in rows.column_names]
        pq.write_table(rows, sink, write_statistics=columns, **PARQUET, **encodings(rows.schema))
        data = sink.getvalue()
        name = f"part-{uuid.uuid4().hex}-{_digest(_footer(pa.BufferReader(data)))}.parquet"
        path = name if month is None else f"{MONTH}={month}/{name}"
        self._put(path, data)
        values = {} if month is None else {MONTH: month}
        return AddAction(path, data.size, values, 0, True, json.dumps(_statistics(rows, columns)))

    def _put(self, path: str, data: pa.Buffer) -> None:
        if isinstance(self.place, Path):
            write_durably(self.place / path, data)
        else:
            obstore.put(self.place, path, data.to_pybytes(), mode="create")


def _fetched(store: ObjectStore, path: str) -> pads.ParquetFileFragment:
    data = pa.py_buffer(bytes(obstore.get(store, path).bytes()))
    _require_footer(path, pa.BufferReader(data))
    return READ.make_fragment(data)


# Pages have checksums, footers have none: a flipped bit there can rename a column, which then reads as one that the
# file is too old to have, or send Arrow round in circles. So a file's name ends with the digest of its footer.
_NAME = re.compile(r"part-[0-9a-f]{32}-([0-9a-f]{16})\.parquet")
_TAIL_BYTES = 8
"""The footer's length and the magic word."""


def _require_footer(path: str, file: BinaryIO | pa.NativeFile) -> None:
    """OSError where the footer is not the one that the name tells of; names of earlier releases tell of none."""
    told = _NAME.search(path)
    if told is not None and _digest(_footer(file)) != told[1]:
        raise OSError(f"the footer of {path} is not what was written")


def _footer(file: BinaryIO | pa.NativeFile) -> bytes:
    """The end of a Parquet file, from its metadata on; the whole file where it is damaged."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    length = int.from_bytes(file.read(4), "little") + _TAIL_BYTES
    file.seek(max(0, size - length))
    return bytes(file.read())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def write_durably(path: Path, data: Any) -> None:
    """Bytes into a new file, flushed to the disk together with its name; after an error there is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    flush_name(path.parent)


def flush_name(directory: Path) -> None:
    """Makes the directory's own entries durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _by_month(rows: pa.Table) -> Iterator[tuple[str | None, pa.Table]]:
    """Runs of equal `_month`, without that column: in Delta it lives in the log, not in the file."""
    if MONTH not in rows.column_names:
        yield None, rows
        return
    months = rows[MONTH].combine_chunks()
    data = rows.drop_columns([MONTH])
    changes = pc.not_equal(months[1:], months[:-1]).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(months)]]).tolist()
    for start, end in pairwise(starts):
        yield months[start].as_py(), data.slice(start, end - start)


def _statistics(rows: pa.Table, columns: list[str]) -> dict[str, Any]:
    """Delta's per-file statistics, from which readers tell what they can skip."""
    least, most = {}, {}
    for name in columns:
        bounds = pc.min_max(rows[name])
        if bounds["min"].is_valid:
            least[name], most[name] = _bounds(name, bounds)
    nulls = {name: rows[name].null_count for name in columns}
    return {"numRecords": rows.num_rows, "minValues": least, "maxValues": most, "nullCount": nulls}


def _bounds(name: str, bounds: pa.StructScalar) -> tuple[Any, Any]:
    if name not in (EVENT_TIME, ANSWERED_AT):
        return bounds["min"].as_py(), bounds["max"].as_py()
    # The log keeps milliseconds. The maximum is rounded up, so that a reader who compares plainly skips no row.
    low, high = bounds["min"].value // 1000 * 1000, -(-bounds["max"].value // 1000) * 1000
    return format_instant(low), format_instant(min(high, MAX_INSTANT))
