"""What a notebook shows, and what it hands to pandas, Polars, DuckDB and Arrow."""

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest

import featurestore
from featurestore import Entity, FeatureService, FeatureStoreError, Source, agg, col, feature, feature_view, request
from featurestore.clock import HOUR, MINUTE
from featurestore.contracts.contract import parse_contract
from featurestore.definitions.compile import check
from featurestore.offline.lake import Lake
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply, plan
from featurestore.testing import LocalStore
from tests.unit.offline.flights import EVENTS, AirportDelay, GateUse, spine, stored, table_of
from tests.unit.offline.tables import CONTRACT, START
from tests.unit.offline.test_export import EXPECTED, ROWS

SERVICE = FeatureService("flight_delay", views=[AirportDelay, GateUse.pick("departures")], description="<b>Delays</b>")


@pytest.fixture
def lake(tmp_path: Path) -> str:
    url = str(tmp_path / "lake")
    stored(Lake(url))
    contracts = {"flights.departures/v1": parse_contract("flights.departures/v1", CONTRACT)}
    apply(Registry(url), check([AirportDelay, GateUse], [SERVICE], contracts), now=START)
    return url


def test_an_export_is_a_table_for_everyone(lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_LAKE", lake)
    made = featurestore.export(SERVICE, pl.from_arrow(spine(*ROWS)), tmp_path / "out", status=True)

    assert len(made) == made.manifest.rows == len(ROWS)
    assert made.columns[4:6] == ["airport_delay.departures_1h", "airport_delay.departures_1h__status"]
    for table in (pl.DataFrame(made), made.to_polars()):
        assert table["airport_delay.departures_1h"].to_list() == EXPECTED["airport_delay.departures_1h"]
    assert pa.table(made).equals(made.to_arrow())
    frame = made.to_pandas()
    assert frame["airport_delay.departures_1h"].tolist() == EXPECTED["airport_delay.departures_1h"]
    assert str(frame["gate_use.departures"].dtype) == "int64[pyarrow]"
    table = made.to_arrow()
    with duckdb.connect() as connection:
        found = connection.from_arrow(table).aggregate('sum("gate_use.departures")').fetchall()
    assert found == [(5,)]
    html = made._repr_html_()
    assert "6 rows" in html
    assert "flight_delay, exact" in html
    assert "6 rows of label, origin" in repr(made)


def test_features_by_name_and_a_spine_by_sql(lake: str, tmp_path: Path) -> None:
    made = featurestore.export(
        ["airport_delay.delay_max"], "sql:select origin, event_time from events.departures order by all",
        tmp_path / "out", lake=lake,
    )  # fmt: skip
    assert made.to_polars()["airport_delay.delay_max"].to_list() == [10.0, 10.0, 30.0, 4.0, -1.0]


def test_a_local_store_gives_rows_like_an_export(tmp_path: Path) -> None:
    store = LocalStore([AirportDelay, GateUse], table_of(EVENTS))
    made = store.features(spine(*ROWS), service=SERVICE, status=True, as_of=True)
    assert {name: made.to_arrow()[name].to_pylist() for name in EXPECTED} == EXPECTED
    assert made.columns[4:7] == [f"airport_delay.departures_1h{end}" for end in ("", "__status", "__as_of")]
    every = store.features(spine(*ROWS)).to_polars()
    assert every.columns[4:] == [*list(EXPECTED)[:6], "gate_use.departures", "gate_use.last_delay"]
    assert every.height == len(ROWS)


def test_a_local_store_computes_from_requests_as_well() -> None:
    asked = FeatureService(
        "asked", views=[AirportDelay.pick("departures_1h")],
        features={"per_seat": feature("airport_delay.departures_1h") / request("seats", int)},
    )  # fmt: skip
    rows = [{"departed_at": START, "origin": "JFK", "gate": 1, "delay": 1.0}]
    store = LocalStore([AirportDelay], table_of(rows))
    given = spine(("JFK", 1, START + MINUTE), ("LGA", 1, START), seats=pa.array([4, 4]))
    assert store.features(given, service=asked).to_arrow()["asked.per_seat"].to_pylist() == [0.25, 0.0]
    with pytest.raises(FeatureStoreError, match="there is no column 'seats'"):
        store.features(spine(("JFK", 1, START)), service=asked)


def test_definitions_show_what_they_are_and_escape_it(lake: str) -> None:
    html = AirportDelay._repr_html_()
    assert "airport_delay@1: airport by origin, from departures" in html
    assert "agg.mean(col(&#x27;delay&#x27;), window=&#x27;1h&#x27;)" in html
    html = SERVICE._repr_html_()
    assert "service flight_delay" in html
    assert "&lt;b&gt;Delays&lt;/b&gt;" in html
    assert "gate_use@2" in html
    assert "last_delay" not in html

    changed = _with_delays("2h")
    contracts = {"flights.departures/v1": parse_contract("flights.departures/v1", CONTRACT)}
    proposed = plan(Registry(lake).head(), check([changed], [], contracts))
    html = proposed._repr_html_()
    assert "airport_delay" in html
    assert "refused" in html
    same = plan(Registry(lake).head(), check([AirportDelay, GateUse], [SERVICE], contracts))
    assert "nothing would change" in same._repr_html_()


def _with_delays(window: str) -> Any:
    departures = Source(
        "departures", topic="flights.departures", contract="flights.departures/v1", event_time="departed_at"
    )
    body = {"delay_max": agg.max(col("delay"), window=window)}
    view = feature_view(entity=Entity("airport", keys={"origin": str}), source=departures, version=1)
    return view(type("AirportDelay", (), body))


def test_long_tables_are_cut_when_they_are_shown() -> None:
    rows = [{"departed_at": START + n * HOUR, "origin": "JFK", "gate": 1, "delay": 1.0} for n in range(30)]
    made = LocalStore([GateUse], table_of(rows)).features(spine(*[("JFK", 1, START + n * HOUR) for n in range(30)]))
    assert "30 rows, the first 10 shown" in made._repr_html_()
    assert made._repr_html_().count("<tr>") == 11
