"""The lake: Delta tables under one root, written so that a repeated or raced append changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from urllib.parse import unquote, urlsplit

import obstore
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction
from obstore.exceptions import BaseError
from obstore.store import from_url

from featurestore.errors import ConfigError, Unavailable, UsageError
from featurestore.offline.documents import Documents
from featurestore.offline.drafts import Draft
from featurestore.offline.files import MONTH, STATISTICS, TableFiles, flush_name
from featurestore.offline.marks import app_id, check_rows, rows_beyond

__all__ = ["Lake", "Snapshot", "app_id"]

_NAME = re.compile(r"[a-z]+/[A-Za-z0-9_][A-Za-z0-9_.@-]*", re.ASCII)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss"})
_ROOMS = ("events", "features", "visible", "served")
_ATTEMPTS = 50
"""Each attempt fails only because another writer's commit succeeded, so this bounds a livelock, not a wait."""

_HINTS = (
    ("no space left", "the disk of the lake is full: free space there; the append is repeated safely"),
    ("os error 28", "the disk of the lake is full: free space there; the append is repeated safely"),
    ("quota", "the lake's quota is used up: raise it; the append is repeated safely"),
    ("file too large", "a limit on file sizes stops the writer: raise it (ulimit -f); the append is repeated safely"),
    ("permission denied", "let this process read and write the lake's directory"),
    ("access denied", "check the credentials of the object store (AWS_*, AZURE_*, GOOGLE_*)"),
    ("forbidden", "check the credentials of the object store (AWS_*, AZURE_*, GOOGLE_*)"),
    ("not a directory", "FS_LAKE must name a directory"),
    ("read-only file system", "the lake is mounted read-only"),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a table, for reading."""

    version: int
    schema: pa.Schema
    files: pa.Table
    """One row a file: `path`, `num_records`, `min.event_time`, `max.event_time`, `partition._month`, where known."""
    place: TableFiles


class Lake:
    """Tables `events/<source>`, `features/<view>@<v>`, … below a directory or an object store's URL.

    Credentials come from the environment (`AWS_*`, `AZURE_*`, `GOOGLE_*`). Safe to share between threads; any number
    of processes may write the same tables. Every error of the store is `Unavailable("lake", …)`.
    """

    def __init__(self, url: str) -> None:
        self._root = _local_root(url)
        self._base = str(self._root) if self._root is not None else url.rstrip("/")
        self._handles: dict[str, DeltaTable] = {}
        self._locks: dict[str, Lock] = {}
        self._guard = Lock()

    @property
    def url(self) -> str:
        """Where the lake is, without credentials."""
        return _without_secrets(self._base)

    def append(self, table: str, batch: pa.Table, marks: Mapping[str, int]) -> bool:
        """Adds the rows that are not recorded yet, with their marks, as one Delta transaction.

        `batch` has `_partition` and `_offset`; with `_month` it is partitioned by it (rows of one month side by side
        make one file). `marks` gives, by `app_id(stream, partition)`, the last offset that is done with this append,
        also where no row stands for it. Rows at or below a recorded mark are left out, whoever recorded it and when:
        two writers of overlapping ranges leave each row once. New columns are added to the table; a column of
        another type than the table's is a UsageError. False where every mark was recorded already.
        """
        _check_name(table)
        check_rows(batch, marks)
        with self._locked(table), self._errors(f"append to {table}"):
            for _ in range(_ATTEMPTS):
                handle = self._handle(table) or self._create(table, batch.schema)
                known = _recorded(handle, marks)
                ahead = {app: mark for app, mark in marks.items() if mark > known.get(app, -1)}
                if not ahead:
                    return False
                if self._commit(table, handle, rows_beyond(batch, known), ahead):
                    return True
        raise Unavailable("lake", f"append to {table}: other writers won {_ATTEMPTS} times in a row")

    def add(self, table: str, rows: pa.Table) -> None:
        """Adds rows that stand in no log: as `append`, without `_partition`, `_offset` and marks.

        Nothing tells whether rows are there already. After an error they mostly are not; where a store took the
        commit and only its answer was lost, they are.
        """
        _check_name(table)
        with self._locked(table), self._errors(f"add to {table}"):
            for _ in range(_ATTEMPTS):
                handle = self._handle(table) or self._create(table, rows.schema)
                if self._commit(table, handle, rows, {}):
                    return
        raise Unavailable("lake", f"add to {table}: other writers won {_ATTEMPTS} times in a row")

    def draft(self, table: str, schema: pa.Schema) -> Draft:
        """For rows that are more than one `append` should hold. Makes the table, and gives it the columns it lacks."""
        _check_name(table)
        with self._locked(table), self._errors(f"write to {table}"):
            for _ in range(_ATTEMPTS):
                handle = self._handle(table) or self._create(table, schema)
                try:
                    return Draft(self, table, _fit(table, handle, schema.empty_table()).schema)
                except CommitFailedError:
                    continue
        raise Unavailable("lake", f"write to {table}: other writers won {_ATTEMPTS} times in a row")

    def write_files(self, table: str, rows: pa.Table) -> list[AddAction]:
        with self._errors(f"write to {table}"):
            return self._files(table).write(rows)

    def remove_files(self, table: str, paths: list[str]) -> None:
        self._files(table).remove(paths)

    def sweep(self, table: str, retention_hours: int, *, dry: bool = False) -> int:
        """Removes files that no version of the last hours has, also those that never became part of the table; returns
        how many."""
        with self._locked(table), self._errors(f"sweep {table}"):
            handle = self._handle(table)
            if handle is None:
                return 0
            gone = handle.vacuum(retention_hours, dry_run=dry, enforce_retention_duration=False, full=True)
            handle.update_incremental()
            return len(gone)

    def commit_files(
        self, table: str, actions: Sequence[AddAction | RemoveAction], seen: Mapping[str, int], marks: Mapping[str, int]
    ) -> bool:
        with self._locked(table), self._errors(f"commit to {table}"):
            handle = self._handle(table)
            if handle is None or _recorded(handle, marks) != {app: seen[app] for app in marks if app in seen}:
                return False
            return self._record(table, handle, actions, marks)

    def recorded(self, table: str, app_ids: Sequence[str], version: int | None = None) -> dict[str, int]:
        """Last recorded offset by app id, as of the newest or of an older version; ids that were never recorded are
        absent."""
        _check_name(table)
        with self._locked(table), self._errors(f"read the marks of {table}"):
            handle = self._handle(table)
            if handle is not None and version is not None and version != handle.version():
                handle = DeltaTable(self._uri(table), version=version)
            return {} if handle is None else _recorded(handle, app_ids)

    def version(self, table: str) -> int | None:
        """The newest version, None where there is no such table."""
        snapshot = self.snapshot(table)
        return None if snapshot is None else snapshot.version

    def schema(self, table: str) -> pa.Schema | None:
        snapshot = self.snapshot(table)
        return None if snapshot is None else snapshot.schema

    def tables(self) -> list[str]:
        """Names of all tables, sorted."""
        with self._errors("list the tables"):
            folders = _local_folders if self._root is not None else _remote_folders
            names = [f"{room}/{name}" for room in _ROOMS for name in folders(self._base, room)]
            return [name for name in names if _NAME.fullmatch(name) and self._exists(name)]

    def snapshot(self, table: str, version: int | None = None) -> Snapshot | None:
        """The newest version, or an older one by number; None where there is no such table."""
        _check_name(table)
        with self._locked(table), self._errors(f"open {table}"):
            handle = self._handle(table)
            if handle is None:
                return None
            if version is not None and version != handle.version():
                handle = DeltaTable(self._uri(table), version=version)
            return Snapshot(
                handle.version(),
                _arrow_schema(handle),
                pa.table(handle.get_add_actions(flatten=True)),
                self._files(table),
            )

    def documents(self, folder: str) -> Documents:
        """A folder beside the tables, which need not be there yet."""
        with self._errors(f"open {folder}"):
            place = from_url(f"{self._base}/{folder}") if self._root is None else self._root / folder
        return Documents(place, self._errors)

    def _commit(self, table: str, handle: DeltaTable, rows: pa.Table, marks: Mapping[str, int]) -> bool:
        """False when another writer's commit came between the version that `handle` shows and this one."""
        files = self._files(table)
        try:
            rows = _fit(table, handle, rows)
            actions = files.write(rows) if rows.num_rows else []
        except CommitFailedError:
            return False
        return self._record(table, handle, actions, marks)

    def _record(
        self, table: str, handle: DeltaTable, actions: Sequence[AddAction | RemoveAction], marks: Mapping[str, int]
    ) -> bool:
        try:
            # Delta refuses the commit if one that it did not see recorded any of these app ids: measured, and kept by
            # a test, since the whole promise of `append` stands on it.
            handle.create_write_transaction(
                list(actions),
                "append",
                handle.schema(),
                handle.metadata().partition_columns,
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(app, mark) for app, mark in sorted(marks.items())]
                ),
            )
        except CommitFailedError:
            # The files stay: when an answer got lost on the way, the commit that came between may be this very one.
            return False
        self._flush_log(table, handle)
        return True

    def _flush_log(self, table: str, handle: DeltaTable) -> None:
        """Delta does not wait for the disk; a mark that a fence relies on must not vanish in a power cut."""
        if self._root is None:
            return
        seen = handle.version()
        handle.update_incremental()
        log = self._root / table / "_delta_log"
        for version in range(seen + 1, handle.version() + 1):
            with (log / f"{version:020}.json").open("rb") as entry:
                os.fsync(entry.fileno())
        flush_name(log)

    def _create(self, table: str, schema: pa.Schema) -> DeltaTable:
        columns = Schema.from_arrow(_plain(schema))
        statistics = ",".join(name for name in STATISTICS if name in schema.names)
        try:
            handle = DeltaTable.create(
                self._uri(table),
                columns,
                partition_by=[MONTH] if MONTH in schema.names else None,
                name=table,
                description=_DESCRIPTIONS.get(table.partition("/")[0], ""),
                configuration={"delta.dataSkippingStatsColumns": statistics},
            )
        except DeltaError:
            if not DeltaTable.is_deltatable(self._uri(table)):
                raise
            handle = DeltaTable(self._uri(table))  # another writer created it just now
        self._handles[table] = handle
        return handle

    def _handle(self, table: str) -> DeltaTable | None:
        """At the newest version; following the log from where it was read last costs less than opening anew."""
        handle = self._handles.get(table)
        if handle is not None:
            handle.update_incremental()
        elif self._exists(table):
            handle = self._handles[table] = DeltaTable(self._uri(table))
        return handle

    def _exists(self, table: str) -> bool:
        if self._root is not None:
            # The directory is there a moment before its first version is.
            log = self._root / table / "_delta_log"
            return log.is_dir() and any(entry.suffix == ".json" and entry.stem.isdigit() for entry in log.iterdir())
        return DeltaTable.is_deltatable(self._uri(table))

    def _uri(self, table: str) -> str:
        return f"{self._base}/{table}"

    def _files(self, table: str) -> TableFiles:
        return TableFiles(from_url(self._uri(table)) if self._root is None else self._root / table)

    @contextmanager
    def _locked(self, table: str) -> Iterator[None]:
        with self._guard:
            lock = self._locks.setdefault(table, Lock())
        with lock:
            yield

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (DeltaError, OSError, BaseError) as error:
            text = _without_secrets(" ".join(_COLOURS.sub("", str(error)).split()))[:500]
            hint = next((hint for sign, hint in _HINTS if sign in text.lower()), "is FS_LAKE right, and reachable?")
            raise Unavailable("lake", f"cannot {action} in {self.url}: {text}", hint=hint) from error


_DESCRIPTIONS = {
    "events": "Validated events of a source, each once. Written by featurestore; append only.",
    "features": "Feature rows as they were materialised. Written by featurestore; append only.",
    "visible": "When events became readable online. Written by featurestore; append only.",
    "served": "Lookups as they were answered, a sample. Written by featurestore; append only.",
}


def _recorded(handle: DeltaTable, app_ids: Sequence[str] | Mapping[str, int]) -> dict[str, int]:
    found = {app: handle.transaction_version(app) for app in app_ids}
    return {app: version for app, version in found.items() if version is not None}


def _check_name(table: str) -> None:
    if not _NAME.fullmatch(table):
        raise UsageError(f"{table!r} is no name of a table", hint="write it as events/departures", field="table")


def _fit(table: str, handle: DeltaTable, rows: pa.Table) -> pa.Table:
    """Rows in the table's types; columns the table lacks are added to it first, in a commit of their own."""
    known = _arrow_schema(handle)
    plain = _plain(rows.schema)
    for field in plain:
        if field.name in known.names and known.field(field.name).type != field.type:
            expected = known.field(field.name).type
            raise UsageError(
                f"column {field.name} of {table} is {expected} in the lake, and {field.type} in the rows",
                hint="a column keeps its type for good: give the new one another name",
                field=field.name,
            )
    fresh = [field for field in plain if field.name not in known.names]
    if fresh:
        added = Schema.from_arrow(pa.schema(fresh)).fields
        handle.alter.add_columns([Field(f.name, f.type, nullable=True) for f in added])
        handle.update_incremental()
    return rows.cast(plain)


def _plain(schema: pa.Schema) -> pa.Schema:
    """The types that Delta knows; every column nullable, without metadata."""
    return pa.schema([pa.field(field.name, _PLAIN.get(field.type, field.type)) for field in schema])


_PLAIN = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.dictionary(pa.int32(), pa.string()): pa.string(),
}


def _arrow_schema(handle: DeltaTable) -> pa.Schema:
    return _plain(pa.schema(handle.schema().to_arrow()))


def _local_folders(base: str, room: str) -> list[str]:
    path = Path(base) / room
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _remote_folders(base: str, room: str) -> list[str]:
    found = obstore.list_with_delimiter(from_url(base), room)
    return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])


def _local_root(url: str) -> Path | None:
    """The directory, None where the URL names an object store."""
    if "://" not in url:
        return Path(url).expanduser().absolute()
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme not in _SCHEMES:
        known = ", ".join(sorted(_SCHEMES))
        hint = f"give a directory, or a URL of {known}"
        raise ConfigError(f"no lake can be at {parts.scheme}://", hint=hint, field="FS_LAKE")
    return None


def _without_secrets(text: str) -> str:
    """Without user:password@ and without query strings, which may hold signatures."""
    return re.sub(r"\?[^\s\"']+", "", re.sub(r"://[^/@\s]+@", "://", text))
