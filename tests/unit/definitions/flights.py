"""Small sound definitions that tests bend in one place."""

import json
from typing import Any

from featurestore import Entity, FeatureService, FeatureView, Source, agg, col, feature, feature_view
from featurestore.contracts.contract import Contract, parse_contract
from featurestore.definitions.compile import compile_view
from featurestore.definitions.compiled import CompiledView
from featurestore.errors import Fault

CONTRACT_ID = "flights.departures/v1"
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Departure",
    "fields": [
        {"name": "departed_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "scheduled_at", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
        {"name": "origin", "type": "string"},
        {"name": "tailnum", "type": ["null", "string"]},
        {"name": "carrier", "type": "string"},
        {"name": "distance", "type": "long"},
        {"name": "dep_delay", "type": ["null", "double"]},
        {"name": "cancelled", "type": "boolean"},
    ],
}

Airport = Entity("airport", keys={"origin": str})
Departures = Source(
    "departures", topic="flights.departures", contract=CONTRACT_ID, event_time="departed_at", key=["tailnum"]
)


def contract(contract_id: str = CONTRACT_ID, schema: dict[str, Any] | None = None) -> Contract:
    return parse_contract(contract_id, json.dumps(schema or SCHEMA))


def view(name: str = "AirportDelay", /, **given: Any) -> FeatureView:
    """A view of one feature, or of `features`; other keywords are those of `feature_view`."""
    features = given.pop("features", {"departures_1h": agg.count(window="1h")})
    settings = {"entity": Airport, "source": Departures, "version": 1, **given}
    return feature_view(**settings)(type(name, (), dict(features)))


def delays(**given: Any) -> FeatureView:
    """The view of the design page."""
    return view(
        features={
            "departures_1h": agg.count(window="1h"),
            "delay_mean_1h": agg.mean(col("dep_delay"), window="1h", default=0),
            "delay_max_24h": agg.max(col("dep_delay"), window="24h"),
            "late_1h": agg.count(where=col("dep_delay") > 15, window="1h"),
            "late_share_1h": feature("late_1h") / feature("departures_1h"),
            "last_carrier": agg.last(col("carrier")),
        }
        | given.pop("more", {}),
        **given,
    )


def service(*views: Any, name: str = "flight_delay", **given: Any) -> FeatureService:
    return FeatureService(name, views=list(views), **given)


def compiled(raw: FeatureView) -> CompiledView:
    found, faults = compile_view(raw, contract())
    assert faults == []
    assert found is not None
    return found


def faults_of(raw: FeatureView) -> list[Fault]:
    found, faults = compile_view(raw, contract())
    assert (found is None) == bool(faults), faults
    return faults
