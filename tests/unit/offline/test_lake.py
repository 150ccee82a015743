"""The promises of `Lake.append`: all or nothing, once, whoever else writes, and whenever the writer dies."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError

from featurestore.errors import ConfigError, Unavailable, UsageError
from featurestore.offline.lake import Lake, app_id
from tests.unit.offline.tables import DAY, HOUR, rows

TABLE = "events/departures"
APP = app_id("departures", 0)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "the lake"))


def contents(lake: Lake, table: str = TABLE) -> pa.Table:
    """The table as plain Delta readers see it, in order of offset."""
    files = [unquote(uri.removeprefix("file://")) for uri in DeltaTable(f"{lake.url}/{table}").file_uris()]
    return pads.dataset(files, schema=lake.schema(table), format="parquet").to_table().sort_by("_offset")


def positions(lake: Lake, table: str = TABLE) -> Counter[tuple[int, int]]:
    """How often the lake holds each (partition, offset)."""
    if lake.version(table) is None:
        return Counter()
    stored = contents(lake, table)
    return Counter(zip(stored["_partition"].to_pylist(), stored["_offset"].to_pylist(), strict=True))


def each_once(*ranges: tuple[int, int, int]) -> Counter[tuple[int, int]]:
    return Counter((partition, offset) for partition, first, last in ranges for offset in range(first, last + 1))


def test_an_append_is_there_with_its_mark(lake: Lake) -> None:
    assert lake.append(TABLE, rows(0, 9), {APP: 9}) is True
    assert positions(lake) == each_once((0, 0, 9))
    assert lake.recorded(TABLE, [APP, "departures/1"]) == {APP: 9}


def test_a_repeated_append_changes_nothing(lake: Lake) -> None:
    lake.append(TABLE, rows(0, 9), {APP: 9})
    before = lake.version(TABLE)
    assert lake.append(TABLE, rows(0, 9), {APP: 9}) is False
    assert lake.append(TABLE, rows(3, 7), {APP: 7}) is False
    assert lake.version(TABLE) == before
    assert positions(lake) == each_once((0, 0, 9))


def test_an_overlapping_append_adds_only_what_is_new(lake: Lake) -> None:
    both = {APP: 9, app_id("departures", 1): 4}
    lake.append(TABLE, pa.concat_tables([rows(0, 9), rows(0, 4, partition=1)]), both)
    later = {APP: 14, app_id("departures", 1): 4}
    assert lake.append(TABLE, pa.concat_tables([rows(5, 14), rows(2, 4, partition=1)]), later) is True
    assert positions(lake) == each_once((0, 0, 14), (1, 0, 4))
    assert lake.recorded(TABLE, list(later)) == later


def test_an_append_without_rows_records_its_mark(lake: Lake) -> None:
    assert lake.append(TABLE, rows(0, -1), {APP: 41}) is True
    assert lake.recorded(TABLE, [APP]) == {APP: 41}
    assert positions(lake) == Counter()
    assert lake.append(TABLE, rows(40, 43), {APP: 43}) is True
    assert positions(lake) == each_once((0, 42, 43))


def test_marks_survive_checkpoints_and_are_read_by_a_fresh_process(lake: Lake) -> None:
    for offset in range(105):
        lake.append(TABLE, rows(offset, offset), {APP: offset})
    assert (Path(lake.url) / TABLE / "_delta_log" / "_last_checkpoint").exists()
    assert Lake(lake.url).recorded(TABLE, [APP]) == {APP: 104}
    assert positions(lake) == each_once((0, 0, 104))


def test_a_row_beyond_its_mark_is_refused(lake: Lake) -> None:
    with pytest.raises(UsageError, match=r"row 9 \(partition 0, offset 9\) is beyond the marks"):
        lake.append(TABLE, rows(0, 9), {APP: 8})
    with pytest.raises(UsageError, match=r"row 0 \(partition 3, offset 0\)"):
        lake.append(TABLE, rows(0, 9, partition=3), {APP: 9})
    assert lake.version(TABLE) is None


@pytest.mark.parametrize("name", ["departures", "events/", "events/../../etc", "/events/x", "events/a/b", ""])
def test_a_name_that_is_no_table_is_refused(lake: Lake, name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a table"):
        lake.append(name, rows(0, 1), {APP: 1})


def test_what_is_not_there_is_none_and_makes_no_directory(lake: Lake) -> None:
    assert lake.version(TABLE) is None
    assert lake.schema(TABLE) is None
    assert lake.recorded(TABLE, [APP]) == {}
    assert lake.tables() == []
    assert not Path(lake.url).exists()


def test_tables_are_listed_and_strangers_are_not(lake: Lake) -> None:
    for name in ("events/departures", "features/airport_delay@1", "events/arrivals"):
        lake.append(name, rows(0, 1), {APP: 1})
    (Path(lake.url) / "registry").mkdir()
    (Path(lake.url) / "events" / "half").mkdir()
    assert lake.tables() == ["events/arrivals", "events/departures", "features/airport_delay@1"]


def test_a_table_says_what_it_is(lake: Lake) -> None:
    lake.append(TABLE, rows(0, 1), {APP: 1})
    metadata = DeltaTable(f"{lake.url}/{TABLE}").metadata()
    assert metadata.name == TABLE
    assert metadata.partition_columns == ["_month"]
    assert metadata.description


class TestColumns:
    def test_a_new_column_is_added_and_null_in_older_rows(self, lake: Lake) -> None:
        lake.append(TABLE, rows(0, 1), {APP: 1})
        lake.append(TABLE, rows(2, 3).append_column("gate", pa.array([7, None], pa.int64())), {APP: 3})
        stored = contents(lake)
        assert stored["gate"].to_pylist() == [None, None, 7, None]

    def test_a_column_may_be_missing_afterwards(self, lake: Lake) -> None:
        lake.append(TABLE, rows(0, 1), {APP: 1})
        lake.append(TABLE, rows(2, 3).drop_columns(["carrier"]), {APP: 3})
        stored = contents(lake)
        assert stored["carrier"].to_pylist() == ["C0", "C1", None, None]

    def test_another_type_is_refused_and_nothing_is_written(self, lake: Lake) -> None:
        lake.append(TABLE, rows(0, 1), {APP: 1})
        changed = rows(2, 3).drop_columns(["delay"]).append_column("delay", pa.array([1, 2], pa.int64()))
        with pytest.raises(UsageError, match="column delay of events/departures is double in the lake, and int64"):
            lake.append(TABLE, changed, {APP: 3})
        assert positions(lake) == each_once((0, 0, 1))

    def test_text_of_any_layout_is_text(self, lake: Lake) -> None:
        lake.append(TABLE, rows(0, 1), {APP: 1})
        batch = rows(2, 5)
        coded = batch.set_column(0, "carrier", batch["carrier"].dictionary_encode())
        large = batch.set_column(0, "carrier", batch["carrier"].cast(pa.large_string()))
        lake.append(TABLE, coded.slice(0, 2), {APP: 3})
        lake.append(TABLE, large.slice(2, 2), {APP: 5})
        stored = contents(lake)
        assert stored["carrier"].to_pylist() == ["C0", "C1", "C2", "C3", "C4", "C5"]


class TestRaces:
    def test_delta_refuses_a_second_commit_of_one_app_id_from_the_same_version(self, lake: Lake) -> None:
        """What `append` stands on: if a release of deltalake drops this, this test says so."""
        lake.append(TABLE, rows(0, 1), {APP: 1})
        uri = f"{lake.url}/{TABLE}"
        first, second, other = DeltaTable(uri), DeltaTable(uri), DeltaTable(uri)

        def commit(handle: DeltaTable, app: str) -> None:
            properties = CommitProperties(app_transactions=[Transaction(app, 2)])
            handle.create_write_transaction([], "append", handle.schema(), ["_month"], commit_properties=properties)

        commit(first, APP)
        with pytest.raises(CommitFailedError):
            commit(second, APP)
        commit(other, app_id("departures", 1))

    def test_a_commit_whose_answer_was_lost_is_neither_repeated_nor_damaged(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store may report a conflict with the very commit that its lost answer was about."""
        lake.append(TABLE, rows(0, 1), {APP: 1})
        commit = DeltaTable.create_write_transaction

        def lose_the_answer(handle: DeltaTable, *arguments: Any, **options: Any) -> None:
            commit(handle, *arguments, **options)
            raise CommitFailedError("Concurrent transaction failed.")

        monkeypatch.setattr(DeltaTable, "create_write_transaction", lose_the_answer)
        assert lake.append(TABLE, rows(2, 9), {APP: 9}) is False
        assert lake.recorded(TABLE, [APP]) == {APP: 9}
        assert positions(lake) == each_once((0, 0, 9))

    def test_threads_with_overlapping_ranges_leave_each_row_once(self, lake: Lake) -> None:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda seed: write_overlapping(lake.url, seed, 60), range(6)))
        assert positions(lake) == each_once((0, 0, 59), (1, 0, 59))

    def test_processes_with_overlapping_ranges_leave_each_row_once(self, lake: Lake) -> None:
        arguments = [[sys.executable, "-c", WRITER, lake.url, str(seed), "60"] for seed in range(3)]
        workers = [subprocess.Popen(each, stdout=subprocess.DEVNULL) for each in arguments]
        assert [worker.wait(120) for worker in workers] == [0, 0, 0]
        assert positions(lake) == each_once((0, 0, 59), (1, 0, 59))

    def test_writers_that_share_a_lake_object_may_be_threads(self, lake: Lake) -> None:
        def write(partition: int) -> None:
            for start in range(0, 40, 10):
                lake.append(TABLE, rows(start, start + 9, partition), {app_id("departures", partition): start + 9})

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert positions(lake) == each_once(*((p, 0, 39) for p in range(4)))

    def test_racing_writers_may_add_columns(self, lake: Lake) -> None:
        lake.append(TABLE, rows(0, 0, 9), {app_id("departures", 9): 0})

        def write(partition: int) -> None:
            mine = Lake(lake.url)
            for offset in range(10):
                batch = rows(offset, offset, partition).append_column(f"extra_{offset % 3}", pa.array([partition]))
                mine.append(TABLE, batch, {app_id("departures", partition): offset})

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert positions(lake) == each_once((9, 0, 0), *((p, 0, 9) for p in range(4)))


def write_overlapping(url: str, seed: int, count: int, told: Callable[[], None] = lambda: None) -> None:
    """Two partitions in steps of random length, each starting at or before what is recorded, as after a restart."""
    lake, dice = Lake(url), random.Random(seed)
    apps = [app_id("departures", p) for p in (0, 1)]
    while True:
        known = lake.recorded(TABLE, apps)
        if all(known.get(app, -1) >= count - 1 for app in apps):
            return
        parts, marks = [], {}
        for partition, app in enumerate(apps):
            start = max(0, known.get(app, -1) + 1 - dice.randrange(8))
            end = min(count - 1, start + dice.randrange(1, 12))
            parts.append(rows(start, end, partition, step=DAY))
            marks[app] = end
        lake.append(TABLE, pa.concat_tables(parts), marks)
        told()


WRITER = """
import sys
from tests.unit.offline.test_lake import write_overlapping
write_overlapping(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), lambda: print("appended", flush=True))
"""


def test_a_writer_killed_at_any_moment_leaves_whole_appends_only(lake: Lake) -> None:
    dice = random.Random(7)
    for seed in range(6):
        command = [sys.executable, "-c", WRITER, lake.url, str(seed), "1000000"]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"appended\n"
        time.sleep(dice.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
        writer.stdout.close()
    marks = lake.recorded(TABLE, [app_id("departures", p) for p in (0, 1)])
    assert len(marks) == 2
    assert positions(lake) == each_once(*((p, 0, marks[app_id("departures", p)]) for p in (0, 1)))
    assert lake.append(TABLE, rows(0, marks[APP] + 1), {APP: marks[APP] + 1}) is True
    assert positions(lake)[(0, marks[APP] + 1)] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_unavailable_and_the_append_succeeds_once_there_is_space(small_disk: Path) -> None:
    lake = Lake(str(small_disk / "lake"))
    lake.append(TABLE, rows(0, 99), {APP: 99})
    filler = small_disk / "filler"
    space = os.statvfs(small_disk)
    filler.write_bytes(b"x" * (space.f_bavail * space.f_bsize))
    files_before = sorted((small_disk / "lake").rglob("*.parquet"))
    with pytest.raises(Unavailable, match="append to events/departures") as failure:
        lake.append(TABLE, rows(100, 9_999, step=HOUR), {APP: 9_999})
    assert failure.value.part == "lake"
    assert "full" in failure.value.hint
    assert sorted((small_disk / "lake").rglob("*.parquet")) == files_before
    assert positions(lake) == each_once((0, 0, 99))
    filler.unlink()
    assert lake.append(TABLE, rows(100, 9_999, step=HOUR), {APP: 9_999}) is True
    assert positions(lake) == each_once((0, 0, 9_999))


LIMITED = """
import resource, signal, sys
from featurestore.errors import ConfigError, Unavailable
from featurestore.offline.lake import Lake
from tests.unit.offline.tables import rows
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
lake = Lake(sys.argv[1])
lake.append("events/departures", rows(0, 9), {"departures/0": 9})
try:
    lake.append("events/departures", rows(10, 50_000), {"departures/0": 50_000})
except Unavailable as error:
    print(error.hint)
print(lake.recorded("events/departures", ["departures/0"]))
"""


def test_a_limit_on_file_sizes_is_unavailable_and_nothing_is_half_written(lake: Lake) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, lake.url], capture_output=True, text=True, check=True)
    assert "raise it" in done.stdout
    assert "{'departures/0': 9}" in done.stdout
    assert positions(lake) == each_once((0, 0, 9))


def test_a_root_that_is_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot append to events/departures") as failure:
        Lake(str(tmp_path / "file")).append(TABLE, rows(0, 1), {APP: 1})
    assert failure.value.hint


def test_a_scheme_that_no_store_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="no lake can be at ftp://"):
        Lake("ftp://user:hidden@host/path")


def test_an_object_store_that_does_not_answer_is_unavailable_and_no_secret_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "nowhere",
        "AWS_ACCESS_KEY_ID": "hidden",
        "AWS_SECRET_ACCESS_KEY": "hidden",
    }.items():
        monkeypatch.setenv(name, value)
    lake = Lake("s3://key:hidden@bucket/path")
    assert lake.url == "s3://bucket/path"
    with pytest.raises(Unavailable) as failure:
        lake.version(TABLE)
    assert failure.value.part == "lake"
    assert "hidden" not in str(failure.value)
    assert "\x1b" not in str(failure.value)


def test_plain_duckdb_and_polars_read_the_tables(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.append(TABLE, rows(0, 99, step=DAY), {APP: 99})
    lake.append(TABLE, rows(100, 149, step=DAY), {APP: 149})
    uri = f"{lake.url}/{TABLE}"
    with duckdb.connect() as connection:
        files = connection.read_parquet(DeltaTable(uri).file_uris())
        assert files.aggregate("count(*), sum(delay)").fetchall() == [(150, sum(o * 0.5 for o in range(150)))]
    frame = pl.read_delta(uri)
    assert frame.height == 150
    assert frame.filter(pl.col("_month") == "2024-02").height == 29


def test_files_are_skipped_by_month_and_by_time(lake: Lake) -> None:
    lake.append(TABLE, rows(0, 99, step=DAY), {APP: 99})
    snapshot = lake.snapshot(TABLE)
    assert snapshot is not None
    found = {row["partition._month"]: row for row in snapshot.files.to_pylist()}
    assert sorted(found) == ["2024-01", "2024-02", "2024-03", "2024-04"]
    assert found["2024-02"]["num_records"] == 29
    assert found["2024-02"]["min.event_time"].isoformat() == "2024-02-01T00:00:00+00:00"


def test_the_way_through_an_object_store_is_the_same(tmp_path: Path) -> None:
    """`file://` through the code that object stores take: no directory is touched but by the store's own client."""
    lake = Lake(f"file://{tmp_path}/lake")
    lake._root, lake._base = None, f"file://{tmp_path}/lake"
    (tmp_path / "lake").mkdir()
    assert lake.tables() == []
    assert lake.append(TABLE, rows(0, 99, step=DAY), {APP: 99}) is True
    assert lake.append(TABLE, rows(50, 120, step=DAY), {APP: 120}) is True
    assert lake.tables() == [TABLE]
    assert positions(lake) == each_once((0, 0, 120))
    snapshot = lake.snapshot(TABLE)
    assert snapshot is not None
    fragments = [f for some in snapshot.place.fragments(snapshot.files["path"].to_pylist()) for f in some]
    assert sum(fragment.count_rows() for fragment in fragments) == 121
