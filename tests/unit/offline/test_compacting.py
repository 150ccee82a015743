"""Compaction changes files and nothing else: rows, order, marks, versions; beside writers, readers and itself."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.clock import HOUR, MINUTE, SystemClock
from featurestore.errors import Corrupt, UsageError
from featurestore.offline.compacting import COMPACTIONS, Compacted, Compactor
from featurestore.offline.events import events_table, in_time_order, read_events, system_columns
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.loads import loaded
from streams.visibility import Seen, seen_rows
from tests.unit.offline import flights
from tests.unit.offline.tables import EVOLVED, START, source
from tests.unit.offline.test_loading import history, load, written

TABLE = events_table("departures")
SOURCE = source()
MONTH = 31 * 24 * HOUR


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def append(lake: Lake, first: int, count: int, partition: int = 0, start: int = START, step: int = MINUTE) -> None:
    n = np.arange(first, first + count)
    rows = pa.table(
        {
            "departed_at": pa.array(start + n * step, pa.timestamp("us", "UTC")),
            "origin": pa.array([("JFK", "LGA", None)[i % 3] for i in n.tolist()]),
            "gate": pa.array(n % 5, pa.int64()),
            "delay": pa.array(n * 0.5),
        }
    )
    stored = in_time_order(system_columns(rows, partition, n, "departed_at", START))
    assert lake.append(TABLE, stored, {app_id("departures", partition): first + count - 1})


def filled(lake: Lake, appends: int = 30) -> Lake:
    """Of two partitions and two months."""
    for i in range(appends):
        append(lake, 10 * i, 10, i % 2, START + (MONTH if i % 3 == 0 else 0))
    return lake


def merge(lake: Lake, target: int = 1_000_000) -> Compacted:
    return Compactor(lake, SystemClock(), lambda _: None, target_rows=target).merge(TABLE)


def rows_of(lake: Lake, version: int | None = None) -> list[tuple[object, ...]]:
    read = read_events(lake, SOURCE, ["departed_at", "origin", "gate", "delay"], version=version)
    return sorted(zip(*read.to_pydict().values(), strict=True), key=repr)


def paths_of(lake: Lake) -> list[Path]:
    snapshot = lake.snapshot(TABLE)
    assert snapshot is not None
    assert isinstance(snapshot.place.place, Path)
    return [snapshot.place.place / path for path in snapshot.files["path"].to_pylist()]


def test_small_files_become_one_of_each_month_in_time_order_with_the_same_rows(lake: Lake) -> None:
    filled(lake)
    before, marks = rows_of(lake), lake.recorded(TABLE, ["departures/0", "departures/1"])
    version = lake.version(TABLE)
    done = merge(lake)

    assert (30, 2, 30, 300) == (done.files_before, done.files_after, done.merged, done.rows)
    assert before == rows_of(lake) == rows_of(lake, version)
    assert marks == lake.recorded(TABLE, ["departures/0", "departures/1"])
    for path in paths_of(lake):
        table = pq.read_table(path, partitioning=None)
        places = [table[name].cast(pa.int64()).to_pylist() for name in ("event_time", "_partition", "_offset")]
        assert sorted(zip(*places, strict=True)) == list(zip(*places, strict=True))
    assert 0 == merge(lake).merged


def test_files_keep_their_statistics_and_the_digests_in_their_names(lake: Lake) -> None:
    filled(lake)
    merge(lake)
    snapshot = lake.snapshot(TABLE)
    assert snapshot is not None
    stats = snapshot.files.to_pylist()

    assert {200, 100} == {file["num_records"] for file in stats}
    assert {0} == {file["null_count._offset"] for file in stats}
    early = read_events(lake, SOURCE, ["gate"], until=START + HOUR)
    assert 0 < early.num_rows < 300
    [first, _] = paths_of(lake)
    first.write_bytes(first.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(Exception, match=first.name):
        rows_of(lake)


def test_a_repeated_append_after_it_is_still_a_no_op(lake: Lake) -> None:
    filled(lake)
    merge(lake)
    n = np.arange(200, 210)
    rows = system_columns(flights.table_of([flights.EVENTS[0]] * 10), 0, n, "departed_at", START)

    assert not lake.append(TABLE, rows, {app_id("departures", 0): 209})
    assert 300 == len(rows_of(lake))


def test_large_files_are_left_alone_and_merged_ones_have_a_size(lake: Lake) -> None:
    for i in range(12):
        append(lake, 100 * i, 100)
    done = merge(lake, target=250)
    sizes = [pq.read_metadata(path).num_rows for path in paths_of(lake)]

    assert 12 == done.merged
    assert {200, 250} >= set(sizes)
    assert 1200 == sum(sizes)
    bounds = sorted(
        (min(t), max(t))
        for t in (pq.read_table(p, partitioning=None)["event_time"].to_pylist() for p in paths_of(lake))
    )
    assert all(one[1] < other[0] for one, other in itertools.pairwise(bounds))


def test_loaded_events_stay_in_files_of_their_own(lake: Lake, tmp_path: Path) -> None:
    for i in range(3):
        path = written(tmp_path / f"{i}.parquet", history(50, start=START - (300 - i) * HOUR))
        load(lake, path, before=START)
    for i in range(4):
        append(lake, 10 * i, 10, start=START - 200 * HOUR)
    before = rows_of(lake)
    merge(lake)

    assert before == rows_of(lake)
    kinds = [set(pq.read_table(path, partitioning=None)["_partition"].to_pylist()) for path in paths_of(lake)]
    assert [{-1}, {0}] == sorted(kinds, key=min)
    assert 3 == loaded(lake, "departures").count
    assert load(lake, tmp_path / "1.parquet", before=START).already


def test_a_file_from_before_a_column_keeps_the_column_s_default(lake: Lake) -> None:
    filled(lake, 4)
    newer = source(EVOLVED, 2)
    for i in range(4):
        n = np.arange(1000 + 10 * i, 1010 + 10 * i)
        rows = flights.table_of([flights.EVENTS[0]] * 10).append_column("terminal", pa.array(["T4"] * 10))
        lake.append(TABLE, system_columns(rows, 0, n, "departed_at", START), {app_id("departures", 0): int(n[-1])})
    merge(lake)

    read = read_events(lake, newer, ["terminal"])["terminal"].to_pylist()
    assert {"main": 40, "T4": 40} == {name: read.count(name) for name in set(read)}


def test_duckdb_and_polars_read_it_as_plain_delta(lake: Lake) -> None:
    filled(lake)
    merge(lake)
    append(lake, 1000, 10)

    url = f"{lake.url}/{TABLE}"
    assert 310 == pl.read_delta(url).height
    with duckdb.connect() as duck:
        files = [str(path) for path in paths_of(lake)]
        assert (310,) == duck.execute("select count(*) from read_parquet(?)", [files]).fetchone()


def test_writers_readers_and_two_compactions_at_once(lake: Lake) -> None:
    """Every snapshot that a reader takes has every row once."""
    filled(lake, 10)
    stop, failures = threading.Event(), list[str]()

    def write() -> None:
        own, first = Lake(lake.url), 1000
        while not stop.is_set():
            append(own, first, 10)
            first += 10

    def read() -> None:
        own = Lake(lake.url)
        while not stop.is_set():
            rows = read_events(own, SOURCE, ["gate"])
            places = list(zip(rows["_partition"].to_pylist(), rows["_offset"].to_pylist(), strict=True))
            written = [o for p, o in places if p == 0 and o >= 1000]
            whole = sorted(written) == list(range(1000, 1000 + len(written)))
            if len(places) != len(set(places)) or not whole or len(places) - len(written) != 100:
                failures.append(f"{len(places)} rows, {len(set(places))} of them different")

    def compact() -> None:
        while not stop.is_set():
            merge(Lake(lake.url))

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(work) for work in (write, read, compact, compact)]
        time.sleep(6)
        stop.set()
        for task in tasks:
            task.result()
    assert [] == failures
    assert lake.recorded(TABLE, [COMPACTIONS])[COMPACTIONS] > 5


def test_an_older_version_is_readable_until_the_sweep(lake: Lake) -> None:
    filled(lake)
    version, before = lake.version(TABLE), rows_of(lake)
    old = paths_of(lake)
    merge(lake)

    assert 0 == lake.sweep(TABLE, 24)
    assert before == rows_of(lake, version)
    assert 30 == lake.sweep(TABLE, 0, dry=True)
    assert all(path.exists() for path in old)
    assert 30 == lake.sweep(TABLE, 0)
    assert not any(path.exists() for path in old)
    assert before == rows_of(lake)


def test_what_never_became_part_of_the_table_is_swept_when_it_is_old(lake: Lake, tmp_path: Path) -> None:
    filled(lake, 4)
    draft = lake.draft(TABLE, pq.read_schema(paths_of(lake)[0]))
    draft.write(pq.read_table(paths_of(lake)[0], partitioning=None))
    orphans = set((tmp_path / "lake").rglob("*.parquet")) - set(paths_of(lake))

    assert 1 == len(orphans)
    assert 0 == lake.sweep(TABLE, 24)
    assert 1 == lake.sweep(TABLE, 0)
    assert not any(path.exists() for path in orphans)


def test_a_damaged_file_is_named_and_nothing_is_merged(lake: Lake) -> None:
    filled(lake, 6)
    victim = paths_of(lake)[2]
    data = bytearray(victim.read_bytes())
    data[40] ^= 1
    victim.write_bytes(data)
    version = lake.version(TABLE)

    with pytest.raises(Corrupt, match="cannot be read"):
        merge(lake)
    snapshot = lake.snapshot(TABLE)
    assert snapshot is not None
    assert version is not None
    assert str(victim.relative_to(Path(lake.url) / TABLE)) in snapshot.files["path"].to_pylist()


def test_a_short_retention_is_refused(lake: Lake) -> None:
    with pytest.raises(UsageError, match="a retention of 1 hours is too short"):
        Compactor(lake, SystemClock(), lambda _: None).run(TABLE, retention_hours=1)


def test_a_dry_run_changes_nothing(lake: Lake) -> None:
    filled(lake)
    version = lake.version(TABLE)
    done = Compactor(lake, SystemClock(), lambda _: None).run(TABLE, retention_hours=24, dry=True)

    assert (30, 300, version) == (done.merged, done.rows, lake.version(TABLE))


def test_the_record_of_visible_times_is_merged_in_the_order_of_the_log(lake: Lake) -> None:
    """A worker appends to it every interval, and every as_served export reads all of it."""
    table = "visible/airport_delay@1"
    flushes = [
        seen_rows([Seen(p, n, 2, ((0, 10 * n - 1, 10 * n + 9),), START + n * MINUTE + p) for p in range(2)])
        for n in range(20)
    ]
    for n, rows in enumerate(flushes):
        lake.append(table, rows, {app_id("airport_delay@1", p): n for p in range(2)})
    before = lake.snapshot(table)
    assert before is not None
    done = Compactor(lake, SystemClock(), lambda _: None).merge(table)
    after = lake.snapshot(table)
    assert after is not None

    assert (done.files_before, done.files_after, done.rows) == (20, 1, 40)
    then, now = (pl.read_delta(f"{lake.url}/{table}", version=v.version) for v in (before, after))
    assert now.equals(then.sort("_partition", "_offset"))
    assert not lake.append(table, flushes[-1], {app_id("airport_delay@1", p): 19 for p in range(2)})
