"""Files of history: each once, as a whole or not at all, checked, and before the stream where times tie."""

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.clock import HOUR, MINUTE, ManualClock, SystemClock
from featurestore.engine.columns import LOADED
from featurestore.errors import ContractError, FeatureStoreError, InvalidRequest, Unavailable
from featurestore.offline import loading
from featurestore.offline.events import count_events, events_table, read_events
from featurestore.offline.export import export
from featurestore.offline.lake import Lake
from featurestore.offline.loading import LoadedFile, Loader, Terms
from featurestore.offline.loads import Load, Loads, loaded
from tests.unit.offline import flights
from tests.unit.offline.tables import EVOLVED, START, source

SOURCE = source()
NOW = START + 100 * HOUR
COLUMNS = ("departed_at", "origin", "gate", "delay")


def history(count: int, start: int = START - 1000 * HOUR, step: int = MINUTE, **columns: Any) -> pa.Table:
    """Departures before the stream's, in time order."""
    n = np.arange(count)
    given = {
        "departed_at": pa.array(start + n * step, pa.timestamp("us", "UTC")),
        "origin": pa.array([("JFK", "LGA", None)[i % 3] for i in n.tolist()], pa.string()),
        "gate": pa.array(n % 5, pa.int64()),
        "delay": pa.array(n * 0.5, pa.float64()),
    }
    return pa.table(given | columns)


def written(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, row_group_size=1000)
    return path


def load(
    lake: Lake, path: Path, *, before: int | None = None, visible: str = "", share: float = 0.5, at: int = NOW
) -> LoadedFile:
    terms = Terms(before, visible, path.parent / "rejects", share, "a test")
    return Loader(lake, SOURCE, terms, ManualClock(at), lambda _: None).load(path)


def rows_of(lake: Lake) -> pa.Table:
    read = read_events(lake, SOURCE, COLUMNS)
    return read.take(pa.array(np.lexsort([read["_offset"].to_numpy(), read["_partition"].to_numpy()])))


def events(table: pa.Table) -> list[dict[str, Any]]:
    return table.select(list(COLUMNS)).to_pylist()  # type: ignore[no-any-return]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def test_a_file_is_loaded_whole_and_in_its_order(lake: Lake, tmp_path: Path) -> None:
    table = history(5000, step=0)  # all of one instant
    found = load(lake, written(tmp_path / "h.parquet", table))

    assert (5000, 5000, 0, 0, False) == (found.rows, found.loaded, found.left_out, found.rejected, found.already)
    rows = rows_of(lake)
    assert events(table) == events(rows)
    assert [LOADED] * 5000 == rows["_partition"].to_pylist()
    assert list(range(5000)) == rows["_offset"].to_pylist()


def test_rows_of_any_order_are_in_time_order_inside_each_file_of_the_lake(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 700)
    monkeypatch.setattr(loading, "CHUNK_ROWS", 2000)
    table = history(5000)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(5000)))
    load(lake, written(tmp_path / "h.parquet", shuffled))

    assert events(shuffled) == events(rows_of(lake))
    snapshot = lake.snapshot(events_table("departures"))
    assert snapshot is not None
    paths = snapshot.files["path"].to_pylist()
    assert len(paths) == 3
    for path in paths:
        assert isinstance(snapshot.place.place, Path)
        times = pq.read_table(snapshot.place.place / path, partitioning=None)["event_time"].cast(pa.int64()).to_numpy()
        assert (times[1:] >= times[:-1]).all()


def test_the_same_content_is_loaded_once_whatever_its_name(lake: Lake, tmp_path: Path) -> None:
    table = history(300)
    load(lake, written(tmp_path / "h.parquet", table))
    again, renamed = load(lake, tmp_path / "h.parquet"), load(lake, written(tmp_path / "other.parquet", table))

    assert (True, True, 0, 0) == (again.already, renamed.already, again.loaded, renamed.loaded)
    assert 300 == count_events(lake, SOURCE)
    assert 1 == loaded(lake, "departures").count


def test_another_cut_of_a_loaded_file_is_refused(lake: Lake, tmp_path: Path) -> None:
    path = written(tmp_path / "h.parquet", history(300))
    load(lake, path, before=START)

    with pytest.raises(InvalidRequest, match="with --before 2024-01-01T00:00:00Z, and is now given without --before"):
        load(lake, path)
    assert 300 == count_events(lake, SOURCE)


def test_rows_from_the_cut_on_are_left_out_and_counted(lake: Lake, tmp_path: Path) -> None:
    table = history(300)
    found = load(lake, written(tmp_path / "h.parquet", table), before=START - 1000 * HOUR + 100 * MINUTE)

    assert (100, 200) == (found.loaded, found.left_out)
    assert events(table.slice(0, 100)) == events(rows_of(lake))


def test_rows_that_break_the_contract_are_written_with_reasons_and_the_others_keep_their_places(
    lake: Lake, tmp_path: Path
) -> None:
    late = [START - 1000 * HOUR + i * MINUTE for i in range(200)]
    late[7] = NOW + 6 * MINUTE  # further ahead than max_future_skew
    delay = [0.5, float("nan"), float("inf"), None, *[1.0] * 196]
    origin = pa.array([b"\xff" if i == 9 else b"JFK" for i in range(200)])
    table = history(
        200,
        departed_at=pa.array([None if i == 5 else t for i, t in enumerate(late)], pa.timestamp("us", "UTC")),
        delay=pa.array(delay, pa.float64()),
        origin=pa.Array.from_buffers(pa.string(), 200, origin.buffers()),
    )
    found = load(lake, written(tmp_path / "h.parquet", table))

    refused = [1, 2, 5, 7, 9]
    assert (195, 5) == (found.loaded, found.rejected)
    assert {"not_finite": 2, "wrong_type": 1, "future_event": 1, "bad_utf8": 1} == found.reasons
    assert [i for i in range(200) if i not in refused] == rows_of(lake)["_offset"].to_pylist()
    rejects = pq.read_table(found.rejects)
    assert refused == rejects["fs.row"].to_pylist()
    assert ["not_finite", "not_finite", "wrong_type", "future_event", "bad_utf8"] == rejects["fs.reason"].to_pylist()
    assert "delay: NaN or infinite" in rejects["fs.error"][0].as_py()


def test_a_file_of_which_most_rows_are_refused_is_not_loaded(lake: Lake, tmp_path: Path) -> None:
    path = written(tmp_path / "h.parquet", history(200, delay=pa.array([float("nan"), 1.0] * 100)))

    with pytest.raises(InvalidRequest, match=r"100 of 200 rows are refused \(100 × not_finite\); nothing") as refused:
        load(lake, path, share=0.49)
    assert 100 == pq.read_table(refused.value.hint.split(" has them")[0]).num_rows
    assert 0 == count_events(lake, SOURCE)
    assert 100 == load(lake, path, share=0.5).loaded


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (history(3).drop_columns(["departed_at"]), "no column 'departed_at'"),
        (history(3, gate=pa.array(["1", "2", "3"])), "column 'gate' is string"),
        (history(0, departed_at=pa.array([], pa.timestamp("us"))), "column 'departed_at' is timestamp"),
        (history(3).rename_columns(["departed_at", "origin", "gate", "gate"]), "2 columns 'gate'"),
    ],
)
def test_wrong_columns_are_named(lake: Lake, tmp_path: Path, table: pa.Table, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        load(lake, written(tmp_path / "h.parquet", table))
    assert 0 == count_events(lake, SOURCE)


def test_what_is_no_parquet(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "h.parquet").write_bytes(b"id,delay\n1,2\n" * 100)

    with pytest.raises(InvalidRequest, match=r"h\.parquet cannot be read as Parquet"):
        load(lake, tmp_path / "h.parquet")
    with pytest.raises(InvalidRequest, match="there is no file"):
        load(lake, tmp_path / "none.parquet")


def test_a_file_that_is_cut_short_adds_nothing(lake: Lake, tmp_path: Path) -> None:
    whole = written(tmp_path / "h.parquet", history(20_000)).read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 2000] = os.urandom(2000)
    (tmp_path / "h.parquet").write_bytes(broken)

    with pytest.raises(InvalidRequest, match="cannot be read as Parquet"):
        load(lake, tmp_path / "h.parquet")
    assert 0 == count_events(lake, SOURCE)
    assert [] == list((tmp_path / "lake" / "events").rglob("*.parquet"))


def test_a_visible_time_is_the_load_s_or_the_file_s_own(lake: Lake, tmp_path: Path) -> None:
    seen = pa.array([None if i == 1 else START - i for i in range(300)], pa.timestamp("us", "UTC"))
    load(lake, written(tmp_path / "a.parquet", history(300)), at=NOW)
    found = load(lake, written(tmp_path / "b.parquet", history(300, seen=seen)), visible="seen")

    assert {"wrong_type": 1} == found.reasons
    files = sorted((tmp_path / "lake" / "events").rglob("*.parquet"))
    times = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    times = times.take(pa.array(np.argsort(times["_offset"].to_numpy())))["visible_time"].cast(pa.int64()).to_pylist()
    assert [NOW] * 300 == times[:300]
    assert [START - i for i in range(300) if i != 1] == times[300:]
    with pytest.raises(InvalidRequest, match="column 'when' is missing"):
        load(lake, written(tmp_path / "c.parquet", history(30)), visible="when")


def test_a_file_that_reaches_into_the_stream_needs_a_cut(lake: Lake, tmp_path: Path) -> None:
    flights.stored(lake)  # the topic's events begin at START
    path = written(tmp_path / "h.parquet", history(101, start=START - 100 * MINUTE))

    with pytest.raises(InvalidRequest, match="from 2024-01-01T00:00:00Z on: some may be the same") as refused:
        load(lake, path)
    assert "--before 2024-01-01T00:00:00Z" in refused.value.hint
    found = load(lake, path, before=START)
    assert (100, 1) == (found.loaded, found.left_out)


def test_where_times_tie_what_was_loaded_is_before_the_stream_and_in_the_order_of_files(
    lake: Lake, tmp_path: Path
) -> None:
    def tied(gate: int) -> pa.Table:
        return pa.Table.from_pylist(
            [{"departed_at": START, "origin": "JFK", "gate": g, "delay": 0.0} for g in (gate, gate + 1)],
            flights.table_of([]).schema,
        )

    def last_gates() -> list[int]:
        export("flight_delay", flights.spine(("JFK", 7, START)), tmp_path / "out", lake=lake,
               catalog=flights.catalog(), now=NOW)  # fmt: skip
        found: list[int] = pq.read_table(tmp_path / "out" / "part-00000.parquet")["airport_delay.last_gates"][0].as_py()
        return found

    load(lake, written(tmp_path / "a.parquet", tied(100)))
    assert [101, 100] == last_gates()
    load(lake, written(tmp_path / "b.parquet", tied(50)))
    assert [51, 50] == last_gates()
    flights.stored(lake)  # gate 7 at START, at offset 0
    assert [7, 51] == last_gates()


def test_two_at_once_load_a_file_once_and_two_files_both(lake: Lake, tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{i}.parquet", history(2000, start=START - (1000 + i) * HOUR)) for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: load(Lake(lake.url), path), [*paths, *paths]))

    assert 4 == sum(not file.already for file in found)
    assert 8000 == count_events(lake, SOURCE) == len(set(rows_of(lake)["_offset"].to_pylist()))
    assert 4 == loaded(lake, "departures").count


def test_a_file_keeps_the_place_that_a_killed_process_gave_it(lake: Lake, tmp_path: Path) -> None:
    path = written(tmp_path / "h.parquet", history(100))
    lost = Load("0" * 64, "gone.parquet", 70, 0, None, "", 5, "a killed one")
    loads = Loads(lake, SOURCE)
    assert (1, 0) == (loads.place(lost)[0], loads.place(lost)[1].first)
    found = load(lake, path)

    assert list(range(70, 170)) == rows_of(lake)["_offset"].to_pylist()
    assert (2, 70) == (Loads(lake, SOURCE).place(replace_digest(lost, found.digest))[0], 70)


def replace_digest(load: Load, digest: str) -> Load:
    return Load(digest, load.file, load.rows, load.first, load.before, load.visible, load.at, load.by)


SLOW = """
import sys, time
from pathlib import Path
from featurestore.clock import SystemClock
from featurestore.offline import loading
from featurestore.offline.lake import Lake
from featurestore.offline.loading import Loader, Terms
from tests.unit.offline.tables import source
loading.BATCH_ROWS = loading.CHUNK_ROWS = 500
def tell(said):
    time.sleep(0.02)
lake, file, rejects = Lake(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
Loader(lake, source(), Terms(None, "", rejects, 0.5, "slow"), SystemClock(), tell).load(file)
"""


def test_what_was_killed_in_the_middle_is_loaded_by_the_next(lake: Lake, tmp_path: Path) -> None:
    path = written(tmp_path / "h.parquet", history(20_000))
    command = [sys.executable, "-c", SLOW, lake.url, str(path), str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    until = time.monotonic() + 30
    while not list((tmp_path / "lake").rglob("*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert 0 == count_events(lake, SOURCE)
    assert 20_000 == load(lake, path).loaded
    assert list(range(20_000)) == rows_of(lake)["_offset"].to_pylist()


def test_a_full_disk_adds_nothing_and_the_next_load_goes_well(lake: Lake, tmp_path: Path) -> None:
    table = history(20_000, delay=pa.array(np.random.default_rng(2).random(20_000)))
    path = written(tmp_path / "h.parquet", table)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Unavailable, match="events/departures") as refused:
            load(lake, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert "ulimit" in refused.value.hint
    assert [] == list((tmp_path / "lake" / "events").rglob("*.parquet"))
    assert 20_000 == load(lake, path).loaded


def test_refused_rows_that_cannot_be_written_stop_the_load(lake: Lake, tmp_path: Path) -> None:
    path = written(tmp_path / "h.parquet", history(200, delay=pa.array([float("nan"), *[1.0] * 199])))
    (tmp_path / "rejects").write_text("a file")

    with pytest.raises(FeatureStoreError, match="refused rows cannot be written"):
        load(lake, path)
    assert 0 == count_events(lake, SOURCE)


def test_a_column_that_the_contract_gained_is_added_to_the_table(lake: Lake, tmp_path: Path) -> None:
    load(lake, written(tmp_path / "a.parquet", history(10)))
    newer = source(EVOLVED, 2)
    terms = Terms(None, "", tmp_path, 0.5, "a test")
    table = history(10, start=START - 500 * HOUR, terminal=pa.array(["T4"] * 10))
    Loader(lake, newer, terms, SystemClock(), lambda _: None).load(written(tmp_path / "b.parquet", table))

    read = read_events(lake, newer, ["terminal"])
    assert {"main": 10, "T4": 10} == {name: read["terminal"].to_pylist().count(name) for name in ("main", "T4")}


def test_memory_does_not_grow_with_the_file(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    monkeypatch.setattr(loading, "BATCH_ROWS", 1000)
    monkeypatch.setattr(loading, "CHUNK_ROWS", 3000)
    add = loading._Chunk.add

    def watched(chunk: Any, rows: pa.Table) -> None:
        add(chunk, rows)
        held.append(chunk._rows)

    monkeypatch.setattr(loading._Chunk, "add", watched)
    load(lake, written(tmp_path / "h.parquet", history(20_000)))

    assert max(held) < 3000 + 1000


def test_marks_of_the_stream_are_left_alone(lake: Lake, tmp_path: Path) -> None:
    flights.stored(lake)
    load(lake, written(tmp_path / "h.parquet", history(100)))

    assert {"departures/0": 4} == lake.recorded("events/departures", ["departures/0", f"departures/{LOADED}"])


def test_what_was_loaded_does_not_leak_into_rows_of_before_the_load(lake: Lake, tmp_path: Path) -> None:
    flights.stored(lake)
    path = written(tmp_path / "h.parquet", history(300, start=START - 10 * HOUR))
    load(lake, path, before=START, at=START + 5 * HOUR)

    def counts(*, as_served: bool) -> list[int]:
        spine = flights.spine(*(("JFK", 0, START + hours * HOUR) for hours in (1, 4, 6)))
        export("gates", spine, tmp_path / "out", lake=lake, catalog=flights.catalog(), now=NOW, as_served=as_served)
        found: list[int] = pq.read_table(tmp_path / "out" / "part-00000.parquet")["gate_use.departures"].to_pylist()
        return found

    assert [20, 20, 20] == counts(as_served=False)
    assert [0, 0, 20] == counts(as_served=True)
