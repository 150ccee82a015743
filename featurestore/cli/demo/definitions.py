"""Features of every flight that left New York in 2013. A definitions file like any other: copy it and change it.

    featurestore plan definitions.py

The contract of the events is `schemas/flights.departures/v1.avsc`.
"""

from featurestore import Entity, FeatureService, Source, agg, col, feature, feature_view

OWNER = "flights@example.com"

Airport = Entity("airport", keys={"origin": str}, description="Where a flight leaves: EWR, JFK or LGA.")
Carrier = Entity("carrier", keys={"carrier": str}, description="The airline, as its two-letter code.")
Aircraft = Entity("aircraft", keys={"tailnum": str}, description="One airframe, by its registration.")
Route = Entity("route", keys={"origin": str, "dest": str}, description="A pair of airports.")

Departures = Source(
    "departures",
    topic="flights.departures",
    contract="flights.departures/v1",
    event_time="departed_at",
    # Messages are keyed by the aircraft: its view needs no shuffle, those of the other entities do.
    key=["tailnum"],
    owner=OWNER,
    description="One event for each departure, on time, late or cancelled.",
)

_late = col("dep_delay") > 15


@feature_view(entity=Airport, source=Departures, version=1, owner=OWNER, freshness="30s")
class AirportDelay:
    """How an airport has been running lately."""

    departures_1h = agg.count(window="1h")
    departures_24h = agg.count(window="24h")
    delay_mean_1h = agg.mean(col("dep_delay"), window="1h", default=0.0)
    delay_max_24h = agg.max(col("dep_delay"), window="24h")
    delay_std_24h = agg.std(col("dep_delay"), window="24h")
    late_1h = agg.count(where=_late, window="1h")
    late_share_1h = feature("late_1h") / feature("departures_1h")
    destinations_24h = agg.approx_distinct(col("dest"), window="24h")
    last_carrier = agg.last(col("carrier"))


@feature_view(entity=Carrier, source=Departures, version=1, owner=OWNER, freshness="30s")
class CarrierPunctuality:
    """How well a carrier keeps its timetable."""

    flights_24h = agg.count(window="24h")
    cancelled_24h = agg.count(where=col("cancelled"), window="24h")
    cancelled_share_24h = feature("cancelled_24h") / feature("flights_24h")
    delay_mean_1h = agg.mean(col("dep_delay"), window="1h")
    delay_mean_7d = agg.mean(col("dep_delay"), window="7d")
    delay_std_7d = agg.std(col("dep_delay"), window="7d")
    running_late = feature("delay_mean_1h") > feature("delay_mean_7d")
    last_delays = agg.last_n(col("dep_delay"), n=5)


@feature_view(entity=Aircraft, source=Departures, version=1, owner=OWNER, freshness="30s")
class TailActivity:
    """What an aircraft has been doing; a delay in the morning follows it through the day."""

    flights_24h = agg.count(window="24h")
    flights_7d = agg.count(window="7d")
    miles_7d = agg.sum(col("distance"), window="7d")
    delay_max_24h = agg.max(col("dep_delay"), window="24h")
    last_delay = agg.last(col("dep_delay"))
    last_dests = agg.last_n(col("dest"), n=3)
    first_carrier = agg.first(col("carrier"))


@feature_view(entity=Route, source=Departures, version=1, owner=OWNER, freshness="30s")
class RouteTraffic:
    """What happens between two airports."""

    departures_24h = agg.count(window="24h")
    departures_7d = agg.count(window="7d")
    cancelled_7d = agg.count(where=col("cancelled"), window="7d")
    delay_min_7d = agg.min(col("dep_delay"), window="7d")
    delay_max_7d = agg.max(col("dep_delay"), window="7d")
    carriers_7d = agg.approx_distinct(col("carrier"), window="7d")
    last_flight = agg.last(col("flight"))


flight_delay = FeatureService(
    "flight_delay",
    views=[AirportDelay, CarrierPunctuality, TailActivity, RouteTraffic],
    owner=OWNER,
    description="What a model that predicts delays looks at when a flight leaves the gate.",
)
