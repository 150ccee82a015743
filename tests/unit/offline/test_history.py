"""Which views share a reading of events, and which features need which."""

import pyarrow as pa

from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.offline.history import History, by_source, columns_of, narrowed
from tests.unit.offline.flights import EVENTS, catalog, table_of
from tests.unit.offline.tables import EVOLVED, START

CATALOG = catalog()
AIRPORT, GATE = CATALOG.views["airport_delay", 1], CATALOG.views["gate_use", 2]


def test_a_source_is_read_once_with_the_columns_of_all_its_views() -> None:
    readings = []

    def read(source: CompiledSource, columns: tuple[str, ...], views: list[CompiledView]) -> pa.Table:
        readings.append((source.name, columns, [view.id for view in views]))
        rows = pa.array(range(len(EVENTS)), pa.int64())
        return table_of(EVENTS).append_column("_partition", rows).append_column("_offset", rows)

    history = History([AIRPORT, GATE], read)  # type: ignore[arg-type]
    keys = {AIRPORT.id: pa.array(["JFK"]), GATE.id: pa.array(["LGA|7"])}
    history.evaluate(keys, pa.array([START * 2]).to_numpy())
    history.evaluate(keys, pa.array([START * 3]).to_numpy())
    assert readings == [
        ("departures", ("departed_at", "origin", "gate", "delay"), ["airport_delay@1", "gate_use@2"]),
    ]


def test_views_of_two_contracts_are_read_apart() -> None:
    newer = catalog(EVOLVED).views["gate_use", 2]
    assert [len(group) for group in by_source([AIRPORT, GATE, newer]).values()] == [2, 1]


def test_only_columns_that_are_looked_at_are_read() -> None:
    assert columns_of([narrowed(AIRPORT, ["departures_1h"])]) == ("origin",)
    assert columns_of([narrowed(GATE, ["last_delay"])]) == ("origin", "gate", "delay")


def test_a_narrowed_view_keeps_what_its_features_are_derived_from() -> None:
    assert narrowed(AIRPORT, ["share"]).order == ("departures_1h", "share")
    assert narrowed(AIRPORT, ["last_time", "delay_max"]).order == ("delay_max", "last_time")
    assert [a.name for a in narrowed(AIRPORT, ["share"]).aggregates] == ["departures_1h"]
