"""Feature rows in the lake are what the flush put online."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.clock import DAY
from featurestore.engine.columns import canonical_keys
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.materialised import feature_rows, features_table
from featurestore.offline.point import lookup_at
from tests.unit.offline.flights import catalog, stored
from tests.unit.offline.tables import START

VIEW = catalog().views["gate_use", 2]


def test_a_flush_becomes_rows_that_anyone_can_read(tmp_path: Path) -> None:
    lake = stored(Lake(str(tmp_path / "lake")))
    parts = {"origin": pa.array(["JFK", "LGA"]), "gate": pa.array([7, 7])}
    columns = lookup_at(lake, [VIEW], parts, np.array([START + DAY] * 2))[VIEW.id]
    rows = feature_rows(
        VIEW,
        canonical_keys([parts["origin"], parts["gate"]]),
        parts,
        columns,
        latest=np.array([START + 40 * DAY, START]),
        visible_time=START + 41 * DAY,
        partition=3,
        offset=np.array([17, 16]),
    )
    assert lake.append(features_table(VIEW), rows, {app_id(VIEW.id, 3): 17})
    assert not lake.append(features_table(VIEW), rows, {app_id(VIEW.id, 3): 17})
    frame = pl.read_delta(f"{lake.url}/features/gate_use@2").sort("origin")
    assert frame["_key"].to_list() == ["JFK|7", "LGA|7"]
    assert frame["gate"].to_list() == [7, 7]
    assert frame["departures"].to_list() == [2, 1]
    assert frame["last_delay"].to_list() == [30.0, 4.0]
    assert frame["_month"].to_list() == ["2024-02", "2024-01"]
    assert frame["_offset"].to_list() == [17, 16]
    assert frame["_partition"].to_list() == [3, 3]


def test_a_feature_with_the_name_of_a_key_has_a_column_of_its_own() -> None:
    parts = {"origin": pa.array(["JFK"]), "gate": pa.array([7])}
    (column, *_) = lookup_at(Lake("nowhere"), [VIEW], parts, np.array([START]))[VIEW.id]
    renamed = type(column)("gate", column.dtype, column.many, column.values, column.valid, column.status, column.as_of)
    rows = feature_rows(
        VIEW,
        pa.array(["JFK|7"]),
        parts,
        [renamed],
        latest=np.array([START]),
        visible_time=0,
        partition=0,
        offset=np.array([0]),
    )
    assert rows["gate"].to_pylist() == [7]
    assert rows["_feature_gate"].to_pylist() == [0]
