"""The work of an export in pieces: as a map over buckets, on other processes, killed and gone on with."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.clock import DAY, HOUR
from featurestore.errors import FeatureStoreError, UsageError
from featurestore.offline import lots, making
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.offline.export import export
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.lots import lots_of
from featurestore.offline.manifest import Manifest
from featurestore.offline.sizing import Size, size_of
from featurestore.offline.visibility import visible_table
from streams.visibility import Seen, seen_rows
from tests.unit.offline.flights import catalog
from tests.unit.offline.tables import START
from tests.unit.offline.test_export import NOW, tree

AIRPORTS = [f"A{n}" for n in range(50)]


def filled(lake: Lake, events: int = 4_000) -> Lake:
    """Several files of random departures, nulls and late ones among them, and when they became readable."""
    random = np.random.default_rng(3)
    for first in range(0, events, 1_000):
        times = START + random.integers(0, 40 * DAY, 1_000)
        origins = [None if n == 50 else AIRPORTS[n] for n in random.integers(0, 51, 1_000)]
        columns = {
            "departed_at": pa.array(times).cast(pa.timestamp("us", "UTC")),
            "origin": pa.array(origins, pa.string()),
            "gate": pa.array(random.integers(0, 4, 1_000)),
            "delay": pa.array(random.normal(0, 20, 1_000), mask=random.random(1_000) < 0.1),
        }
        rows = system_columns(pa.table(columns), 0, np.arange(first, first + 1_000), "departed_at", START + 40 * DAY)
        lake.append(events_table("departures"), in_time_order(rows), {app_id("departures", 0): first + 999})
    for view in catalog().views.values():
        seen = [Seen(p, n, 2, ((0, n * 100 - 1, n * 100 + 99),), START + n * DAY) for n in range(39) for p in range(2)]
        lake.append(visible_table(view), seen_rows(seen), {app_id(view.id, p): 38 for p in range(2)})
    return lake


def asked(rows: int = 3_000) -> pa.Table:
    random = np.random.default_rng(5)
    return pa.table(
        {
            "origin": pa.array([None if n == 52 else f"A{n}" for n in random.integers(0, 53, rows)], pa.string()),
            "gate": pa.array(random.integers(0, 5, rows), mask=random.random(rows) < 0.05),
            "event_time": pa.array(START + random.integers(-DAY, 42 * DAY, rows)).cast(pa.timestamp("us", "UTC")),
        }
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return filled(Lake(str(tmp_path / "lake")))


def run(lake: Lake, out: Path, **options: Any) -> Manifest:
    return export("flight_delay", asked(), out, lake=lake, catalog=catalog(), now=NOW, **options)


def divided(monkeypatch: pytest.MonkeyPatch, buckets: int, processes: int = 1) -> None:
    monkeypatch.setattr(making, "size_of", lambda *_, **__: Size(buckets, processes))
    monkeypatch.setattr(making, "MAX_ROWS", 700)


@pytest.mark.parametrize("as_served", [False, True])
def test_buckets_change_no_byte_of_the_rows(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_served: bool
) -> None:
    options = {"as_served": as_served, "status": True, "as_of": True}
    divided(monkeypatch, 1)
    whole = run(lake, tmp_path / "one", **options)
    monkeypatch.setattr(making, "PIECE_EVENTS", 1_500)
    divided(monkeypatch, 7)
    told: list[tuple[str, int, int]] = []
    parts = run(lake, tmp_path / "seven", progress=lambda *said: told.append(said), **options)

    assert whole.files == parts.files
    assert whole.visibility == parts.visibility
    assert (whole.buckets, parts.buckets) == (1, 7)
    assert len(parts.files) == 5
    assert {name for name, *_ in told} == {"reading events", "computing rows", "writing rows"}
    assert all(0 <= done <= total for _, done, total in told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "one", "seven"]


@pytest.mark.parametrize("as_served", [False, True])
def test_parts_of_one_piece_change_no_byte(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_served: bool
) -> None:
    options = {"as_served": as_served, "status": True, "as_of": True}
    whole = run(lake, tmp_path / "whole", **options)
    monkeypatch.setattr(making, "WHOLE_EVENTS", 0)
    monkeypatch.setattr(lots, "NUMBERED_ROWS", 300)
    told: list[tuple[str, int, int]] = []
    parts = run(lake, tmp_path / "parts", threads=3, progress=lambda *said: told.append(said), **options)

    assert whole.files == parts.files
    assert whole.visibility == parts.visibility
    assert (whole.buckets, parts.buckets) == (1, 1)
    assert {name for name, *_ in told} == {"reading events", "computing rows", "writing rows"}
    assert all(0 <= done <= total for _, done, total in told)


@pytest.mark.slow
def test_other_processes_change_no_byte(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    divided(monkeypatch, 4)
    one = run(lake, tmp_path / "one")
    divided(monkeypatch, 4, processes=2)
    assert run(lake, tmp_path / "two") == one
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_what_another_process_raises_arrives_as_it_is(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [*files] = (tmp_path / "lake" / "events").rglob("*.parquet")
    files[0].write_bytes(files[0].read_bytes()[:-40])
    divided(monkeypatch, 2, processes=2)
    with pytest.raises(FeatureStoreError, match=files[0].name) as failure:
        run(lake, tmp_path / "out")
    assert failure.value.hint


GO = """
import sys
from pathlib import Path
from featurestore.offline import lots, making
from featurestore.offline.lake import Lake
from featurestore.offline.sizing import Size
from tests.unit.offline.test_export_map import run
making.size_of = lambda *_, **__: Size(9, 1)
making.MAX_ROWS = 700
run(Lake(sys.argv[1]), Path(sys.argv[2]), as_served=True, progress=lambda *said: print(*said, flush=True))
"""


@pytest.mark.slow
def test_a_killed_export_goes_on_and_ends_with_the_same_bytes(lake: Lake, tmp_path: Path) -> None:
    command = [sys.executable, "-c", GO, lake.url]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    killed = [tmp_path / f"killed-{lines}" for lines in (2, 6, 12, 14)]
    for out in killed:
        with subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(int(out.name.partition("-")[2])):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        assert not out.exists()
        assert any(tmp_path.glob(f".{out.name}.*.work/events-0-*.arrow"))
    # The lake moves on meanwhile; the exports do not.
    rows = system_columns(one_event(), 0, np.array([5_000]), "departed_at", START)
    lake.append(events_table("departures"), rows, {app_id("departures", 0): 5_000})
    for out in killed:
        subprocess.run([*command, str(out)], check=True, stdout=subprocess.DEVNULL)
        assert tree(out) == tree(tmp_path / "whole")
    assert not list(tmp_path.glob(".killed-*"))


@pytest.mark.slow
def test_a_full_disk_is_said_and_what_is_there_is_gone_on_with(lake: Lake, tmp_path: Path) -> None:
    command = [sys.executable, "-c", GO, lake.url]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    # Answers of a bucket fit, the events of a piece do not.
    full = [sys.executable, "-c", f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000,) * 2){GO}"]
    failed = subprocess.run([*full, lake.url, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert f"cannot write {tmp_path / 'out'}" in failed.stderr
    assert "goes on from what it has" in failed.stderr
    assert not (tmp_path / "out").exists()
    subprocess.run([*command, str(tmp_path / "out")], check=True, stdout=subprocess.DEVNULL)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "out", "whole"]


def one_event() -> pa.Table:
    return pa.table(
        {
            "departed_at": pa.array([START + HOUR]).cast(pa.timestamp("us", "UTC")),
            "origin": ["A1"],
            "gate": [1],
            "delay": [1e6],
        }
    )


@pytest.mark.slow
def test_two_exports_to_one_place_do_not_meet(lake: Lake, tmp_path: Path) -> None:
    command = [sys.executable, "-c", GO, lake.url, str(tmp_path / "out")]
    first = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert first.stdout is not None
    first.stdout.readline()
    first.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(UsageError, match="another export is being written"):
            run(lake, tmp_path / "out", as_served=True)
    finally:
        first.send_signal(signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_also_where_a_worker_is_killed(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    divided(monkeypatch, 32)
    whole = run(lake, tmp_path / "local")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "dask.log").open("wb")
    quiet: Any = {"stdout": log, "stderr": log, "env": {**os.environ, "PYTHONPATH": str(Path.cwd())}}
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port),
         "--no-dashboard", "--dashboard-address", "127.0.0.1:0"], **quiet)  # fmt: skip
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--no-nanny",
              "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]  # fmt: skip
    workers = [subprocess.Popen(worker, **quiet) for _ in range(2)]
    killed: list[int] = []

    def kill_one(doing: str, done: int, _total: int) -> None:
        if doing == "computing rows" and done and not killed:
            workers[0].kill()
            killed.append(workers[0].wait())

    try:
        spread = run(lake, tmp_path / "spread", executor=f"dask://127.0.0.1:{port}", progress=kill_one)
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
        log.close()
    assert killed, (tmp_path / "dask.log").read_text()
    assert spread == whole
    assert tree(tmp_path / "spread") == tree(tmp_path / "local")


@pytest.mark.parametrize("url", ["tcp://x:1", "dask://", "dask://x"])
def test_an_executor_that_is_none(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    divided(monkeypatch, 2)
    with pytest.raises(UsageError, match="is no executor"):
        run(lake, tmp_path / "out", executor=url)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake"]


def test_more_events_are_divided_further_and_less_memory_too() -> None:
    lots_there = lots_of(list(catalog().views.values()))

    def size(events: int, memory: int = 2 << 30, processes: int = 2) -> Size:
        return size_of(lots_there, {"departures": events}, 1_000_000, 30 << 20, memory=memory, processes=processes,
                       as_served=False, output_bytes=200 << 20)  # fmt: skip

    assert size(100_000) == size(10_000_000) == Size(1, 1)
    assert size(20_000_000).buckets > 1
    assert size(100_000_000).buckets > size(20_000_000).buckets
    assert size(20_000_000, memory=1 << 30).buckets > size(20_000_000).buckets
    with pytest.raises(UsageError, match="cannot do with 100 MiB"):
        size(1, memory=100 << 20)
    with pytest.raises(UsageError, match="does not fit"):
        size_of(
            lots_there, {"departures": 1}, 10, 1 << 30, memory=1 << 30, processes=1, as_served=False, output_bytes=1
        )
