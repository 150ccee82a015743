"""Fifty features of one airport: what the service of a large model looks up."""

import json
from typing import Any

from featurestore.definitions.aggregates import agg
from featurestore.definitions.compile import Definitions, check
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.expressions import col, feature
from featurestore.definitions.model import FeatureService, feature_view
from tests.unit.serving import flights

VIEW, SERVICE = "airport_wide", "wide"
WINDOWS = ("1h", "2h", "3h", "24h", "48h")
"""Ten features over each."""


def _features(window: str) -> dict[str, Any]:
    delay = col("dep_delay")
    over = {"window": window}
    found = {
        "departures": agg.count(**over),
        "late": agg.count(where=delay > 15, **over),
        "flights": agg.count(col("flight"), **over),
        "delay_sum": agg.sum(delay, **over),
        "delay_mean": agg.mean(delay, **over),
        "delay_std": agg.std(delay, **over),
        "delay_min": agg.min(delay, **over),
        "delay_max": agg.max(delay, **over),
        "carrier": agg.last(col("carrier"), **over),
        "late_share": feature(f"late_{window}") / feature(f"departures_{window}"),
    }
    return {f"{name}_{window}": value for name, value in found.items()}


def definitions() -> Definitions:
    """Those of `flights`, this view, and a service of it."""
    members: dict[str, Any] = {}
    for window in WINDOWS:
        members |= _features(window)
    decorate = feature_view(entity=flights.Airport, source=flights.Departures, version=1, freshness="30s")
    wide: Any = decorate(type("AirportWide", (), members))
    services = [flights.flight_delay, flights.leg_delay, FeatureService(SERVICE, views=[wide])]
    return check([*flights.VIEWS, wide], services, {flights.CONTRACT.id: flights.CONTRACT})


def bodies(picked: list[list[str]]) -> list[bytes]:
    return [json.dumps({"service": SERVICE, "entities": {"origin": keys}}).encode() for keys in picked]


def view() -> CompiledView:
    [found] = [each for each in definitions().views if each.name == VIEW]
    return found
