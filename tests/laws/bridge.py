"""From the oracle's vocabulary to the package's: the same features as a checked view, the same events as a table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.contracts.contract import Contract, parse_contract
from featurestore.definitions.aggregates import Aggregate
from featurestore.definitions.compile import compile_view
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.expressions import Expr, col, feature
from featurestore.definitions.model import Entity, Feature, FeatureView, Source
from featurestore.engine.columns import EventBatch, canonical_key, event_batch
from featurestore.types import format_duration
from tests.oracle.meaning import OracleEvent, OracleFeature

AVRO: dict[str, Any] = {
    "bool": "boolean",
    "int": "long",
    "float": "double",
    "str": "string",
    "time": {"type": "long", "logicalType": "timestamp-micros"},
}
ARROW: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "str": pa.string(),
    "time": pa.timestamp("us", tz="UTC"),
}


def contract_of(columns: Mapping[str, str]) -> Contract:
    """Nullable columns by kind (`bool int float str`), and `event_time`."""
    fields = [{"name": name, "type": ["null", AVRO[kind]], "default": None} for name, kind in columns.items()]
    fields.append({"name": "event_time", "type": AVRO["time"]})
    record = {"type": "record", "name": "Event", "fields": fields}
    return parse_contract("events/v1", json.dumps(record))


def view_of(
    features: Sequence[OracleFeature],
    columns: Mapping[str, str],
    *,
    keys: Mapping[str, Any],
    where: Mapping[str, Expr] | None = None,
    derived: Mapping[str, Expr] | None = None,
    lateness: str = "0s",
    source_key: Sequence[str] = (),
) -> CompiledView:
    """The view that means what the oracle's features mean. `where` gives the conditions as expressions, by feature."""
    ttl = next((f.ttl for f in features if f.ttl is not None), None)
    source = Source(
        "events", topic="events", contract="events/v1", event_time="event_time", lateness=lateness, key=source_key
    )
    specs = [Feature(f.name, _aggregate(f, (where or {}).get(f.name))) for f in features]
    specs += [Feature(name, expr) for name, expr in (derived or {}).items()]
    view = FeatureView(
        name="view",
        entity=Entity("entity", keys=dict(keys)),
        source=source,
        version=1,
        features=tuple(specs),
        ttl=None if ttl is None else format_duration(ttl),
        label="View",
    )
    compiled, faults = compile_view(view, contract_of(columns))
    assert compiled is not None, faults
    return compiled


def _aggregate(f: OracleFeature, where: Expr | None) -> Aggregate:
    return Aggregate(
        f.op,
        None if f.column is None else col(f.column),
        window=None if f.window is None else format_duration(f.window),
        hop=None if f.hop is None else format_duration(f.hop),
        where=where,
        default=f.default,
        extra=() if f.n is None else (("n", f.n),),
    )


def table_of(events: Sequence[OracleEvent], columns: Mapping[str, str]) -> pa.Table:
    """Events as the lake and the lanes hold them."""
    kinds = {**columns, "event_time": "time"}
    data = {name: pa.array([e[name] for e in events], ARROW[kind]) for name, kind in kinds.items()}
    data["_partition"] = pa.array([e["partition"] for e in events], pa.int32())
    data["_offset"] = pa.array([e["offset"] for e in events], pa.int64())
    return pa.table(data)


def batch_of(view: CompiledView, events: Sequence[OracleEvent], columns: Mapping[str, str]) -> EventBatch:
    return event_batch(view.source, list(view.keys), table_of(events, columns))


def key_of(view: CompiledView, key: Mapping[str, Any]) -> str:
    return canonical_key([key[name] for name in view.keys])


def log_offsets(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.int64)


DERIVED = feature("total") / feature("events")
