"""What a spine may be, and how it is refused."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from featurestore.errors import InvalidRequest
from featurestore.offline.spine import read_spine, refuse_clashes
from featurestore.types import Dtype
from tests.unit.offline.tables import START

KEYS = {"origin": Dtype.STRING}
ZONED = pa.timestamp("us", "UTC")


def table(times: Any = None, **columns: Any) -> pa.Table:
    given = pa.array([START, START + 1], ZONED) if times is None else times
    return pa.table({"origin": pa.array(["JFK", "LGA"], pa.string()), "event_time": given} | columns)


def refused(given: Any, keys: dict[str, Dtype] | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as failure:
        read_spine(given, KEYS if keys is None else keys)
    return failure.value


class TestForms:
    @pytest.mark.parametrize(
        "form",
        [
            lambda t: t,
            lambda t: t.to_batches()[0],
            lambda t: t.to_pandas(),
            lambda t: t.to_pandas().set_index(np.array([5, 9])),
            pl.from_arrow,
            lambda t: t.to_pydict(),
            lambda t: pa.RecordBatchReader.from_batches(t.schema, t.to_batches()),
        ],
        ids=["arrow", "batch", "pandas", "pandas with an index", "polars", "columns", "stream"],
    )
    def test_tables_of_every_kind_are_the_same_spine(self, form: Any) -> None:
        spine = read_spine(form(table(label=pa.array([0.5, None]))), KEYS)
        assert spine.table.column_names == ["origin", "event_time", "label"]
        assert spine.at.tolist() == [START, START + 1]
        assert spine.canonical(["origin"]).to_pylist() == ["JFK", "LGA"]

    def test_parquet_is_read(self, tmp_path: Path) -> None:
        pq.write_table(table(label=pa.array([1, 2])), tmp_path / "spine.parquet")
        spine = read_spine(tmp_path / "spine.parquet", KEYS)
        assert spine.table["label"].to_pylist() == [1, 2]
        assert spine.at.tolist() == [START, START + 1]

    def test_csv_is_read_and_keys_stay_text(self, tmp_path: Path) -> None:
        path = tmp_path / "spine.csv"
        path.write_text(
            "origin,event_time,label\n007,2024-01-01T00:00:00Z,1\nNA,2024-01-01T01:00:00+01:00,\n,2024-01-01T00:00:00Z,3\n"
        )
        spine = read_spine(str(path), KEYS)
        assert spine.keys["origin"].to_pylist() == ["007", "NA", None]
        assert spine.at.tolist() == [START] * 3
        assert spine.table["label"].to_pylist() == [1, None, 3]

    def test_an_arrow_csv_of_itself_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "spine.csv"
        pacsv.write_csv(pa.table({"origin": ["a,b"], "event_time": ["2024-01-01T00:00:00.000001Z"]}), path)
        assert read_spine(path, KEYS).at.tolist() == [START + 1]

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        assert "there is no file" in str(refused(tmp_path / "none.parquet"))

    def test_a_file_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        assert "neither Parquet nor CSV" in str(refused(tmp_path / "spine.xlsx"))

    @pytest.mark.parametrize("suffix", ["parquet", "csv"])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"spine.{suffix}"
        path.write_bytes(b"PAR1 no such thing\na,b\n1,2,3\n")
        assert "cannot be read" in str(refused(path))

    @pytest.mark.parametrize("given", [7, None, [1, 2], b"x"])
    def test_what_is_no_table_is_refused(self, given: Any) -> None:
        assert "is no table" in str(refused(given))


class TestKeys:
    def test_a_missing_key_column_is_named_with_what_was_meant(self) -> None:
        error = refused(pa.table({"orgin": ["JFK"], "event_time": pa.array([START], ZONED)}))
        assert error.field == "origin"
        assert "there is no column 'origin'; did you mean 'orgin'?" in str(error)

    def test_a_null_key_is_kept(self) -> None:
        spine = read_spine(pa.table({"origin": ["JFK", None], "event_time": pa.array([START] * 2, ZONED)}), KEYS)
        assert spine.canonical(["origin"]).to_pylist() == ["JFK", None]

    def test_composite_keys_are_in_the_order_of_the_entity(self) -> None:
        given = table(gate=pa.array([7, None], pa.int8()))
        spine = read_spine(given, {"gate": Dtype.INT, "origin": Dtype.STRING})
        assert spine.canonical(["gate", "origin"]).to_pylist() == ["7|JFK", None]

    @pytest.mark.parametrize(
        ("dtype", "values", "expected"),
        [
            (Dtype.STRING, pa.array(["a", None], pa.large_string()), ["a", None]),
            (Dtype.STRING, pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
            (Dtype.STRING, pa.nulls(2), [None, None]),
            (Dtype.INT, pa.array([1, None], pa.uint32()), [1, None]),
            (Dtype.INT, pa.array([1, 2**63 - 1], pa.uint64()), [1, 2**63 - 1]),
            (Dtype.BOOL, pa.array([True, None]), [True, None]),
        ],
    )
    def test_keys_of_the_right_type_in_any_layout(self, dtype: Dtype, values: pa.Array, expected: list[Any]) -> None:
        spine = read_spine(table(key=values), {"key": dtype})
        assert spine.keys["key"].to_pylist() == expected

    @pytest.mark.parametrize(
        ("dtype", "values", "said"),
        [
            (Dtype.STRING, pa.array([1, 2]), "is int64 in the spine, expected text"),
            (Dtype.INT, pa.array(["1", "2"]), "is string in the spine, expected whole numbers"),
            (Dtype.INT, pa.array([1.0, 2.0]), "Int64"),
            (Dtype.INT, pa.array([1, 2**64 - 1], pa.uint64()), "do not fit 64 bits"),
            (Dtype.INT, pa.array([True, False]), "is bool in the spine"),
            (Dtype.BOOL, pa.array([0, 1]), "is int64 in the spine, expected booleans"),
            (Dtype.STRING, pa.array([[1], [2]]), "is list<item: int64> in the spine"),
        ],
    )
    def test_keys_of_another_type_are_refused_by_name(self, dtype: Dtype, values: pa.Array, said: str) -> None:
        error = refused(table(key=values), {"key": dtype})
        assert error.field == "key"
        assert "column 'key'" in str(error)
        assert said in str(error)

    def test_pandas_objects_are_text(self) -> None:
        frame = pd.DataFrame(
            {
                "origin": pd.Series(["JFK", None], dtype=object),
                "event_time": [pd.Timestamp(START, unit="us", tz="UTC")] * 2,
            }
        )
        assert read_spine(frame, KEYS).canonical(["origin"]).to_pylist() == ["JFK", None]


class TestTimes:
    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    @pytest.mark.parametrize("zone", ["UTC", "+02:00", "America/New_York"])
    def test_any_unit_and_zone_is_the_same_instant(self, unit: str, zone: str) -> None:
        second = pa.array([START, START + 1_000_000], ZONED)
        assert read_spine(table(second.cast(pa.timestamp(unit, zone))), KEYS).at.tolist() == [START, START + 1_000_000]

    @pytest.mark.parametrize(
        ("text", "micros"),
        [
            ("2024-01-01T00:00:00Z", START),
            ("2024-01-01T00:00:00.5Z", START + 500_000),
            ("2024-01-01T00:00:00.000001Z", START + 1),
            ("2024-01-01T00:00:00.000001000Z", START + 1),
            ("2024-01-01T05:30:00+05:30", START),
            ("2023-12-31T19:00:00-05:00", START),
            ("2024-01-01 00:00:00z", START),
            ("2024-01-01t00:00:00Z", START),
            ("1969-12-31T23:59:59.999999Z", -1),
        ],
    )
    def test_rfc_3339_text_is_an_instant(self, text: str, micros: int) -> None:
        assert read_spine(table(pa.array([text, "2024-01-01T00:00:00Z"])), KEYS).at.tolist() == [micros, START]

    @pytest.mark.parametrize(
        "times",
        [
            pa.array([START, START], pa.timestamp("us")),
            pa.array([START, START], pa.timestamp("ns")),
            pa.array(["2024-01-01T00:00:00Z", "2024-01-01T00:00:00"]),
            pa.array(["2024-01-01T00:00:00Z", "2024-01-01 00:00:00.25"]),
            pa.array(["2024-01-01T00:00:00Z", "2024-01-01"]),
        ],
    )
    def test_times_without_a_zone_are_refused_and_the_rule_is_stated(self, times: pa.Array) -> None:
        error = refused(table(times))
        assert error.field == "event_time"
        assert "zone" in error.message
        assert "2026-03-01T12:00:00Z" in error.hint

    def test_text_without_a_zone_is_named_by_row(self) -> None:
        assert "row 1: '2024-01-01' has no zone" in str(
            refused(table(pa.array(["2024-01-01T00:00:00Z", "2024-01-01"])))
        )

    @pytest.mark.parametrize(
        ("times", "said"),
        [
            (pa.array([date(2024, 1, 1)] * 2), "a day is not an instant"),
            (pa.array([START, START]), "is int64, expected a timestamp with a zone"),
            (pa.array([1.5, 2.5]), "is double, expected a timestamp"),
            (pa.array([True, False]), "is bool, expected a timestamp with a zone"),
            (pa.array([START, None], ZONED), "row 1 has no time"),
            (pa.array([None, "2024-01-01T00:00:00Z"]), "row 0 has no time"),
            (pa.nulls(2), "row 0 has no time"),
            (pa.array(["2024-01-01T00:00:00Z", "yesterday"]), "row 1: 'yesterday' is not RFC 3339"),
            (pa.array(["2024-02-30T00:00:00Z"] * 2), "row 0"),
            (pa.array(["2024-01-01T00:00:00.0000001Z"] * 2), "row 0: '2024-01-01T00:00:00.0000001Z' is finer than"),
            (pa.array([0, 1], pa.timestamp("ns", "UTC")), "row 1 is finer than a microsecond"),
            (pa.array([0, 2**62], ZONED), "row 1 is outside the years 1 to 9999"),
            (pa.array([0, 2**62], pa.timestamp("s", "UTC")), "row 1 is finer than a microsecond, or outside"),
        ],
    )
    def test_what_is_no_instant_is_refused(self, times: pa.Array, said: str) -> None:
        error = refused(table(times))
        assert error.field == "event_time"
        assert said in str(error)

    def test_another_time_column_can_be_named(self) -> None:
        given = pa.table({"origin": ["JFK"], "departed_at": pa.array([START], ZONED)})
        assert read_spine(given, KEYS, "departed_at").at.tolist() == [START]
        assert "there is no column 'event_time'" in str(refused(given))


class TestColumns:
    def test_a_column_twice_is_refused(self) -> None:
        doubled = table().append_column("x", pa.array([1, 2])).append_column("x", pa.array([1, 2]))
        assert "column 'x' is there twice" in str(refused(doubled))

    def test_a_name_that_a_feature_has_is_refused(self) -> None:
        spine = read_spine(table(**{"airport_delay.late_1h": pa.array([1, 2])}), KEYS)
        with pytest.raises(InvalidRequest, match=r"'airport_delay\.late_1h' has the name of a feature column"):
            refuse_clashes(spine, {"airport_delay.late_1h"})

    @pytest.mark.parametrize(
        "empty",
        [
            table().slice(0, 0),
            pa.table({"origin": pa.nulls(0), "event_time": pa.nulls(0)}),
            pd.DataFrame({"origin": [], "event_time": []}, dtype=object),
            pl.DataFrame({"origin": [], "event_time": []}),
        ],
        ids=["arrow", "nulls", "pandas", "polars"],
    )
    def test_a_spine_without_rows_is_a_spine(self, empty: Any) -> None:
        spine = read_spine(empty, KEYS)
        assert len(spine) == 0
        assert spine.canonical(["origin"]).to_pylist() == []
