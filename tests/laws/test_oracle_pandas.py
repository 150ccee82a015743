"""The pandas brute force and the oracle were written apart; on random flights they say the same."""

import math
from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle.compare import assert_same
from tests.oracle.meaning import HOUR, OracleFeature, value_of
from tests.oracle.pandas_flights import FlightFeature, flight_value
from tests.oracle.streams import Stream, instants, streams

FLIGHTS = streams(
    columns={"delay": st.integers(-60, 600).map(float), "carrier": st.sampled_from(("UA", "AA", "B6"))},
    keys={"origin": st.sampled_from(("JFK", "LGA"))},
)
LATE = 15.0


def is_late(event: dict[str, Any]) -> bool | None:
    return None if event["delay"] is None else event["delay"] > LATE


PAIRS = [
    (OracleFeature("n", "count", window=HOUR), FlightFeature("count", window="1h")),
    (OracleFeature("n_delay", "count", "delay", window=HOUR), FlightFeature("count", "delay", "1h")),
    (
        OracleFeature("late", "count", window=24 * HOUR, where=is_late),
        FlightFeature("count", window="24h", where=lambda rows: rows["delay"] > LATE),
    ),
    *(
        (OracleFeature(op, op, "delay", window=HOUR, hop=HOUR), FlightFeature(op, "delay", "1h", "1h"))
        for op in ("sum", "mean", "min", "max", "std")
    ),
    (
        OracleFeature("mean_d", "mean", "delay", window=HOUR, default=0.0),
        FlightFeature("mean", "delay", "1h", default=0.0),
    ),
    (OracleFeature("last", "last", "carrier"), FlightFeature("last", "carrier")),
    (OracleFeature("last_24h", "last", "carrier", window=24 * HOUR), FlightFeature("last", "carrier", "24h")),
]


def table(stream: Stream) -> pd.DataFrame:
    names = {"event_time": "departed_at", "partition": "_partition", "offset": "_offset"}
    df = pd.DataFrame(list(stream.events)).rename(columns=names)
    df["departed_at"] = pd.to_datetime(df["departed_at"], unit="us", utc=True)
    return df.astype({"delay": "float64"})


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_pandas_and_the_oracle_agree(data: st.DataObject) -> None:
    stream = data.draw(FLIGHTS.filter(lambda stream: bool(stream.keys())))
    key = data.draw(st.sampled_from(stream.keys()))
    at = data.draw(instants(stream, key=key))
    flown = table(stream)
    for oracle, flights in PAIRS:
        expected = value_of(oracle, stream.of(key), at)
        got = flight_value(flown, flights, key, pd.Timestamp(at, unit="us", tz="UTC"))
        if oracle.op == "std" and expected is not None:
            assert math.isclose(expected, got, rel_tol=1e-9, abs_tol=1e-9)  # type: ignore[arg-type]
        else:
            assert_same(expected, got, oracle.op, label=oracle.name)
