"""The real engine on a table, with no services: for unit tests of definitions and for notebooks.

store = LocalStore([AirportDelay], departures)          # pandas, Polars, Arrow
store.lookup({"origin": "JFK"}, at="2013-07-01T12:00:00Z")["departures_1h"]
store.lookup({"origin": "JFK"}, service=flight_delay, request={"seats": 180})["flight_delay.seats_per_departure"]
store.features(labels).to_polars()                      # a spine, and every feature beside it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import Clock, Instant, SystemClock, format_instant, to_instant
from featurestore.contracts.contract import Contract, load_contract, parse_contract
from featurestore.contracts.tables import check_table
from featurestore.definitions.compile import check
from featurestore.definitions.compiled import CompiledService, CompiledView
from featurestore.definitions.features import DEFAULTS
from featurestore.definitions.model import FeatureService, FeatureView, Source
from featurestore.definitions.services import compile_service
from featurestore.engine.columns import ARROW_TYPES, NEVER, EventBatch, FeatureColumn, canonical_key, event_batch
from featurestore.engine.history import evaluate_history
from featurestore.engine.own import own_features
from featurestore.errors import DefinitionError, Fault, InvalidRequest, NotFound, UsageError
from featurestore.offline.asking import key_columns
from featurestore.offline.assembly import Assembly
from featurestore.offline.frame import Frame
from featurestore.offline.lots import ROW, answer_columns
from featurestore.offline.series import Series, key_of, narrowed_to
from featurestore.offline.spine import read_spine
from featurestore.types import PYTHON_DTYPES, STATUSES

__all__ = ["Answer", "LocalStore"]


class Answer(Mapping[str, Any]):
    """The features of one entity: full name → value, None for null.

    `answer["departures_1h"]` finds `airport_delay.departures_1h` too, where no other view has such a feature.
    """

    def __init__(self, entity: Mapping[str, Any], at: int, values: dict[str, Any], status: dict[str, str]) -> None:
        self.entity = dict(entity)
        self.at = at
        """Microseconds since 1970 UTC."""
        self.status: Mapping[str, str] = status
        """What each value is worth, by full name: `ok`, `default`, `not_found` or `expired`."""
        self._values = values

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        matches = [full for full in self._values if full.partition(".")[2] == name]
        if len(matches) > 1:
            raise InvalidRequest(f"{name!r} is a feature of several views: {', '.join(matches)}", field=name)
        if not matches:
            raise NotFound("feature", name, [*self._values, *(full.partition(".")[2] for full in self._values)])
        return self._values[matches[0]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        lines = (f"  {name} = {value!r} ({self.status[name]})" for name, value in self._values.items())
        return "\n".join([f"{self.entity} at {format_instant(self.at)}", *lines])


class LocalStore:
    """Exact values at any instant, from events in a table. Nothing is started and nothing is written.

    `events` is one table, or a mapping from source name to table. Contracts come from `schemas` (a directory of
    `<topic>/v<n>.avsc`); without it they are read off the table's columns, so that a notebook needs no schema.
    Rows that break the contract are refused here, not skipped. Rows of one instant are in the table's order.
    """

    def __init__(
        self,
        views: Sequence[FeatureView | type],
        events: Any,
        *,
        schemas: str | Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        sources = {view.source.name: view.source for view in views if isinstance(view, FeatureView)}
        tables = _tables(events, sources)
        contracts = {
            source.contract: _contract(source, tables[name], None if schemas is None else Path(schemas))
            for name, source in sources.items()
        }
        self._views = check(views, (), contracts).views
        checked = {name: _checked(source, contracts[source.contract], tables[name]) for name, source in sources.items()}
        self._batches: dict[str, EventBatch] = {
            view.id: event_batch(view.source, list(view.keys), checked[view.source.name]) for view in self._views
        }

    def lookup(
        self,
        entity: Mapping[str, Any],
        at: Instant | None = None,
        *,
        service: FeatureService | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Features of every view whose entity keys are given, at `at`; with a `service` those that it answers.

        Without `at`: everything there is, at the later of now and the entity's latest event, as online. `request` has
        the service's request fields, one value each.
        """
        answered = None if service is None else self._compiled(service)
        fields = _fields(answered, request or {})
        views = self._views_for(entity) if answered is None else self._views_of(answered, entity)
        now = self._clock.now()
        keys = {view.id: self._key(view, entity) for view in views}
        instant = max([now, *(self._latest(v, keys[v.id]) for v in views)]) if at is None else _instant(at)
        found: dict[str, FeatureColumn] = {}
        for view in views:
            asked = pa.array([keys[view.id]], pa.string())
            columns = evaluate_history(view, self._batches[view.id], asked, np.array([instant]))
            found |= {f"{view.name}.{column.name}": column for column in columns}
        if answered is not None:
            own = own_features(answered, found, fields, 1)
            found |= {f"{answered.name}.{column.name}": column for column in own}
            found = {name: found[name] for name in answered.feature_names}
        values = {name: column.to_list()[0] for name, column in found.items()}
        status = {name: STATUSES[int(column.status[0])].value for name, column in found.items()}
        return Answer(entity, instant, values, status)

    def features(
        self,
        spine: Any,
        *,
        service: FeatureService | None = None,
        time_column: str = "event_time",
        status: bool = False,
        as_of: bool = False,
    ) -> Frame:
        """The rows of an `exact` training set: a spine as `featurestore.export` takes it, with the features of every
        view, or of a `service`, beside it."""
        answered = _everything(self._views) if service is None else self._compiled(service)
        views = [view for view in self._views if (view.name, view.version) in answered.views]
        fields = {field.name: field.dtype for field in answered.request}
        checked = read_spine(spine, key_columns(views), time_column, fields)
        assembly = Assembly(answered, views, checked, status=status, as_of=as_of)
        found: dict[str, pa.Array] = {ROW: pa.array(np.arange(len(checked)))}
        for view in views:
            asked = checked.canonical(tuple(view.keys))
            for column in evaluate_history(view, self._batches[view.id], asked, checked.at):
                found |= answer_columns(f"{view.name}.{column.name}", column, as_of=as_of)
        table = pa.table(found)
        return Frame(assembly.rows([lambda _start, _stop: table], 0, len(checked)), "features")

    def series(self, view: FeatureView, feature: str, entity: Mapping[str, Any], until: int | None = None) -> Series:
        """One feature of one entity over time, which `view.plot(…, store=self)` draws."""
        known = {(compiled.name, compiled.version): compiled for compiled in self._views}
        if (view.name, view.version) not in known:
            raise NotFound("view", view.id, (v.id for v in self._views), hint="make the store with this view")
        compiled = known[view.name, view.version]
        return Series(narrowed_to(compiled, feature), feature, key_of(compiled, entity), self._batches[compiled.id])

    def _compiled(self, service: FeatureService) -> CompiledService:
        compiled, faults = compile_service(service, {(view.name, view.version): view for view in self._views})
        if faults:
            raise DefinitionError(faults)
        if compiled is None:
            hint = f"make the store of all views that {service.name} reads"
            raise UsageError(f"the store lacks a view of {service.name}", hint=hint, field="service")
        return compiled

    def _views_of(self, service: CompiledService, entity: Mapping[str, Any]) -> list[CompiledView]:
        views = [view for view in self._views if (view.name, view.version) in service.views]
        keys = {name: None for view in views for name in view.keys}
        for name in entity:
            if name not in keys:
                raise NotFound("entity key", name, keys)
        for name in keys:
            if name not in entity:
                raise InvalidRequest(f"{name} is missing", hint=f"{service.name} needs {', '.join(keys)}", field=name)
        return views

    def _latest(self, view: CompiledView, key: str | None) -> int:
        batch = self._batches[view.id]
        mine = pc.equal(batch.keys, pa.scalar(key, pa.string())).fill_null(False).to_numpy(zero_copy_only=False)
        return int(batch.time[mine].max(initial=NEVER))

    def _views_for(self, entity: Mapping[str, Any]) -> list[CompiledView]:
        views = [view for view in self._views if set(view.keys) <= set(entity)]
        used = {name for view in views for name in view.keys}
        known = {name for view in self._views for name in view.keys}
        for name in entity:
            if name not in known:
                raise NotFound("entity key", name, known)
        if not views or used != set(entity):
            raise InvalidRequest(
                f"no view has the entity keys {', '.join(entity) or 'given (none)'}",
                hint="the views need " + "; ".join(f"{v.name}: {', '.join(v.keys)}" for v in self._views),
            )
        return views

    def _key(self, view: CompiledView, entity: Mapping[str, Any]) -> str | None:
        parts = [entity[name] for name in view.keys]
        for (name, dtype), part in zip(view.keys.items(), parts, strict=True):
            if part is not None and PYTHON_DTYPES.get(type(part)) is not dtype:
                raise InvalidRequest(f"{name} is {part!r}, expected {dtype}", field=name)
        return None if None in parts else canonical_key(parts)


def _everything(views: Sequence[CompiledView]) -> CompiledService:
    columns = tuple((view.name, feature) for view in views for feature in view.order)
    return CompiledService("features", tuple((view.name, view.version) for view in views), columns, "")


def _instant(at: Instant) -> int:
    try:
        return to_instant(at)
    except ValueError as problem:
        raise InvalidRequest(f"at: {problem}", field="at") from problem


def _fields(service: CompiledService | None, request: Mapping[str, Any]) -> dict[str, pa.Array]:
    """Request fields as columns of one row, checked as the API checks them."""
    known = {} if service is None else {field.name: field for field in service.request}
    for name in request:
        if name not in known:
            raise NotFound("request field", name, known, hint="" if service else "name the `service` that takes it")
    columns = {}
    for name, field in known.items():
        path, value = f"request.{name}", request.get(name)
        if name not in request and field.default is None:
            raise InvalidRequest(f"{path} is missing", field=path)
        try:
            sound = None if value is None else DEFAULTS[field.dtype](value)
        except ValueError as problem:
            raise InvalidRequest(f"{path} is {value!r}, expected {problem}", field=path) from None
        columns[name] = pa.array([sound], ARROW_TYPES[field.dtype])
    return columns


def _tables(events: Any, sources: Mapping[str, Source]) -> dict[str, pa.Table]:
    given = events if isinstance(events, Mapping) else dict.fromkeys(sources, events)
    if len(sources) > 1 and given is not events:
        raise UsageError(
            f"the views read {len(sources)} sources", hint="pass {source name: table}: " + ", ".join(sources)
        )
    missing = [name for name in sources if name not in given]
    if missing:
        raise NotFound("source table", missing[0], given)
    return {name: pa.table(given[name]) for name in sources}


def _contract(source: Source, table: pa.Table, schemas: Path | None) -> Contract:
    if schemas is not None:
        return load_contract(schemas, source.contract)
    fields = []
    for column in table.schema:
        avro = next((name for test, name in _AVRO if test(column.type)), None)
        if avro is None:
            continue
        required = column.name == source.event_time
        fields.append({"name": column.name, "type": avro} if required else _nullable(column.name, avro))
    if source.event_time not in {f["name"] for f in fields}:
        near = tuple(str(f["name"]) for f in fields)[:3]
        problem = f"the table has no timestamp column {source.event_time!r}"
        raise DefinitionError([Fault(f"{source.name}.event_time", problem, "a column of the table", near)])
    return parse_contract(source.contract, json.dumps({"type": "record", "name": "Event", "fields": fields}))


def _nullable(name: str, avro: Any) -> dict[str, Any]:
    return {"name": name, "type": ["null", avro], "default": None}


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


_AVRO: tuple[tuple[Any, Any], ...] = (
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_integer, "long"),
    (pa.types.is_floating, "double"),
    (_is_text, "string"),
    (pa.types.is_timestamp, {"type": "long", "logicalType": "timestamp-micros"}),
)


def _checked(source: Source, contract: Contract, table: pa.Table) -> pa.Table:
    valid, rejects = check_table(contract, table)
    if rejects:
        first = rejects[0]
        raise InvalidRequest(
            f"{len(rejects)} of {table.num_rows} events of {source.name} break the contract; "
            f"row {first.row}: {first.error} ({first.reason})",
            field=source.name,
        )
    rows = valid.num_rows
    valid = valid.append_column("_partition", pa.array(np.zeros(rows, np.int32)))
    return valid.append_column("_offset", pa.array(np.arange(rows, dtype=np.int64)))
