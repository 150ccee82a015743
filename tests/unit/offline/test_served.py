"""Rows of `served/<service>`: what they consist of, and how a table takes what versions of a service answer."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from featurestore.errors import Unavailable, UsageError
from featurestore.offline.lake import Lake
from featurestore.offline.served import Answered, add_served, served_rows
from featurestore.types import STATUS_CODES, Status
from tests.unit.offline.tables import DAY, START

OK, NOT_FOUND = STATUS_CODES[Status.OK], STATUS_CODES[Status.NOT_FOUND]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def answered(request: int, rows: int, **changed: Any) -> Answered:
    facts: dict[str, Any] = {
        "request": request,
        "version": 1,
        "revision": 4,
        "at": START,
        "answered_at": START + DAY,
        "source": "online",
        "rows": rows,
    }
    return Answered(**(facts | changed))


def one_row(request: int = 1, *, version: int = 1, **features: pa.Array) -> pa.Table:
    status = {name: np.array([OK], np.uint8) for name in features}
    return served_rows([answered(request, 1, version=version)], {"origin": pa.array(["JFK"])}, features, status)


def stored(lake: Lake) -> pl.DataFrame:
    return pl.read_delta(f"{lake.url}/served/flight_delay").sort("_request", "_row")


def test_each_row_has_the_facts_of_its_answer() -> None:
    answers = [answered(7, 2), answered(8, 1, at=START - 1, revision=5, source="lake", answered_at=START + 40 * DAY)]
    delays = pa.array([1.5, None, 3.0])
    statuses = {"airport.delay": np.array([OK, NOT_FOUND, OK], np.uint8)}
    rows = served_rows(answers, {"origin": pa.array(["JFK", None, "LGA"])}, {"airport.delay": delays}, statuses)

    assert [7, 7, 8] == rows["_request"].to_pylist()
    assert [0, 1, 0] == rows["_row"].to_pylist()
    assert [1, 1, 1] == rows["_version"].to_pylist()
    assert [4, 4, 5] == rows["_revision"].to_pylist()
    assert ["online", "online", "lake"] == rows["_source"].to_pylist()
    assert [START, START, START - 1] == rows["_at"].cast(pa.int64()).to_pylist()
    assert [START + DAY] * 2 + [START + 40 * DAY] == rows["_answered_at"].cast(pa.int64()).to_pylist()
    assert ["2024-01", "2024-01", "2024-02"] == rows["_month"].to_pylist()
    assert ["JFK", None, "LGA"] == rows["origin"].to_pylist()
    assert [1.5, None, 3.0] == rows["airport.delay"].to_pylist()
    assert ["ok", "not_found", "ok"] == rows["airport.delay__status"].to_pylist()


def test_a_key_that_is_named_like_a_column_of_the_store_has_one_of_its_own() -> None:
    rows = served_rows([answered(7, 1)], {"_request": pa.array(["mine"]), "_": pa.array(["x"])}, {}, {})
    assert ([7], ["mine"], ["x"]) == tuple(rows[name].to_pylist() for name in ("_request", "_key__request", "_"))


def test_files_are_by_month_and_say_when_they_were_answered(lake: Lake) -> None:
    answers = [answered(1, 1), answered(2, 1, answered_at=START + 40 * DAY)]
    add_served(lake, "flight_delay", served_rows(answers, {"origin": pa.array(["JFK", "LGA"])}, {}, {}))
    snapshot = lake.snapshot("served/flight_delay")
    assert snapshot is not None
    found = {row["partition._month"]: row["min._answered_at"] for row in snapshot.files.to_pylist()}

    assert ["2024-01", "2024-02"] == sorted(found)
    assert "2024-02-10T00:00:00+00:00" == found["2024-02"].isoformat()
    assert ["served/flight_delay"] == lake.tables()


def test_a_version_with_more_features_adds_columns(lake: Lake) -> None:
    counts, carriers = pa.array([3]), pa.array([["AA", None]], pa.list_(pa.string()))
    add_served(lake, "flight_delay", one_row(1, **{"airport.departures": counts}))
    add_served(lake, "flight_delay", one_row(2, version=2, **{"airport.departures": counts, "leg.last": carriers}))
    add_served(lake, "flight_delay", one_row(3, **{"airport.departures": counts}))
    frame = stored(lake)

    assert [1, 2, 1] == frame["_version"].to_list()
    assert [3, 3, 3] == frame["airport.departures"].to_list()
    assert [None, ["AA", None], None] == frame["leg.last"].to_list()
    assert [None, "ok", None] == frame["leg.last__status"].to_list()


@pytest.mark.parametrize(
    ("values", "column"),
    [
        (pa.array([2.5]), "airport.departures__float"),
        (pa.array([True]), "airport.departures__bool"),
        (pa.array([["AA"]]), "airport.departures__list_string"),
        (pa.array([START], pa.timestamp("us", "UTC")), "airport.departures__timestamp"),
    ],
)
def test_a_version_that_changes_a_type_has_a_column_of_its_own(lake: Lake, values: pa.Array, column: str) -> None:
    add_served(lake, "flight_delay", one_row(1, **{"airport.departures": pa.array([3])}))
    for request in (2, 3):
        add_served(lake, "flight_delay", one_row(request, version=2, **{"airport.departures": values}))
    stored_now = DeltaTable(f"{lake.url}/served/flight_delay").to_pyarrow_table().sort_by("_request")

    assert [3, None, None] == stored_now["airport.departures"].to_pylist()
    assert [None, *values.to_pylist() * 2] == stored_now[column].to_pylist()
    assert ["ok"] * 3 == stored_now["airport.departures__status"].to_pylist()


def test_versions_that_race_for_a_column_both_get_one(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other writer's column comes between the look at the table and the append."""
    add_served(lake, "flight_delay", one_row(0))
    look, looks = lake.schema, 0

    def look_too_early(table: str) -> pa.Schema | None:
        nonlocal looks
        seen, looks = look(table), looks + 1
        if looks == 1:
            add_served(Lake(lake.url), "flight_delay", one_row(2, **{"airport.share": pa.array([0.5])}))
        return seen

    monkeypatch.setattr(lake, "schema", look_too_early)
    add_served(lake, "flight_delay", one_row(1, **{"airport.share": pa.array([1])}))
    frame = stored(lake)

    assert [None, 1, None] == frame["airport.share__int"].to_list()
    assert [None, None, 0.5] == frame["airport.share"].to_list()


class TestAdd:
    """`Lake.add`, which stands on no log."""

    def test_rows_are_added_each_time(self, lake: Lake) -> None:
        for _ in range(2):
            lake.add("served/flight_delay", one_row(5))
        assert [5, 5] == stored(lake)["_request"].to_list()

    def test_writers_at_once_lose_nothing(self, lake: Lake) -> None:
        def write(writer: int) -> None:
            mine = Lake(lake.url)
            for i in range(10):
                column = {f"airport.f{i % 3}": pa.array([writer])}
                mine.add("served/flight_delay", one_row(writer * 10 + i, **column))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert list(range(40)) == stored(lake)["_request"].to_list()

    def test_a_conflict_is_tried_again(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        lake.add("served/flight_delay", one_row(1))
        commit, conflicts = DeltaTable.create_write_transaction, [CommitFailedError("metadata changed")] * 2

        def collide(handle: DeltaTable, *arguments: Any, **options: Any) -> None:
            if conflicts:
                raise conflicts.pop()
            commit(handle, *arguments, **options)

        monkeypatch.setattr(DeltaTable, "create_write_transaction", collide)
        lake.add("served/flight_delay", one_row(2))
        assert [1, 2] == stored(lake)["_request"].to_list()

    def test_a_root_that_is_a_file_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(Unavailable, match="cannot add to served/flight_delay"):
            Lake(str(tmp_path / "file")).add("served/flight_delay", one_row())

    def test_a_name_that_is_no_table_is_refused(self, lake: Lake) -> None:
        with pytest.raises(UsageError, match="is no name of a table"):
            lake.add("served/../events", one_row())
