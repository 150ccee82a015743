"""Rows that a load refused, as they were, each with its place and the reason: to be mended and loaded again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import FeatureStoreError
from featurestore.offline.files import flush_name

ROW, REASON, ERROR = "fs.row", "fs.reason", "fs.error"


class RejectedRows:
    """One Parquet file: the columns that were read, `fs.row` (from 0), `fs.reason` and `fs.error`.

    It appears when it is finished, durable, in place of an older one; no rows, no file. Raises FeatureStoreError where
    it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.Table, start: int, errors: Mapping[int, tuple[str, str]]) -> None:
        """`errors`: row of the table → reason and text; the table's first row has the number `start` in its file."""
        if not errors:
            return
        places = sorted(errors)
        refused = rows.take(pa.array(places, pa.int64()))
        refused = refused.append_column(ROW, pa.array([start + row for row in places], pa.int64()))
        refused = refused.append_column(REASON, pa.array([str(errors[row][0]) for row in places], pa.string()))
        refused = refused.append_column(ERROR, pa.array([errors[row][1] for row in places], pa.string()))
        try:
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._draft, refused.schema)
            self._writer.write_table(refused)
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self) -> str:
        """Where the file is; empty where no row was refused."""
        if self._writer is None:
            return ""
        try:
            self._writer.close()
            with self._draft.open("rb") as file:
                os.fsync(file.fileno())
            self._draft.replace(self._path)
            flush_name(self._path.parent)
        except OSError as error:
            raise self._unwritable(error) from error
        self._writer = None
        return str(self._path)

    def discard(self) -> None:
        """Removes what is not finished."""
        if self._writer is not None:
            with suppress(OSError, pa.ArrowException):
                self._writer.close()
            with suppress(OSError):
                self._draft.unlink()

    def _unwritable(self, error: OSError) -> FeatureStoreError:
        return FeatureStoreError(
            f"refused rows cannot be written to {self._path}: {error.strerror or error}",
            hint="nothing of the file was loaded; name a directory that can be written: --rejects DIR",
            field="rejects",
        )
