"""A service with features of its own, over the views of `flights`."""

from typing import Any

from featurestore.definitions.compile import Definitions, check
from featurestore.definitions.expressions import feature, request
from featurestore.definitions.model import FeatureService
from tests.unit.serving import flights

# A class decorator's result is not what type checkers take the name for.
_airport: Any = flights.AirportDelay
_leg: Any = flights.LegDelay

trip_risk = FeatureService(
    "trip_risk",
    views=[_airport.pick("departures_1h", "delay_mean_1h"), _leg.pick("last_delay")],
    features={
        "delay_over_mean": request("expected_delay", float) / feature("airport_delay.delay_mean_1h"),
        "worse_than_leg": feature("airport_delay.delay_mean_1h") > feature("leg_delay.last_delay"),
        "same_carrier": request("carrier", str, default="B6") == feature("airport_delay.last_carrier"),
        "seats_left": request("seats", int, default=100) - request("sold", int, default=0),
        "flagged": request("checked", bool, default=False) | (feature("delay_over_mean") > 2),
    },
)
OWN = [f"trip_risk.{name}" for name in trip_risk.features]
NAMES = ["airport_delay.departures_1h", "airport_delay.delay_mean_1h", "leg_delay.last_delay", *OWN]


def definitions() -> Definitions:
    given = flights.definitions()
    return check(given.raw_views, [*given.raw_services, trip_risk], given.contracts)
