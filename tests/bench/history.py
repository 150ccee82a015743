"""How fast history gets into the lake: `python -m tests.bench.history [--years 9]`.

Years of real flights, one Parquet file, into a lake in a directory; then the same in many appends, compacted. Rates are
of processor time, so that they are of one core whatever else runs, beside plain reading and writing of the same file by
Arrow, which neither checks nor sorts nor can be repeated. What is in the lake is counted again.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.cli.demo.flights import events, load_flights
from featurestore.clock import DAY, MINUTE, SystemClock
from featurestore.contracts.contract import load_contract
from featurestore.definitions.compiled import CompiledSource
from featurestore.offline.compacting import Compactor
from featurestore.offline.events import count_events, events_table, in_time_order, system_columns
from featurestore.offline.files import PARQUET
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.loading import Loader, Terms

CONTRACT = load_contract("schemas", "flights.departures/v1")
SOURCE = CompiledSource(
    name="departures", topic="flights.departures", contract=CONTRACT, event_time="departed_at", key=(), lateness=0,
    max_future_skew=5 * MINUTE,
)  # fmt: skip
APPEND = 5_000


def years(count: int) -> pa.Table:
    """The flights of 2013, and the same again for each year before."""
    flights = events(CONTRACT, load_flights())
    at = flights["departed_at"].cast(pa.int64()).to_numpy()
    moved = [at - year * 365 * DAY for year in range(count - 1, -1, -1)]
    shifted = [pa.array(instants, pa.timestamp("us", "UTC")) for instants in moved]
    return pa.concat_tables([flights.set_column(0, "departed_at", instants) for instants in shifted])


@contextmanager
def timed(what: str, rows: int, checked: Callable[[], int] | None = None) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert checked is None or checked() == rows
    print(f"{what:<34} {rows / cpu:12,.0f} rows/s of one core {rows / wall:12,.0f} rows/s of wall time")


def measure(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, table = Path(name), years(count)
        file, rows = directory / "history.parquet", table.num_rows
        pq.write_table(table, file, row_group_size=128 * 1024)
        print(f"{rows:,} flights, {file.stat().st_size / 2**20:.0f} MB")
        with timed("Arrow reads and writes the file", rows):
            pq.write_table(pq.read_table(file), directory / "copy.parquet", **PARQUET)
        lake = Lake(str(directory / "loaded"))
        loader = Loader(lake, SOURCE, Terms(None, "", directory, 0.5, "the bench"), SystemClock(), lambda _: None)
        with timed("load", rows, lambda: count_events(lake, SOURCE)):
            loader.load(file)
        appended = Lake(str(directory / "appended"))
        some = min(rows, 500_000)
        with timed(f"appends of {APPEND:,}", some, lambda: count_events(appended, SOURCE)):
            for start in range(0, some, APPEND):
                piece = table.slice(start, min(APPEND, some - start))
                offsets = np.arange(start, start + piece.num_rows)
                stored = in_time_order(system_columns(piece, 0, offsets, SOURCE.event_time, SystemClock().now()))
                appended.append(events_table(SOURCE.name), stored, {app_id(SOURCE.name, 0): int(offsets[-1])})
        with timed("compact", some, lambda: count_events(appended, SOURCE)):
            done = Compactor(appended, SystemClock(), lambda _: None).merge(events_table(SOURCE.name))
        print(f"{done.files_before} files, then {done.files_after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=9)
    measure(parser.parse_args().years)


if __name__ == "__main__":
    main()
