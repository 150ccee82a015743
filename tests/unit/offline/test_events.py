"""Events in the lake come back as they went in, and only those that were asked for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore.clock import MAX_INSTANT, MIN_INSTANT, SECOND
from featurestore.errors import AtOutOfRange, Unavailable
from featurestore.offline.events import count_events, events_table, in_time_order, months, read_events, system_columns
from featurestore.offline.lake import Lake, app_id
from tests.unit.offline.tables import DAY, EVOLVED, START, source

TABLE = events_table("departures")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def departures(times: list[int], **columns: list[object]) -> pa.Table:
    origins = columns.pop("origin", ["JFK"] * len(times))
    table = pa.table(
        {"departed_at": pa.array(times, pa.timestamp("us", "UTC")), "origin": pa.array(origins, pa.string())}
    )
    table = table.append_column("gate", pa.array(columns.pop("gate", [1] * len(times)), pa.int64()))
    table = table.append_column("delay", pa.array(columns.pop("delay", [0.5] * len(times)), pa.float64()))
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def store(lake: Lake, batch: pa.Table, first: int = 0, partition: int = 0) -> None:
    offsets = np.arange(first, first + batch.num_rows)
    rows = in_time_order(system_columns(batch, partition, offsets, "departed_at", visible_time=START + 400 * DAY))
    lake.append(TABLE, rows, {app_id("departures", partition): first + batch.num_rows - 1})


def offsets_of(table: pa.Table) -> list[int]:
    return sorted(table["_offset"].to_pylist())


def test_rows_are_put_in_order_of_time_and_know_their_month() -> None:
    batch = departures([START + 40 * DAY, START, START + 40 * DAY, START + DAY])
    rows = in_time_order(
        system_columns(batch, np.array([1, 0, 0, 0]), np.array([7, 3, 4, 5]), "departed_at", visible_time=9)
    )
    assert rows["_month"].to_pylist() == ["2024-01", "2024-01", "2024-02", "2024-02"]
    assert rows["_partition"].to_pylist() == [0, 0, 0, 1]
    assert rows["_offset"].to_pylist() == [3, 5, 4, 7]
    assert rows["event_time"].cast(pa.int64()).to_pylist() == [START, START + DAY, START + 40 * DAY, START + 40 * DAY]
    assert rows["visible_time"].cast(pa.int64()).to_pylist() == [9] * 4


def test_a_contract_whose_time_is_called_event_time_keeps_one_column() -> None:
    batch = pa.table({"event_time": pa.array([START], pa.timestamp("us", "UTC")), "x": [1]})
    rows = in_time_order(system_columns(batch, 0, np.array([0]), "event_time", visible_time=0))
    assert rows.column_names.count("event_time") == 1
    assert rows["x"].to_pylist() == [1]


def test_a_batch_without_rows_has_the_columns() -> None:
    rows = in_time_order(system_columns(departures([]), 0, np.empty(0, np.int64), "departed_at", visible_time=0))
    assert rows.num_rows == 0
    assert {"_partition", "_offset", "event_time", "visible_time", "_month", "origin"} <= set(rows.column_names)


@pytest.mark.parametrize(
    ("instant", "month"),
    [
        (0, "1970-01"),
        (-1, "1969-12"),
        (START - 1, "2023-12"),
        (START, "2024-01"),
        (START + 60 * DAY - 1, "2024-02"),
        (START + 60 * DAY, "2024-03"),
        (MIN_INSTANT, "0001-01"),
        (MAX_INSTANT, "9999-12"),
    ],
)
def test_months_are_those_of_utc(instant: int, month: str) -> None:
    assert months(np.array([instant])).to_pylist() == [month]


def test_events_come_back_as_they_went_in(lake: Lake) -> None:
    batch = departures([START, START + DAY], origin=["JFK", None], gate=[7, None], delay=[-1.5, None])
    store(lake, batch)
    found = read_events(lake, source(), ["origin", "gate", "delay"]).sort_by("_offset")
    assert found.drop_columns(["_partition", "_offset"]).to_pydict() == {
        "origin": ["JFK", None],
        "gate": [7, None],
        "delay": [-1.5, None],
        "departed_at": batch["departed_at"].to_pylist(),
    }
    assert found["_partition"].to_pylist() == [0, 0]


def test_through_an_object_store_the_same_comes_back(lake: Lake, tmp_path: Path) -> None:
    """`file://` by the way that object stores take."""
    store(lake, departures([START, START + 40 * DAY], terminal=["west", "east"]))
    store(lake, departures([START + 80 * DAY]), first=2)
    remote = Lake(lake.url)
    remote._root, remote._base = None, f"file://{lake.url}"
    for keys in ({}, {"terminal": pa.array(["west", "main"])}):
        found = read_events(remote, source(EVOLVED, 2), ["delay", "terminal"], keys=keys, until=START + 81 * DAY)
        assert found.sort_by("_offset").equals(
            read_events(lake, source(EVOLVED, 2), ["delay", "terminal"], keys=keys).sort_by("_offset")
        )
        assert found.num_rows == (2 if keys else 3)


@pytest.mark.parametrize("instant", [MIN_INSTANT, -1, 0, MAX_INSTANT])
def test_any_instant_of_the_calendar_is_kept(lake: Lake, instant: int) -> None:
    store(lake, departures([instant]))
    assert read_events(lake, source(), [])["departed_at"].cast(pa.int64()).to_pylist() == [instant]


def test_without_a_table_there_are_no_rows_but_the_columns(lake: Lake) -> None:
    found = read_events(lake, source(), ["origin"])
    assert found.num_rows == 0
    assert found.column_names == ["origin", "departed_at", "_partition", "_offset"]
    assert count_events(lake, source()) == 0


def test_until_is_exact_to_the_microsecond(lake: Lake) -> None:
    at = START + 1_234_567
    store(lake, departures([at - 1, at, at + 1]))
    assert offsets_of(read_events(lake, source(), [], until=at)) == [0, 1]
    assert offsets_of(read_events(lake, source(), [], until=at - 1)) == [0]
    assert offsets_of(read_events(lake, source(), [], until=at - 2)) == []


def test_files_after_the_instant_are_not_opened(lake: Lake) -> None:
    store(lake, departures([START]))
    store(lake, departures([START + 40 * DAY]), first=1)
    for path in Path(lake.url).rglob("_month=2024-02/*.parquet"):
        path.write_bytes(b"damaged")
    assert offsets_of(read_events(lake, source(), [], until=START + DAY)) == [0]
    with pytest.raises(Unavailable, match=r"cannot read events/departures"):
        read_events(lake, source(), [], until=START + 41 * DAY)


def test_a_flipped_bit_is_refused_by_the_name_of_its_file(lake: Lake) -> None:
    store(lake, departures([START]))
    store(lake, departures([START + 40 * DAY]), first=1)
    [rotten] = Path(lake.url).rglob("_month=2024-02/*.parquet")
    data = bytearray(rotten.read_bytes())
    data[len(data) // 3] ^= 1
    rotten.write_bytes(data)
    with pytest.raises(Unavailable, match=rotten.name):
        read_events(lake, source(), list(source().contract.names))


def test_no_flipped_bit_of_a_footer_renames_a_column(lake: Lake) -> None:
    store(lake, departures([START]))
    [rotten] = Path(lake.url).rglob("*.parquet")
    sound = rotten.read_bytes()
    length = int.from_bytes(sound[-8:-4], "little")
    for place in range(len(sound) - 8 - length, len(sound), 7):
        data = bytearray(sound)
        data[place] ^= 1 << place % 8
        rotten.write_bytes(data)
        with pytest.raises(Unavailable, match=f"{rotten.name} is not what was written"):
            read_events(lake, source(), list(source().contract.names))


def test_keys_keep_their_rows_only(lake: Lake) -> None:
    store(lake, departures([START + n for n in range(4)], origin=["JFK", "LGA", None, "JFK"], gate=[1, 1, 1, 2]))
    chosen = {"origin": pa.array(["JFK", "EWR"]), "gate": pa.array([2], pa.int64())}
    assert offsets_of(read_events(lake, source(), ["origin"], keys={"origin": chosen["origin"]})) == [0, 3]
    assert offsets_of(read_events(lake, source(), ["origin"], keys=chosen)) == [3]
    assert offsets_of(read_events(lake, source(), ["origin"], keys={"origin": pa.array([], pa.string())})) == []


def test_an_older_version_can_be_read(lake: Lake) -> None:
    store(lake, departures([START]))
    version = lake.version(TABLE)
    store(lake, departures([START + 1]), first=1)
    assert offsets_of(read_events(lake, source(), [], version=version)) == [0]
    assert offsets_of(read_events(lake, source(), [])) == [0, 1]
    assert (count_events(lake, source(), version), count_events(lake, source())) == (1, 2)


def test_events_older_than_a_column_have_the_default_of_the_contract(lake: Lake) -> None:
    store(lake, departures([START, START + 1]))
    newer = source(EVOLVED, 2)
    assert read_events(lake, newer, ["terminal"])["terminal"].to_pylist() == ["main", "main"]
    store(lake, departures([START + 2, START + 3], terminal=["west", "main"]), first=2)
    found = read_events(lake, newer, ["terminal"]).sort_by("_offset")
    assert found["terminal"].to_pylist() == ["main", "main", "west", "main"]
    assert offsets_of(read_events(lake, newer, ["terminal"], keys={"terminal": pa.array(["main"])})) == [0, 1, 3]


def test_a_null_is_not_taken_for_a_missing_column(lake: Lake) -> None:
    nullable = EVOLVED.replace('"type": "string", "default": "main"', '"type": ["string", "null"], "default": "main"')
    store(lake, departures([START]))
    store(lake, departures([START + 1, START + 2], terminal=[None, "west"]), first=1)
    found = read_events(lake, source(nullable, 2), ["terminal"]).sort_by("_offset")
    assert found["terminal"].to_pylist() == ["main", None, "west"]


def test_more_events_than_allowed_are_refused(lake: Lake) -> None:
    store(lake, departures([START + n for n in range(10)]))
    assert read_events(lake, source(), [], limit=10).num_rows == 10
    with pytest.raises(AtOutOfRange, match="more than 9 events of departures") as failure:
        read_events(lake, source(), [], limit=9)
    assert "export" in failure.value.hint


def test_a_flipped_bit_is_found(lake: Lake) -> None:
    """In any byte of the values that are read: never a wrong number, always an error."""
    times = [START + n * SECOND for n in range(2_000)]
    dice = np.random.default_rng(3)
    store(lake, departures(times, delay=dice.normal(size=2_000).tolist()))
    (path,) = Path(lake.url).rglob("*.parquet")
    whole = path.read_bytes()
    expected = read_events(lake, source(), ["delay"])
    caught = 0
    for place in dice.integers(4, len(whole) - 8, 60).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(dice.integers(8)))]) + whole[place + 1 :])
        try:
            assert read_events(lake, source(), ["delay"]).equals(expected)
        except Unavailable:
            caught += 1
    assert caught > 10
