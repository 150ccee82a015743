"""A published service over departures, and a lake that holds some."""

from typing import Any

import numpy as np
import pyarrow as pa

from featurestore import Entity, FeatureService, Source, agg, col, feature, feature_view
from featurestore.clock import HOUR, MINUTE
from featurestore.definitions.compile import check
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.offline.lake import Lake, app_id
from featurestore.registry.catalog import Catalog
from tests.unit.offline.tables import CONTRACT, START, source

Airport = Entity("airport", keys={"origin": str})
Gate = Entity("gate", keys={"origin": str, "gate": int})
Departures = Source(
    "departures", topic="flights.departures", contract="flights.departures/v1", event_time="departed_at"
)


AirportDelay = feature_view(entity=Airport, source=Departures, version=1)(
    type(
        "AirportDelay",
        (),
        {
            "departures_1h": agg.count(window="1h"),
            "delay_mean_1h": agg.mean(col("delay"), window="1h"),
            "delay_max": agg.max(col("delay"), default=-1.0),
            "last_gates": agg.last_n(col("gate"), n=2),
            "last_time": agg.last(col("departed_at")),
            "share": feature("departures_1h") / feature("departures_1h"),
        },
    )
)
GateUse = feature_view(entity=Gate, source=Departures, version=2)(
    type("GateUse", (), {"departures": agg.count(), "last_delay": agg.last(col("delay"))})
)


def catalog(contract: str = CONTRACT) -> Catalog:
    services = [
        FeatureService("flight_delay", views=[AirportDelay, GateUse.pick("departures")]),
        FeatureService("gates", views=[GateUse]),
    ]
    found = check([AirportDelay, GateUse], services, {"flights.departures/v1": source(contract).contract})
    return Catalog(
        revision=3,
        digest="d",
        created_at=0,
        views={(view.name, view.version): view for view in found.views},
        services={service.name: {1: service} for service in found.services},
        aliases={service.name: {"prod": 1} for service in found.services},
        sources={"departures": found.views[0].source},
        contracts=dict(found.contracts),
    )


EVENTS: list[dict[str, Any]] = [
    {"departed_at": START, "origin": "JFK", "gate": 7, "delay": 10.0},
    {"departed_at": START + 10 * MINUTE, "origin": "JFK", "gate": 8, "delay": None},
    {"departed_at": START + 20 * MINUTE, "origin": "LGA", "gate": 7, "delay": 4.0},
    {"departed_at": START + 2 * HOUR, "origin": "JFK", "gate": 7, "delay": 30.0},
    {"departed_at": START + 2 * HOUR, "origin": None, "gate": 7, "delay": 99.0},
]


def table_of(events: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema(
        {
            "departed_at": pa.timestamp("us", "UTC"),
            "origin": pa.string(),
            "gate": pa.int64(),
            "delay": pa.float64(),
        }
    )
    return pa.Table.from_pylist(events, schema)


def stored(lake: Lake, events: list[dict[str, Any]] | None = None, first: int = 0) -> Lake:
    """The lake, with these events appended at offsets from `first` on."""
    given = EVENTS if events is None else events
    offsets = np.arange(first, first + len(given))
    rows = in_time_order(system_columns(table_of(given), 0, offsets, "departed_at", visible_time=START))
    lake.append(events_table("departures"), rows, {app_id("departures", 0): first + len(given) - 1})
    return lake


def spine(*rows: tuple[str | None, int | None, int], **columns: Any) -> pa.Table:
    """Rows of (origin, gate, instant)."""
    origins, gates, times = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "label": pa.array(range(len(rows)), pa.int32()),
            "origin": pa.array(origins, pa.string()),
            "gate": pa.array(gates, pa.int64()),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        }
        | columns
    )
