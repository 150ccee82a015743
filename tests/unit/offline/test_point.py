"""Past instants of a few entities, from the lake."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore.clock import HOUR, MINUTE
from featurestore.engine.columns import FeatureColumn
from featurestore.errors import AtOutOfRange
from featurestore.offline import point
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.point import covers, lookup_at
from featurestore.types import STATUSES
from tests.unit.offline.flights import EVENTS, catalog, stored
from tests.unit.offline.tables import DAY, START, rows

CATALOG = catalog()
AIRPORT, GATE = CATALOG.views["airport_delay", 1], CATALOG.views["gate_use", 2]
KEYS = {"origin": pa.array(["JFK", "LGA", None], pa.string()), "gate": pa.array([7, 9, 7], pa.int64())}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return stored(Lake(str(tmp_path / "lake")))


def listed(columns: list[FeatureColumn]) -> dict[str, list[object]]:
    return {column.name: column.to_list() for column in columns}


def test_values_are_those_of_the_instant_of_each_row(lake: Lake) -> None:
    at = np.array([START + 2 * HOUR - 1, START + 20 * MINUTE, START + DAY])
    found = lookup_at(lake, [AIRPORT, GATE], KEYS, at)
    assert listed(found["airport_delay@1"])["departures_1h"] == [0, 1, 0]
    assert listed(found["airport_delay@1"])["delay_max"] == [10.0, 4.0, -1.0]
    assert listed(found["gate_use@2"]) == {"departures": [1, 0, 0], "last_delay": [10.0, None, None]}


def test_an_entity_whose_windows_are_empty_is_still_known(lake: Lake) -> None:
    """Reading no further back than the windows would make it `not_found`."""
    (count, *_) = lookup_at(lake, [AIRPORT], KEYS, np.array([START + 300 * DAY] * 3))["airport_delay@1"]
    assert [STATUSES[code].value for code in count.status] == ["ok", "ok", "not_found"]
    assert count.as_of.tolist()[0] == START + 2 * HOUR


def test_only_the_events_of_the_asked_entities_are_read(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point, "MAX_EVENTS", 1)
    asked = {"origin": pa.array(["LGA"])}
    assert listed(lookup_at(lake, [AIRPORT], asked, np.array([START + DAY]))["airport_delay@1"])["delay_max"] == [4.0]
    with pytest.raises(AtOutOfRange, match="more than 1 events of departures"):
        lookup_at(lake, [AIRPORT], {"origin": pa.array(["JFK"])}, np.array([START + DAY]))


def test_without_rows_there_are_columns_without_values(lake: Lake) -> None:
    keys = {name: values.slice(0, 0) for name, values in KEYS.items()}
    found = lookup_at(lake, [GATE], keys, np.empty(0, np.int64))
    assert [column.name for column in found["gate_use@2"]] == ["departures", "last_delay"]
    assert [len(column.values) for column in found["gate_use@2"]] == [0, 0]


def test_without_a_table_nobody_is_found(tmp_path: Path) -> None:
    (count, *_) = lookup_at(Lake(str(tmp_path)), [AIRPORT], KEYS, np.array([START] * 3))["airport_delay@1"]
    assert [STATUSES[code].value for code in count.status] == ["not_found"] * 3


def test_the_lake_covers_what_it_has_recorded(lake: Lake) -> None:
    last = len(EVENTS) - 1
    lake.append("events/departures", rows(0, -1), {app_id("departures", 1): 8})
    source = AIRPORT.source
    assert covers(lake, source, {})
    assert covers(lake, source, {0: last, 1: 8})
    assert covers(lake, source, {0: -1, 7: -1})
    assert not covers(lake, source, {0: last + 1})
    assert not covers(lake, source, {0: last, 1: 9})
    assert not covers(lake, source, {0: last, 2: 0})


def test_a_lake_without_the_table_covers_nothing_but_nothing(tmp_path: Path) -> None:
    assert covers(Lake(str(tmp_path)), AIRPORT.source, {0: -1})
    assert not covers(Lake(str(tmp_path)), AIRPORT.source, {0: 0})
