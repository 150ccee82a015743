"""Definitions and stored values that the tests and the bench of the read API look up."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.clock import HOUR
from featurestore.contracts.contract import parse_contract
from featurestore.definitions.aggregates import agg
from featurestore.definitions.compile import Definitions, check
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.expressions import col, feature
from featurestore.definitions.model import Entity, FeatureService, Source, feature_view
from featurestore.engine.columns import event_batch
from featurestore.engine.state import ViewState

CONTRACT = parse_contract(
    "flights.departures/v1",
    json.dumps(
        {
            "type": "record",
            "name": "Departure",
            "fields": [
                {"name": "departed_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
                {"name": "origin", "type": "string"},
                {"name": "carrier", "type": ["null", "string"], "default": None},
                {"name": "flight", "type": ["null", "long"], "default": None},
                {"name": "dep_delay", "type": ["null", "double"], "default": None},
            ],
        }
    ),
)
Airport = Entity("airport", keys={"origin": str})
Leg = Entity("leg", keys={"origin": str, "flight": int})
Departures = Source("departures", "flights.departures", "flights.departures/v1", "departed_at")


@feature_view(entity=Airport, source=Departures, version=1, freshness="30s")
class AirportDelay:
    """Ten features of one airport."""

    departures_1h = agg.count(window="1h")
    departures_24h = agg.count(window="24h")
    delay_sum_1h = agg.sum(col("dep_delay"), window="1h")
    delay_mean_1h = agg.mean(col("dep_delay"), window="1h", default=0.0)
    delay_mean_24h = agg.mean(col("dep_delay"), window="24h")
    delay_max_24h = agg.max(col("dep_delay"), window="24h")
    delay_min_24h = agg.min(col("dep_delay"), window="24h")
    late_1h = agg.count(where=col("dep_delay") > 15, window="1h")
    late_share_1h = feature("late_1h") / feature("departures_1h")
    last_carrier = agg.last(col("carrier"))


@feature_view(entity=Leg, source=Departures, version=1, freshness="30s", ttl="6h")
class LegDelay:
    """A composite entity, and a latest value that expires."""

    departures_1h = agg.count(window="1h")
    last_delay = agg.last(col("dep_delay"))


@feature_view(entity=Airport, source=Departures, version=1)
class AirportTotal:
    """No freshness objective, and a value over the whole history."""

    departures = agg.count()


# A class decorator's result is not what type checkers take the name for.
_airport_delay: Any = AirportDelay
VIEWS: list[Any] = [AirportDelay, LegDelay, AirportTotal]
flight_delay = FeatureService("flight_delay", views=[_airport_delay])
leg_delay = FeatureService("leg_delay", views=[VIEWS[1], _airport_delay.pick("departures_1h", "last_carrier")])


def definitions() -> Definitions:
    return check(VIEWS, [flight_delay, leg_delay], {CONTRACT.id: CONTRACT})


def view(name: str) -> CompiledView:
    [found] = [v for v in definitions().views if v.name == name]
    return found


def departures(rows: Sequence[tuple[int, str, str | None, int | None, float | None]]) -> pa.Table:
    """Rows of (departed_at µs, origin, carrier, flight, dep_delay), offsets in the order given, partition 0."""
    times, origins, carriers, flights, delays = zip(*rows, strict=True)
    return pa.table(
        {
            "departed_at": pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "origin": pa.array(origins, pa.string()),
            "carrier": pa.array(carriers, pa.string()),
            "flight": pa.array(flights, pa.int64()),
            "dep_delay": pa.array(delays, pa.float64()),
            "_partition": pa.array(np.zeros(len(rows)), pa.int32()),
            "_offset": pa.array(np.arange(len(rows)), pa.int64()),
        }
    )


def stored(of: CompiledView, table: pa.Table, *, partition: int = 0, offset: int | None = None) -> dict[str, bytes]:
    """What a worker would write for these events: canonical key → packed value.

    `offset` is what the last of them has in the topic that the view folds; they are its first where it is None.
    """
    state = ViewState(of)
    batch = event_batch(of.source, tuple(of.keys), table)
    fresh = state.unknown(batch)
    state.load(fresh, [None] * len(fresh), partition)
    folded = state.fold(batch, np.arange(len(batch)))
    last = len(batch) - 1 if offset is None else offset
    values = state.encode(folded.slots, generation=0, partition=partition, offset=last)
    return dict(zip(folded.keys, values, strict=True))


def a_busy_day(now: int, entities: int, events: int = 40) -> pa.Table:
    """`events` departures of each of `entities` airports `u0…`, spread over the 24 hours before `now`."""
    step = 24 * HOUR // events
    rows = [
        (now - step * (events - i) + entity, f"u{entity}", f"C{entity % 7}", entity % 500, float((entity * 7 + i) % 61))
        for i in range(events)
        for entity in range(entities)
    ]
    return departures(rows)
