"""`load`: files of history into a source's events, each once, as a whole or not at all.

A file is read in batches, checked as the decoder checks records, and written as files of the lake that no reader sees
until one transaction makes them all part of the table. Memory is bounded by `CHUNK_ROWS` and `CHUNK_BYTES`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.clock import MAX_INSTANT, MIN_INSTANT, Clock, format_instant
from featurestore.contracts.arrow import arrow_schema
from featurestore.contracts.reasons import FUTURE_EVENT, Reason
from featurestore.contracts.tables import check_table
from featurestore.definitions.compiled import CompiledSource
from featurestore.engine.columns import LOADED
from featurestore.errors import FeatureStoreError, InvalidRequest
from featurestore.offline.drafts import Draft
from featurestore.offline.events import INSTANT, events_table, streamed_since, system_columns
from featurestore.offline.files import EVENT_TIME
from featurestore.offline.lake import Lake
from featurestore.offline.loads import Load, Loads
from featurestore.offline.rejected import RejectedRows

BATCH_ROWS = 1 << 17
"""Rows checked at a time."""
CHUNK_ROWS, CHUNK_BYTES = 1 << 20, 256 << 20
"""Rows, and bytes of them, that are put in order and written at a time."""
MIN_SHARE_ROWS = 100
"""A share of refused rows says nothing of a smaller file."""
_HASHED_BYTES = 1 << 20

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Terms:
    """How files are loaded."""

    before: int | None
    """Rows from this instant (µs) on are left out."""
    visible: str
    """The column that says when each event became visible; empty: when its file is loaded."""
    rejects: Path
    """Where refused rows are written, in a file for each input that has any."""
    stop_share: float
    """Of refused rows: where a file has more, nothing of it is loaded."""
    by: str
    """Names this process."""


@dataclass(slots=True)
class LoadedFile:
    """What became of one file: `rows = loaded + left_out + rejected`."""

    file: str
    digest: str
    rows: int
    already: bool = False
    """It was in the lake before; nothing was added."""
    loaded: int = 0
    left_out: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    rejects: str = ""
    """The file of refused rows."""
    earliest: int | None = None
    latest: int | None = None
    """Event times of what was loaded, µs."""
    seconds: float = 0.0


class Loader:
    """Loads files into one source. Raises InvalidRequest for a file that cannot be loaded as it is, ContractError that
    names a column, FeatureStoreError where refused rows cannot be written, Unavailable where the lake does not answer.
    """

    def __init__(self, lake: Lake, source: CompiledSource, terms: Terms, clock: Clock, tell: Tell) -> None:
        self._lake, self._source, self._terms = lake, source, terms
        self._clock, self._tell = clock, tell
        self._loads = Loads(lake, source)
        self._streamed = None if terms.before is not None else streamed_since(lake, source)

    def load(self, path: Path) -> LoadedFile:
        with _readable(path), path.open("rb") as file:
            before, digest = os.fstat(file.fileno()), _digest(file)
            with pq.ParquetFile(file) as parquet:
                found = LoadedFile(str(path), digest, parquet.metadata.num_rows)
                if self._is_there(found):
                    return found
                number, place = self._loads.place(self._wanted(path, found))
                with self._written(path, parquet, place, found) as (draft, latest):
                    _require_unchanged(path, before, os.fstat(file.fileno()))
                    found.already = not self._loads.commit(number, place, draft, latest)
        if found.already:
            found.loaded = found.left_out = found.rejected = 0
        return found

    def _is_there(self, found: LoadedFile) -> bool:
        done = self._loads.done(found.digest)
        if done is None:
            return False
        terms = self._terms
        if (done.before, done.visible) != (terms.before, terms.visible):
            then, now = _said(done.before, done.visible), _said(terms.before, terms.visible)
            raise InvalidRequest(
                f"{found.file} was loaded on {format_instant(done.at)} as {done.file}, {then}, and is now given {now}",
                hint="its rows would be there twice; load a file that has only the rows that were left out",
                field="file",
            )
        found.already = True
        return True

    def _wanted(self, path: Path, found: LoadedFile) -> Load:
        terms = self._terms
        return Load(found.digest, path.name, found.rows, 0, terms.before, terms.visible, self._clock.now(), terms.by)

    @contextmanager
    def _written(
        self, path: Path, parquet: pq.ParquetFile, place: Load, found: LoadedFile
    ) -> Iterator[tuple[Draft, int]]:
        """The file's events as files of the lake, to be committed, and their latest event time; the refused rows are
        written."""
        rejected = RejectedRows(self._terms.rejects / f"{path.stem}.{found.digest[:8]}.rejects.parquet")
        draft = self._lake.draft(events_table(self._source.name), self._lake_schema())
        try:
            chunk = _Chunk(self._source, draft)
            for batch in self._batches(parquet, place, found, rejected):
                chunk.add(batch)
            chunk.flush()
            self._require_share(found, rejected)
            found.rejects = rejected.finish()
            if found.loaded:
                found.earliest, found.latest = chunk.earliest, chunk.latest
            yield draft, max(0, chunk.latest)
        except BaseException:
            draft.discard()
            rejected.discard()
            raise

    def _batches(
        self, parquet: pq.ParquetFile, place: Load, found: LoadedFile, rejected: RejectedRows
    ) -> Iterator[pa.Table]:
        """Rows that are taken, with the columns that the lake adds."""
        schema = parquet.schema_arrow
        wanted = {*self._source.contract.names, *([place.visible] if place.visible else [])}
        names = list(dict.fromkeys(name for name in schema.names if name in wanted))
        row = 0
        # Before the first row: a column that is missing is missing in an empty file too.
        self._checked(schema.empty_table().select(_places(schema, names)), place)
        for batch in parquet.iter_batches(BATCH_ROWS, columns=names):
            rows = pa.Table.from_batches([batch])
            events, numbers = self._taken(rows, row, place, found, rejected)
            row += rows.num_rows
            self._tell({"file": found.file, "rows": row, "of": found.rows, "loaded": found.loaded})
            if events.num_rows:
                yield self._with_places(events, numbers, rows, row - rows.num_rows, place)

    def _taken(
        self, rows: pa.Table, start: int, place: Load, found: LoadedFile, rejected: RejectedRows
    ) -> tuple[pa.Table, np.ndarray]:
        """The valid rows before the cut, and their numbers in the file."""
        events, refused, errors = self._checked(rows, place)
        numbers = np.flatnonzero(~refused)
        instants = _micros(events[self._source.event_time])
        ahead = instants > place.at + self._source.max_future_skew
        for index in np.flatnonzero(ahead).tolist():
            said = f"{self._source.event_time} is {format_instant(int(instants[index]))}, which is yet to come"
            errors[int(numbers[index])] = (FUTURE_EVENT, said)
        early = np.ones(len(instants), np.bool_) if place.before is None else instants < place.before
        self._require_apart(instants, found)
        taken = early & ~ahead
        found.left_out += int((~early & ~ahead).sum())
        found.loaded += int(taken.sum())
        found.rejected += len(errors)
        for reason, _ in errors.values():
            found.reasons[str(reason)] = found.reasons.get(str(reason), 0) + 1
        rejected.add(rows, start, errors)
        whole = taken.all()
        return (events if whole else events.filter(pa.array(taken))), (numbers if whole else numbers[taken]) + start

    def _checked(self, rows: pa.Table, place: Load) -> tuple[pa.Table, np.ndarray, dict[int, tuple[str, str]]]:
        """The valid events; which rows are refused, and why."""
        events, rejects = check_table(self._source.contract, rows)
        errors: dict[int, tuple[str, str]] = {reject.row: (reject.reason, reject.error) for reject in rejects}
        if place.visible:
            for row, error in _bad_instants(rows, place.visible).items():
                errors.setdefault(row, error)
        refused = np.zeros(rows.num_rows, np.bool_)
        refused[list(errors)] = True
        if len(errors) > len(rejects):
            broken = np.zeros(rows.num_rows, np.bool_)
            broken[[reject.row for reject in rejects]] = True
            events = events.filter(pa.array(~refused[~broken]))
        return events, refused, errors

    def _require_apart(self, instants: np.ndarray, found: LoadedFile) -> None:
        """The stream's own events must not come again from a file."""
        if self._streamed is None or not instants.size or int(instants.max()) < self._streamed:
            return
        begins = format_instant(self._streamed)
        raise InvalidRequest(
            f"{found.file} has events of {format_instant(int(instants.max()))}, and events of the topic "
            f"{self._source.topic} are in the lake from {begins} on: some may be the same",
            hint=f"leave out what the topic has: --before {begins}; or give a later instant where you know that the "
            "file has no event of the topic",
            field="before",
        )

    def _require_share(self, found: LoadedFile, rejected: RejectedRows) -> None:
        if found.rows < MIN_SHARE_ROWS or found.rejected <= self._terms.stop_share * found.rows:
            return
        why = ", ".join(f"{count:,} × {reason}" for reason, count in sorted(found.reasons.items()))
        raise InvalidRequest(
            f"{found.file}: {found.rejected:,} of {found.rows:,} rows are refused ({why}); nothing of it was loaded",
            hint=f"{rejected.finish()} has them, with reasons; FS_STOP_SHARE says how many may be",
            field="file",
        )

    def _with_places(self, events: pa.Table, numbers: np.ndarray, rows: pa.Table, start: int, place: Load) -> pa.Table:
        visible: int | np.ndarray = place.at
        if place.visible:
            visible = _micros(rows[place.visible])[numbers - start]
        return system_columns(events, LOADED, place.first + numbers, self._source.event_time, visible)

    def _lake_schema(self) -> pa.Schema:
        nothing, _ = check_table(self._source.contract, arrow_schema(self._source.contract).empty_table())
        return system_columns(nothing, LOADED, np.empty(0, np.int64), self._source.event_time, 0).schema


class _Chunk:
    """Rows on their way into one file of the lake for each month."""

    def __init__(self, source: CompiledSource, draft: Draft) -> None:
        self._source, self._draft = source, draft
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0
        self.earliest, self.latest = MAX_INSTANT, MIN_INSTANT

    def add(self, rows: pa.Table) -> None:
        self._held.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= CHUNK_ROWS or self._bytes >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._held:
            return
        rows = pa.concat_tables(self._held)
        self._held, self._rows, self._bytes = [], 0, 0
        instants = _micros(rows[EVENT_TIME])
        self.earliest = min(self.earliest, int(instants.min()))
        self.latest = max(self.latest, int(instants.max()))
        if (instants[1:] < instants[:-1]).any():
            # Stable: of one instant, the order of the file.
            rows = rows.take(pa.array(np.argsort(instants, kind="stable")))
        self._draft.write(rows)


def _require_unchanged(path: Path, then: os.stat_result, now: os.stat_result) -> None:
    if (then.st_size, then.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        hint = "nothing of it was loaded: load files that are finished"
        raise InvalidRequest(f"{path} changed while it was read", hint=hint, field="file")


def _said(before: int | None, visible: str) -> str:
    cut = f"with --before {format_instant(before)}" if before is not None else "without --before"
    return f"{cut} and --visible-time {visible}" if visible else cut


def _places(schema: pa.Schema, names: Sequence[str]) -> list[int]:
    """Of every column with such a name, also where there are two."""
    return [i for i, name in enumerate(schema.names) if name in names]


def _micros(column: pa.ChunkedArray) -> np.ndarray:
    micros: np.ndarray = column.cast(INSTANT).cast(pa.int64()).to_numpy()
    return micros


def _bad_instants(rows: pa.Table, name: str) -> dict[int, tuple[str, str]]:
    """Rows whose visible time is none. Raises InvalidRequest where the column cannot be one."""
    kind = rows.schema.field(name).type if name in rows.schema.names else None
    if kind is None or not pa.types.is_timestamp(kind) or kind.tz is None:
        raise InvalidRequest(
            f"column {name!r} {'is missing' if kind is None else f'is {kind}'}; expected timestamps with a zone",
            hint="it is to say when each event became visible; leave --visible-time out for the time of the load",
            field="visible_time",
        )
    nulls = np.flatnonzero(pc.is_null(rows[name]).to_numpy())
    return dict.fromkeys(nulls.tolist(), (Reason.WRONG_TYPE, f"{name}: null, and it is to be the visible time"))


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_HASHED_BYTES):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """The input's own troubles; those of the lake and of the rejects have names already."""
    try:
        yield
    except FeatureStoreError:
        raise
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {path}", field="file") from None
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise InvalidRequest(f"{path} cannot be read as Parquet: {text}", field="file",
                             hint="nothing of it was loaded")  from error  # fmt: skip
