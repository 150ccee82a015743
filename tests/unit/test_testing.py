"""LocalStore: the real engine on a table."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore import Entity, Source, agg, col, feature, feature_view
from featurestore.clock import ManualClock, parse_instant
from featurestore.errors import DefinitionError, InvalidRequest, NotFound, UsageError
from featurestore.testing import LocalStore

Airport = Entity("airport", keys={"origin": str})
Route = Entity("route", keys={"origin": str, "dest": str})
Departures = Source("departures", topic="departures", contract="departures/v1", event_time="departed_at")
Arrivals = Source("arrivals", topic="arrivals", contract="arrivals/v1", event_time="departed_at")


@feature_view(entity=Airport, source=Departures, version=1, ttl="1d")
class AirportDelay:
    departures_1h = agg.count(window="1h")
    delay_mean_1h = agg.mean(col("dep_delay"), window="1h", default=0.0)
    late_1h = agg.count(where=col("dep_delay") > 15, window="1h")
    late_share_1h = feature("late_1h") / feature("departures_1h")
    last_carrier = agg.last(col("carrier"))


@feature_view(entity=Route, source=Departures, version=1)
class RouteTraffic:
    departures_1h = agg.count(window="1h")


@feature_view(entity=Airport, source=Arrivals, version=1)
class AirportArrivals:
    arrivals = agg.count()


EVENTS = {
    "departed_at": [parse_instant(f"2013-07-01T1{hour}Z".replace("Z", ":00Z")) for hour in ("1:20", "1:50", "2:30")],
    "origin": ["JFK", "JFK", "LGA"],
    "dest": ["LAX", "SFO", "ORD"],
    "carrier": ["AA", "B6", "UA"],
    "dep_delay": [4.0, 20.0, None],
}
ARROW = pa.table({**EVENTS, "departed_at": pa.array(EVENTS["departed_at"], pa.timestamp("us", tz="UTC"))})
TABLES: dict[str, Any] = {
    "arrow": ARROW,
    "pandas": ARROW.to_pandas(),
    "polars": pl.from_arrow(ARROW),
    "pandas with text as categories": ARROW.to_pandas().astype({"carrier": "category"}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_any_library_answers(kind: str) -> None:
    answer = LocalStore([AirportDelay], TABLES[kind]).lookup({"origin": "JFK"}, at="2013-07-01T12:00:00Z")

    assert {
        "airport_delay.departures_1h": 2,
        "airport_delay.delay_mean_1h": 12.0,
        "airport_delay.late_1h": 1,
        "airport_delay.late_share_1h": 0.5,
        "airport_delay.last_carrier": "B6",
    } == dict(answer)
    assert answer["late_1h"] == answer["airport_delay.late_1h"] == 1
    assert {"ok"} == set(answer.status.values())


def test_an_instant_is_text_a_datetime_or_microseconds() -> None:
    store = LocalStore([AirportDelay], ARROW)
    moment = datetime(2013, 7, 1, 11, 30, tzinfo=UTC)
    for at in (moment, "2013-07-01T13:30:00+02:00", parse_instant("2013-07-01T11:30:00Z")):
        assert 1 == store.lookup({"origin": "JFK"}, at=at)["departures_1h"]


def test_without_an_instant_everything_counts_up_to_now() -> None:
    clock = ManualClock(parse_instant("2013-07-01T12:00:00Z"))
    store = LocalStore([AirportDelay], ARROW, clock=clock)
    assert 2 == store.lookup({"origin": "JFK"})["departures_1h"]
    assert 1 == store.lookup({"origin": "LGA"})["departures_1h"], "the latest event is after now"
    clock.advance(10**12)
    later = store.lookup({"origin": "JFK"})
    assert (0, 0.0, None) == (later["departures_1h"], later["delay_mean_1h"], later["last_carrier"])
    assert ("default", "expired") == (
        later.status["airport_delay.delay_mean_1h"],
        later.status["airport_delay.last_carrier"],
    )


def test_an_entity_never_seen_has_the_values_of_empty_windows() -> None:
    answer = LocalStore([AirportDelay], ARROW).lookup({"origin": "XXX"}, at="2013-07-01T12:00:00Z")
    assert [0, 0.0, 0, None, None] == list(answer.values())
    assert {"not_found"} == set(answer.status.values())


def test_views_of_several_entities_and_sources_answer_by_their_keys() -> None:
    tables = {"departures": ARROW, "arrivals": ARROW.slice(0, 1)}
    store = LocalStore([AirportDelay, RouteTraffic, AirportArrivals], tables)
    answer = store.lookup({"origin": "JFK", "dest": "SFO"}, at="2013-07-01T12:00:00Z")
    assert 1 == answer["route_traffic.departures_1h"]
    assert 1 == answer["arrivals"]
    with pytest.raises(InvalidRequest, match="several views"):
        answer["departures_1h"]
    with pytest.raises(NotFound, match="late_share_1h"):
        answer["late_share"]


def test_what_cannot_be_answered_is_said_by_name() -> None:
    store = LocalStore([AirportDelay, RouteTraffic], ARROW)
    with pytest.raises(NotFound, match="origin"):
        store.lookup({"orign": "JFK"})
    with pytest.raises(InvalidRequest, match="no view"):
        store.lookup({"dest": "SFO"})
    with pytest.raises(InvalidRequest, match="origin is 5"):
        store.lookup({"origin": 5})
    with pytest.raises(InvalidRequest, match="zone"):
        store.lookup({"origin": "JFK"}, at="2013-07-01T12:00:00")
    with pytest.raises(UsageError, match="2 sources"):
        LocalStore([AirportDelay, AirportArrivals], ARROW)
    with pytest.raises(NotFound, match="arrivals"):
        LocalStore([AirportDelay, AirportArrivals], {"departures": ARROW})


def test_a_table_that_breaks_the_contract_is_refused() -> None:
    with pytest.raises(UsageError, match="zone"):
        LocalStore([AirportDelay], pd.DataFrame({**EVENTS, "departed_at": pd.to_datetime(["2013-07-01"] * 3)}))
    with pytest.raises(InvalidRequest, match="row 1"):
        LocalStore([AirportDelay], ARROW.set_column(4, "dep_delay", pa.array([1.0, float("nan"), 2.0])))
    with pytest.raises(DefinitionError, match="departed_at"):
        LocalStore([AirportDelay], ARROW.rename_columns(["when", "origin", "dest", "carrier", "dep_delay"]))
    with pytest.raises(DefinitionError, match="carrier"):
        LocalStore([AirportDelay], ARROW.drop_columns(["carrier"]))
