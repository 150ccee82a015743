"""How a training set is made.

The work is a map over buckets of entities (`scratch`), on processes of this machine or others (`running`); what is
little is done in one piece, in this process. Which of both, and how many buckets, is settled when an export begins.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.clock import MIN_INSTANT, format_instant
from featurestore.definitions.compiled import CompiledService, CompiledView
from featurestore.errors import UsageError
from featurestore.offline.asking import Asked, key_columns
from featurestore.offline.assembly import Answers, Assembly, of_buckets
from featurestore.offline.events import event_files, events_table
from featurestore.offline.files import PARQUET, write_durably
from featurestore.offline.history import by_source, narrowed
from featurestore.offline.lake import Lake
from featurestore.offline.lots import AT, ENTITY, ROW, Job, Lot, Reading, lots_of
from featurestore.offline.manifest import MANIFEST, ExportedFile, Kind, Manifest
from featurestore.offline.output import check_target, install
from featurestore.offline.running import Runner, runner
from featurestore.offline.scratch import answer, answers_path, counted, divide, read_answers, write_keys, write_rows
from featurestore.offline.sizing import DEFAULT_MEMORY, PARTS, WHOLE_EVENTS, Size, size_of
from featurestore.offline.spine import Spine, read_spine
from featurestore.offline.visibility import Known, visible_table
from featurestore.offline.whole import answers_by_bucket, events_by_bucket
from featurestore.offline.workplace import workplace
from featurestore.telemetry import package_version

MAX_ROWS = 1_000_000
"""Rows of one file, where they are not wide."""
MAX_CELLS = 32_000_000
"""Features times rows of one file: it is put together in memory."""
REMOTE_BUCKETS = 32
"""At least, where the processes are somebody else's: how many there are nobody says."""
PIECE_EVENTS = 4_000_000
"""Events that one task reads from the lake, about."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done and how much there is."""


@dataclass(frozen=True, slots=True)
class Options:
    """What of a training set the caller chooses."""

    time_column: str = "event_time"
    status: bool = False
    """A `<view>.<feature>__status` column beside each feature."""
    as_of: bool = False
    """A `<view>.<feature>__as_of` column: the event time that the value stands on, null where there is none."""
    as_served: bool = False
    """Only events count that could be read online by the row's instant."""
    spine_name: str = ""
    """What the manifest calls the spine; by itself, the path."""


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """What an export may use."""

    memory: int = DEFAULT_MEMORY
    """Bytes, of all local processes together."""
    processes: int = 0
    """On this machine; 0: one for each processor."""
    executor: str | Executor | None = None
    """`dask://host:port`, or any executor of `concurrent.futures` whose workers see the output's directory."""
    progress: Progress = lambda _doing, _done, _total: None


@dataclass(frozen=True, slots=True)
class Settled:
    """What must not change while an export goes on, or is made again."""

    versions: Mapping[str, int]
    """Table → Delta version."""
    buckets: int
    revision: int
    """Of the registry."""
    created_at: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "versions": dict(self.versions)}


@dataclass(frozen=True, slots=True, eq=False)
class Again:
    """An export that was made before."""

    settled: Settled
    accept: Callable[[Manifest], None]
    """Raises what is wrong with what was made, before it takes the place of anything."""


def make(
    asked: Asked,
    spine: Any,
    out: Path | str,
    *,
    lake: Lake,
    now: int,
    options: Options = Options(),
    means: Means = Means(),
    again: Again | None = None,
) -> Manifest:
    """Write `out/part-*.parquet` and `out/manifest.json`: the spine's rows, in order, with a column for each feature.

    `asked` says which features (`asking.ask`), `spine` is as `read_spine` takes it; `now` (µs) is written into the
    manifest only. Nulls stay null. Each value counts every event with `event_time <= T`, however late it arrived; with
    `as_served` only those that could be read online by T (`visibility.Visibility`). The directory appears, or is
    replaced, as a whole; an export that was killed goes on where it was, and ends with the same bytes. `again` is for
    one that was made before. Raises UsageError (a bad spine, no events, an `out` that is not an export), Unavailable.
    """
    target = Path(out).absolute()
    check_target(target)
    views, service = asked.views, asked.service
    checked = read_spine(spine, key_columns(views), options.time_column, _request_types(service))
    work = _Work(asked, checked, lake, options, means)
    sha = digest(checked.table)

    def settle() -> dict[str, Any]:
        return (again.settled if again else work.settle(now)).to_json()

    identity = work.identity(sha) | ({"settled": again.settled.to_json()} if again else {})
    with workplace(target, identity, settle) as (folder, fixed):
        agreed = Settled(**fixed)
        files, visibility = work.write(folder, agreed)
        manifest = Manifest(
            kind=Kind.AS_SERVED if options.as_served else Kind.EXACT,
            service=service.name,
            version=asked.version,
            rows=len(checked),
            time_column=options.time_column,
            columns=service.feature_names,
            files=files,
            views={view.id: view.fingerprint for view in views},
            service_fingerprint=service.fingerprint,
            registry_revision=agreed.revision,
            lake_versions=dict(agreed.versions),
            spine_sha256=sha,
            created_at=agreed.created_at,
            engine=package_version(),
            visibility=visibility if options.as_served else None,
            features=asked.listed,
            status=options.status,
            as_of=options.as_of,
            buckets=agreed.buckets,
            spine=options.spine_name or (str(spine) if isinstance(spine, str | Path) else ""),
        )
        if again:
            again.accept(manifest)
        (folder / "out" / MANIFEST).unlink(missing_ok=True)
        write_durably(folder / "out" / MANIFEST, manifest.to_json().encode())
        install(folder / "out", target)
    return manifest


def in_memory(asked: Asked, spine: Spine, lake: Lake, options: Options) -> pa.Table:
    """The whole training set."""
    work = _Work(asked, spine, lake, options, Means())
    if not len(spine):
        return work.assembly.schema.empty_table()
    answers, _ = work.in_one_piece(Settled(_versions(lake, asked.views, options.as_served), 1, 0, ""))
    return work.assembly.rows(answers, 0, len(spine))


def digest(table: pa.Table) -> str:
    """SHA-256 (hex) of a table as one Arrow IPC stream: of its values, names and types, not of how it was chunked."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain, max_chunksize=1_000_000)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _request_types(service: CompiledService) -> dict[str, Any]:
    return {field.name: field.dtype for field in service.request}


def _versions(lake: Lake, views: Sequence[CompiledView], as_served: bool) -> dict[str, int]:
    """Of every table that is read, as far as it is there. Events first: of those the record says what was readable."""
    tables = [*(events_table(view.source.name) for view in views)]
    tables += [visible_table(view) for view in views] if as_served else []
    versions = {name: lake.version(name) for name in dict.fromkeys(tables)}
    return {name: version for name, version in sorted(versions.items()) if version is not None}


class _Work:
    """One export: what it is about, and the steps."""

    def __init__(self, asked: Asked, spine: Spine, lake: Lake, options: Options, means: Means) -> None:
        self._asked, self._spine, self._lake = asked, spine, lake
        self._options, self._means = options, means
        wanted: dict[str, list[str]] = {}
        for view, feature in asked.service.read:
            wanted.setdefault(view, []).append(feature)
        views = [narrowed(view, wanted[view.name]) for view in asked.views if view.name in wanted]
        self._lots = lots_of(views)
        self.assembly = Assembly(asked.service, views, spine, status=options.status, as_of=options.as_of)
        self._part_rows = max(1, min(MAX_ROWS, MAX_CELLS // max(1, len(asked.service.feature_names))))
        self._until = int(spine.at.max()) if len(spine) else MIN_INSTANT

    @property
    def _processes(self) -> int:
        return self._means.processes or os.cpu_count() or 1

    def identity(self, spine_sha256: str) -> dict[str, Any]:
        """What makes two exports one and the same."""
        options = self._options
        return {
            "service": [self._asked.service.name, self._asked.version, self._asked.service.fingerprint],
            "features": list(self._asked.listed),
            "views": {view.id: view.fingerprint for view in self._asked.views},
            "spine": spine_sha256,
            "options": [options.time_column, options.status, options.as_of, options.as_served],
            "rows": self._part_rows,
            "engine": package_version(),
            "lake": self._lake.url,
        }

    def settle(self, now: int) -> Settled:
        versions = _versions(self._lake, self._asked.views, self._options.as_served)
        files = self._files(versions)
        size = self._size({name: sum(found.values()) for name, found in files.items()})
        return Settled(versions, size.buckets, self._asked.revision, format_instant(now))

    def write(self, folder: Path, settled: Settled) -> tuple[tuple[ExportedFile, ...], dict[str, Known]]:
        (folder / "out").mkdir(exist_ok=True)
        if not len(self._spine):
            # One file without rows, so that readers find the schema.
            return (_write_part(folder / "out", 0, self.assembly.schema.empty_table),), {}
        if settled.buckets == 1:
            answers, known = self.in_one_piece(settled)
        else:
            answers, known = self._in_buckets(folder, settled)
        return tuple(self._parts(folder / "out", answers)), known

    def in_one_piece(self, settled: Settled) -> tuple[list[Answers], dict[str, Known]]:
        files = self._files(settled.versions)
        self._require_events(files)
        answers, known = list[Answers](), dict[str, Known]()
        parts = PARTS if sum(sum(found.values()) for found in files.values()) > WHOLE_EVENTS else 1
        job = replace(self._job(settled), buckets=parts)
        threads = min(parts, self._processes)
        for lot in self._lots:
            entities, rows = self._rows(lot)
            reading, of_source = Reading(job, lot, entities), files[lot.source.name]
            self._means.progress("reading events", 0, sum(of_source.values()))
            events = events_by_bucket(reading, [*of_source], threads)
            self._means.progress("reading events", sum(of_source.values()), sum(of_source.values()))
            found = answers_by_bucket(job, lot, events, rows, threads)
            answers.append(of_buckets(self._counted(found, len(self._spine))))
            known |= reading.known
        return answers, known

    def _counted(self, answers: Iterable[pa.Table], rows: int) -> list[pa.Table]:
        """All of them; says how far they are."""
        self._means.progress("computing rows", 0, rows)
        found: list[pa.Table] = []
        for table in answers:
            found.append(table)
            self._means.progress("computing rows", sum(part.num_rows for part in found), rows)
        return found

    def _in_buckets(self, folder: Path, settled: Settled) -> tuple[list[Answers], dict[str, Known]]:
        job, files = self._job(settled), self._files(settled.versions)
        self._require_events(files)
        size = self._size({name: sum(found.values()) for name, found in files.items()})
        work, engine = str(folder), package_version()
        with runner(self._means.executor, size.processes) as run:
            for number, lot in enumerate(self._lots):
                if all(answers_path(folder, number, bucket).exists() for bucket in range(job.buckets)):
                    continue
                self._lay_out(folder, number, lot, job)
                pieces = _pieces(files[lot.source.name], size.processes)
                self._run(run, divide, [(work, job, number, n, piece, engine) for n, piece in enumerate(pieces)],
                          "reading events", len(pieces), lambda _: 1)  # fmt: skip
                tasks = [(work, job, number, bucket, engine) for bucket in range(job.buckets)]
                self._run(run, answer, tasks, "computing rows", len(self._spine), int)
        known = {view: told for number in range(len(self._lots)) for view, told in counted(folder, number).items()}
        buckets, numbers = range(job.buckets), range(len(self._lots))
        return [of_buckets([read_answers(folder, n, bucket) for bucket in buckets]) for n in numbers], known

    def _run(
        self, run: Runner, task: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], doing: str, total: int,
        size: Callable[[Any], int],
    ) -> None:  # fmt: skip
        done = 0

        def finished(result: Any) -> None:
            nonlocal done
            done += size(result)
            self._means.progress(doing, done, total)

        self._means.progress(doing, 0, total)
        run.run(task, tasks, finished)

    def _lay_out(self, folder: Path, number: int, lot: Lot, job: Job) -> None:
        """What the lot's tasks read beside the lake."""
        entities, rows = self._rows(lot)
        write_keys(folder, number, entities)
        write_rows(folder, number, rows, job.buckets)

    def _rows(self, lot: Lot) -> tuple[pa.Array, pa.Table]:
        """The spine's distinct entities of the lot, and its rows as the lot is asked about them."""
        keys = lot.named(self._spine.keys)
        entities = pc.unique(keys).drop_null()
        numbers = pc.index_in(keys, value_set=entities).cast(pa.int64())
        return entities, pa.table({ROW: np.arange(len(self._spine)), ENTITY: numbers, AT: self._spine.at})

    def _parts(self, out: Path, answers: Sequence[Answers]) -> Iterator[ExportedFile]:
        rows = len(self._spine)
        for number, start in enumerate(range(0, rows, self._part_rows)):
            stop = min(start + self._part_rows, rows)
            yield _write_part(out, number, lambda: self.assembly.rows(answers, start, stop))  # noqa: B023 — called at once
            self._means.progress("writing rows", stop, rows)

    def _job(self, settled: Settled) -> Job:
        options = self._options
        return Job(self._lake.url, self._lots, dict(settled.versions), self._until, options.as_served, options.as_of,
                   settled.buckets)  # fmt: skip

    def _files(self, versions: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """By source, the files that are read, with their rows."""
        sources = {view.source.name: view.source for view in self._asked.views}
        return {
            name: event_files(self._lake, source, version=versions.get(events_table(name)), until=self._until)
            for name, source in sources.items()
        }

    def _size(self, events: Mapping[str, int]) -> Size:
        means, features = self._means, len(self._asked.service.feature_names)
        rows = len(self._spine)
        size = size_of(
            self._lots, events, rows, self._spine.table.nbytes, memory=means.memory,
            processes=self._processes, as_served=self._options.as_served,
            output_bytes=min(rows, self._part_rows) * (32 + 24 * features),
        )  # fmt: skip
        return size if means.executor is None else replace(size, buckets=max(REMOTE_BUCKETS, size.buckets))

    def _require_events(self, files: Mapping[str, Mapping[str, int]]) -> None:
        """Without any event every count would be 0 and look like a fact."""
        for group in by_source(self._asked.views).values():
            source = group[0].source
            if not files[source.name] and not event_files(self._lake, source):
                raise UsageError(
                    f"no events of source {source.name!r} in the lake {self._lake.url}, which {group[0].id} needs",
                    hint=f"is FS_LAKE the lake that the worker of topic {source.topic} writes to, and has it run? "
                    f"Files of history come with: featurestore load {source.name} FILE",
                    field="lake",
                )


def _pieces(files: Mapping[str, int], processes: int) -> list[list[str]]:
    """Files that are read by one task, in the order of their names."""
    limit = max(1, min(PIECE_EVENTS, -(-sum(files.values()) // max(1, processes))))
    pieces: list[list[str]] = [[]]
    held = 0
    for path, rows in files.items():
        if pieces[-1] and held + rows > limit:
            pieces.append([])
            held = 0
        pieces[-1].append(path)
        held += rows
    return pieces


def _write_part(out: Path, number: int, rows: Callable[[], pa.Table]) -> ExportedFile:
    """One file; as it is there where an export goes on."""
    name = f"part-{number:05}.parquet"
    path = out / name
    if path.exists():
        data = path.read_bytes()
        return ExportedFile(name, pq.read_metadata(pa.BufferReader(data)).num_rows, hashlib.sha256(data).hexdigest())
    table, sink = rows(), pa.BufferOutputStream()
    pq.write_table(table, sink, **PARQUET)
    written = sink.getvalue()
    draft = out.parent / f".{name}"
    draft.unlink(missing_ok=True)
    write_durably(draft, written)
    draft.rename(path)
    return ExportedFile(name, table.num_rows, hashlib.sha256(written).hexdigest())
