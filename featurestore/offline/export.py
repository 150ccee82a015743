"""Training sets: for each row of a spine, the values the online store has at that row's instant."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.clock import format_instant
from featurestore.definitions.compiled import CompiledService, CompiledSource, CompiledView
from featurestore.engine.columns import ARROW_TYPES, EventBatch, FeatureColumn
from featurestore.engine.own import own_features
from featurestore.errors import UsageError
from featurestore.offline.events import count_events, events_table, read_events
from featurestore.offline.files import PARQUET, write_durably
from featurestore.offline.history import History, by_source, narrowed
from featurestore.offline.lake import Lake
from featurestore.offline.manifest import MANIFEST, ExportedFile, Kind, Manifest
from featurestore.offline.output import check_target, replacing
from featurestore.offline.spine import Spine, read_spine, refuse_clashes
from featurestore.offline.visibility import Known, Visibility, visible_table
from featurestore.registry.catalog import Catalog
from featurestore.telemetry import package_version
from featurestore.types import STATUS_CODES, STATUS_SUFFIX, STATUSES, Dtype, Status

MAX_ROWS = 1_000_000
"""Rows of the spine that are computed, and stored in one file, at a time."""

_STATUS_TYPE = pa.string()
_STATUS_TEXTS = pa.array([status.value for status in STATUSES], _STATUS_TYPE)


def export(  # noqa: PLR0913 - the words of the verb
    service: str,
    spine: Any,
    out: Path | str,
    *,
    lake: Lake,
    catalog: Catalog,
    now: int,
    time_column: str = "event_time",
    status: bool = False,
    as_served: bool = False,
) -> Manifest:
    """Write `out/part-*.parquet` and `out/manifest.json`: the spine's rows, in order, with a column for each feature.

    `service` as in `flight_delay`, `flight_delay@prod`, `flight_delay@3`; `spine` as `read_spine` takes it; `status`
    adds a `<view>.<feature>__status` column for each feature; `now` (µs) is written into the manifest only. Nulls stay
    null. Each value counts every event with `event_time <= T`, however late it arrived; with `as_served` only those
    that could be read online by T (`visibility.Visibility`). The directory appears, or is replaced, as a whole. Raises
    UsageError (a bad spine, an unknown service, no events, an `out` that is not an export), Unavailable.
    """
    target = Path(out).absolute()
    check_target(target)
    resolved, number = catalog.resolve(service)
    views = service_views(resolved, catalog)
    fields = {field.name: field.dtype for field in resolved.request}
    checked = read_spine(spine, key_columns(views), time_column, fields)
    known = _versions(lake, views, as_served)
    builder = Builder(lake, views, resolved, checked, status=status, as_served=as_served, versions=known)
    with replacing(target) as draft:
        files = _write_parts(draft, builder)
        manifest = Manifest(
            kind=Kind.AS_SERVED if as_served else Kind.EXACT,
            service=resolved.name,
            version=number,
            rows=len(checked),
            time_column=time_column,
            columns=tuple(builder.schema.names[checked.table.num_columns :]),
            files=files,
            views={view.id: view.fingerprint for view in views},
            service_fingerprint=resolved.fingerprint,
            registry_revision=catalog.revision,
            lake_versions=known,
            visibility=builder.visibility,
            spine_sha256=digest(checked.table),
            created_at=format_instant(now),
            engine=package_version(),
        )
        write_durably(draft / MANIFEST, manifest.to_json().encode())
    return manifest


def build(
    lake: Lake,
    views: Sequence[CompiledView],
    service: CompiledService,
    spine: Spine,
    *,
    status: bool = False,
    as_served: bool = False,
) -> pa.Table:
    """The whole training set in memory; `views` are the service's."""
    builder = Builder(lake, views, service, spine, status=status, as_served=as_served, versions={})
    parts = [builder.rows(start) for start in range(0, len(spine), MAX_ROWS)]
    return pa.concat_tables(parts) if parts else builder.schema.empty_table()


class Builder:
    """Computes the rows of a training set, a piece at a time. Events are read when it is made."""

    def __init__(
        self,
        lake: Lake,
        views: Sequence[CompiledView],
        service: CompiledService,
        spine: Spine,
        *,
        status: bool,
        as_served: bool,
        versions: Mapping[str, int],
    ) -> None:
        self._known: dict[str, Known] = {}
        self._as_served = as_served
        self._views = {
            view.name: narrowed(view, [feature for name, feature in service.read if name == view.name])
            for view in views
        }
        self._service, self._status = service, status
        self.spine = spine
        added = _added_fields(self._views, service, status)
        refuse_clashes(spine, {field.name for field in added})
        self.schema = pa.schema([*spine.table.schema, *added])
        _require_events(lake, views, versions)
        until = int(spine.at.max()) if len(spine) else None

        def read(source: CompiledSource, names: Sequence[str], _: Sequence[CompiledView]) -> pa.Table:
            version = versions.get(events_table(source.name))
            return read_events(lake, source, names, until=until, version=version, visible_time=as_served)

        def visible(view: CompiledView, batch: EventBatch) -> np.ndarray:
            record = Visibility.read(lake, view, versions.get(visible_table(view)))
            instants, known = record.of(batch)
            self._known[view.id] = known
            return instants

        self._history = History(list(self._views.values()) if len(spine) else [], read, visible if as_served else None)

    @property
    def visibility(self) -> Mapping[str, Known] | None:
        """Of `as_served`, and of the views that `rows` has evaluated."""
        return self._known if self._as_served else None

    def rows(self, start: int) -> pa.Table:
        """At most `MAX_ROWS` rows from `start` on."""
        rows = slice(start, start + MAX_ROWS)
        at = self.spine.at[rows]
        keys = {view.id: self.spine.canonical(tuple(view.keys), rows) for view in self._views.values()}
        answers = self._history.evaluate(keys, at)
        for view in self._views.values():
            _require_seen(view, answers[view.id], start)
        found = {f"{v.name}.{column.name}": column for v in self._views.values() for column in answers[v.id]}
        request = {name: column[rows] for name, column in self.spine.request.items()}
        own = own_features(self._service, found, request, at.size)
        arrays = list(self.spine.table.slice(start, at.size).columns)
        for column in (*(found[f"{view}.{feature}"] for view, feature in self._service.columns), *own):
            arrays += _arrays(column, self._status)
        return pa.table(arrays, schema=self.schema)


def _versions(lake: Lake, views: Sequence[CompiledView], as_served: bool) -> dict[str, int]:
    """Of every table that is read, as far as it is there. Events first: of those the record says what was readable."""
    tables = [*(events_table(view.source.name) for view in views)]
    tables += [visible_table(view) for view in views] if as_served else []
    versions = {name: lake.version(name) for name in dict.fromkeys(tables)}
    return {name: version for name, version in sorted(versions.items()) if version is not None}


def service_views(service: CompiledService, catalog: Catalog) -> list[CompiledView]:
    return [catalog.views[key] for key in service.views]


def key_columns(views: Sequence[CompiledView]) -> dict[str, Dtype]:
    """Every entity key of the views, in order; the compiler has made sure that a name has one type."""
    return {name: dtype for view in views for name, dtype in view.keys.items()}


def digest(table: pa.Table) -> str:
    """SHA-256 (hex) of a table as one Arrow IPC stream: of its values, names and types, not of how it was chunked."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain, max_chunksize=MAX_ROWS)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _added_fields(views: Mapping[str, CompiledView], service: CompiledService, status: bool) -> list[pa.Field]:
    types = [views[view].types[feature] for view, feature in service.columns]
    types += [(dtype, False) for dtype in service.own_types.values()]
    fields = []
    for name, (dtype, many) in zip(service.feature_names, types, strict=True):
        kind = ARROW_TYPES[dtype]
        fields.append(pa.field(name, pa.list_(kind) if many else kind))
        if status:
            fields.append(pa.field(f"{name}{STATUS_SUFFIX}", _STATUS_TYPE))
    return fields


def _arrays(column: FeatureColumn, status: bool) -> list[pa.Array]:
    values = column.to_arrow()
    return [values, _STATUS_TEXTS.take(pa.array(column.status))] if status else [values]


def _require_seen(view: CompiledView, columns: Sequence[FeatureColumn], start: int) -> None:
    """What a lookup of such a view refuses is not for training on either."""
    if view.on_missing != "error" or not columns:
        return
    unseen = np.flatnonzero(columns[0].status == STATUS_CODES[Status.NOT_FOUND])
    if unseen.size:
        raise UsageError(
            f"{view.id} has never seen the entities of {unseen.size} rows of the spine, as of row {start + unseen[0]}",
            hint="leave these rows out; the view's on_missing is `error`, so that nothing stands in for their values",
            field="spine",
        )


def _require_events(lake: Lake, views: Sequence[CompiledView], versions: Mapping[str, int]) -> None:
    """Without any event every count would be 0 and look like a fact."""
    for group in by_source(views).values():
        source = group[0].source
        if not count_events(lake, source, versions.get(events_table(source.name))):
            raise UsageError(
                f"no events of source {source.name!r} in the lake {lake.url}, which {group[0].id} needs",
                hint=f"is FS_LAKE the lake that the worker of topic {source.topic} writes to, and has it run?",
                field="lake",
            )


def _write_parts(directory: Path, builder: Builder) -> tuple[ExportedFile, ...]:
    # An empty spine gives one file without rows, so that readers find the schema.
    starts = range(0, max(1, len(builder.spine)), MAX_ROWS)
    return tuple(_write_part(directory, number, builder, start) for number, start in enumerate(starts))


def _write_part(directory: Path, number: int, builder: Builder, start: int) -> ExportedFile:
    rows = builder.rows(start) if len(builder.spine) else builder.schema.empty_table()
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, **PARQUET)
    data = sink.getvalue()
    name = f"part-{number:05}.parquet"
    write_durably(directory / name, data)
    return ExportedFile(name, rows.num_rows, hashlib.sha256(data).hexdigest())
