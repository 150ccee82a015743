"""Training sets beside the best plain formulations: `python -m tests.bench.export [--rows 1000000]`.

A year of real departures and a spine drawn from it, Parquet to Parquet, in one run; with `--events` that many made
events of 100,000 entities in their place, of which the k-th is drawn by the power `--skew` of an even draw. Latest
values stand beside DuckDB's ASOF JOIN; windows of 1h, 24h and 7d beside NumPy's sort, prefix sums and
`maximum.reduceat`. Answers are compared cell by cell before a figure is printed. `--peers none` measures ours alone,
where the others do not fit into memory. Peak memory is of all processes of an export that runs by itself, shared pages
counted once. `--dask` runs windows on a cluster of one worker, and of two. Feast's DuckDB store takes part where
`--feast` names a Python that has it (`pip install "feast[duckdb]"`).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import Entity, FeatureService, Source, agg, col, feature_view
from featurestore.cli.demo.flights import events as flights_of
from featurestore.cli.demo.flights import load_flights
from featurestore.clock import DAY, HOUR, SystemClock
from featurestore.contracts.contract import load_contract
from featurestore.definitions.compile import check
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.offline.export import export
from featurestore.offline.lake import Lake
from featurestore.offline.visibility import visible_table
from featurestore.registry.catalog import Catalog
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from streams.visibility import Seen, seen_rows

SCHEMAS = Path(__file__).parents[2] / "schemas"
WINDOWS = {"1h": (HOUR, HOUR // 12), "24h": (DAY, HOUR), "7d": (7 * DAY, 6 * HOUR)}

Carrier = Entity("carrier", keys={"carrier": str})
Departures = Source(
    "departures", topic="flights.departures", contract="flights.departures/v1", event_time="departed_at"
)


@feature_view(entity=Carrier, source=Departures, version=1)
class Latest:
    distance = agg.last(col("distance"))


@feature_view(entity=Carrier, source=Departures, version=1)
class Windows:
    n_1h = agg.count(col("distance"), window="1h")
    n_24h = agg.count(col("distance"), window="24h")
    n_7d = agg.count(col("distance"), window="7d")
    sum_1h = agg.sum(col("distance"), window="1h")
    sum_24h = agg.sum(col("distance"), window="24h")
    sum_7d = agg.sum(col("distance"), window="7d")
    mean_1h = agg.mean(col("distance"), window="1h")
    mean_24h = agg.mean(col("distance"), window="24h")
    mean_7d = agg.mean(col("distance"), window="7d")
    max_1h = agg.max(col("distance"), window="1h")
    max_24h = agg.max(col("distance"), window="24h")
    max_7d = agg.max(col("distance"), window="7d")


ENTITIES = 100_000
APPENDED = 1_000_000
"""Events of one file, in time order."""


FLUSHED, HOMES = 10_000, 4
"""Events that became readable at a time, and the entity partitions that they did in."""


class Bench:
    def __init__(self, directory: Path, rows: int, events: int = 0, skew: float = 2.0) -> None:
        self.directory = directory
        self.lake = Lake(str(directory / "lake"))
        now = SystemClock().now()
        contracts = {"flights.departures/v1": load_contract(SCHEMAS, "flights.departures/v1")}
        self.events, self.spine = directory / "events.parquet", directory / "spine.parquet"
        flights = flights_of(contracts["flights.departures/v1"], load_flights())
        [self.view] = check([Latest], [], contracts).views
        self._fill(_made(flights, events, skew) if events else iter([flights]), now)
        pq.write_table(_spine(self.events, rows), self.spine)
        services = [FeatureService("latest", views=[Latest]), FeatureService("windows", views=[Windows])]
        registry = Registry(str(directory / "lake"))
        self.catalog: Catalog = apply(registry, check([Latest, Windows], services, contracts), now=now)

    def _fill(self, pieces: Iterator[pa.Table], now: int) -> None:
        first = 0
        columns = ["carrier", "distance", "event_time", "_offset"]
        schema = pa.schema([("carrier", pa.string()), ("distance", pa.float64()),
                            ("event_time", pa.timestamp("us", "UTC")), ("_offset", pa.int64())])  # fmt: skip
        with pq.ParquetWriter(self.events, schema) as writer:
            for piece in pieces:
                offsets = np.arange(first, first + piece.num_rows)
                ordered = in_time_order(system_columns(piece, 0, offsets, "departed_at", now))
                first += piece.num_rows
                self.lake.append(events_table("departures"), ordered, {"departures/0": first - 1})
                self._record(ordered)
                writer.write_table(ordered.select(columns).cast(schema))
        self.count = first

    def _record(self, events: pa.Table) -> None:
        """Each was readable when the last one of its flush had happened."""
        times = events["event_time"].cast(pa.int64()).to_numpy()
        offsets = events["_offset"].to_numpy()
        ends = [*range(FLUSHED - 1, len(times), FLUSHED), len(times) - 1]
        seen = [Seen(home, int(offsets[end]), HOMES, ((0, -1, int(offsets[end])),), int(times[end]))
                for home in range(HOMES) for end in ends]  # fmt: skip
        marks = {f"latest@1/{home}": int(offsets.max()) for home in range(HOMES)}
        self.lake.append(visible_table(self.view), seen_rows(seen), marks)

    def ours(self, service: str, **options: Any) -> pa.Table:
        out = self.directory / "out"
        export(service, self.spine, out, lake=self.lake, catalog=self.catalog, now=0, **options)
        return pq.read_table(sorted(out.glob("*.parquet")))

    def peak(self, service: str, short: str) -> int:
        """MiB, of an export in a process that does nothing else."""
        command = [sys.executable, "-m", "tests.bench.export", "--alone", str(self.directory), service, short]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) >> 20

    def asof_join(self) -> pa.Table:
        out = self.directory / "asof.parquet"
        duckdb.sql(  # paths of this very bench
            f"""copy (select s.*, e.distance from (select *, row_number() over () as row from '{self.spine}') s
            asof left join (select * from '{self.events}' order by carrier, event_time, _offset) e
            on s.carrier = e.carrier and s.event_time >= e.event_time order by s.row) to '{out}' (format parquet)"""  # noqa: S608
        )
        return pq.read_table(out)

    def feast(self, python: str) -> tuple[float, pa.Table]:
        """Seconds and answers, of a process of its own."""
        command = [python, str(Path(__file__).with_name("feast_history.py")), str(self.directory)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        answer = pq.read_table(self.directory / "feast.parquet").sort_by("label")
        return float(said.split()[-1]), answer.rename_columns({"event_timestamp": "event_time"})

    def prefix_sums(self) -> pa.Table:
        """Sort once, then prefix sums and `maximum.reduceat` over the ranges: the plain formulation that is fastest."""
        events, spine = pq.read_table(self.events), pq.read_table(self.spine)
        both = pa.chunked_array([*events["carrier"].chunks, *spine["carrier"].chunks]).combine_chunks()
        codes = both.dictionary_encode().indices.to_numpy().astype(np.int64)
        entity, asked = codes[: events.num_rows], codes[events.num_rows :]
        time = events["event_time"].cast(pa.int64()).to_numpy()
        at = spine["event_time"].cast(pa.int64()).to_numpy()
        start, scale = time.min() - 8 * DAY, time.max() - time.min() + 400 * DAY
        order = np.argsort(entity * scale + (time - start), kind="stable")
        line = (entity * scale + (time - start))[order]
        values = events["distance"].to_numpy()[order]
        sums = np.concatenate([[0.0], np.cumsum(values)])
        # In the order of what they ask for: `reduceat` also goes through what lies between two ranges.
        turn = np.argsort(asked * scale + (at - start), kind="stable")
        asked, at = asked[turn], at[turn]
        high = np.searchsorted(line, asked * scale + (at - start), side="right")
        columns: dict[str, np.ndarray] = {}
        for name, (window, hop) in WINDOWS.items():
            tail = (at - window) // hop * hop
            low = np.searchsorted(line, asked * scale + np.maximum(tail - start, 0))
            count = high - low
            columns[f"n_{name}"], columns[f"sum_{name}"] = count, sums[high] - sums[low]
            columns[f"mean_{name}"] = columns[f"sum_{name}"] / np.maximum(count, 1)
            edges = np.stack([low, np.maximum(high, low + 1)], axis=1).ravel()
            columns[f"max_{name}"] = np.maximum.reduceat(np.append(values, [0.0, 0.0]), edges)[::2]
        back = np.argsort(turn)
        answers = {name: column[back] for name, column in columns.items()}
        result = pa.table({**{n: spine[n] for n in spine.column_names}, **answers})
        pq.write_table(result, self.directory / "prefix.parquet")
        return result


def _made(like: pa.Table, count: int, skew: float) -> Iterator[pa.Table]:
    """A year of events in time order, with the columns of real ones. Distances are whole numbers: of others the peer's
    differences of long prefix sums would be wrong in the eighth place."""
    random = np.random.default_rng(3)
    start = int(np.datetime64("2013-01-01", "us").astype(np.int64))
    names = pa.array([f"c{n}" for n in range(ENTITIES)], pa.string())
    for first in range(0, count, APPENDED):
        size = min(APPENDED, count - first)
        begin, end = (start + 365 * DAY * edge // count for edge in (first, first + size))
        row = like.slice(0, 1)
        columns = {name: pa.concat_arrays([row[name].chunk(0)] * 1).take(pa.array(np.zeros(size, np.int64)))
                   for name in like.column_names}  # fmt: skip
        columns["carrier"] = names.take(pa.array((ENTITIES * random.random(size) ** skew).astype(np.int64)))
        columns["departed_at"] = pa.array(np.sort(random.integers(begin, end, size))).cast(pa.timestamp("us", "UTC"))
        columns["distance"] = pa.array(np.round(random.random(size) * 1_000)).cast(like.schema.field("distance").type)
        yield pa.table(columns)


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Bytes that this process and those it started hold, as often as can be looked."""
    seen, done = [0], Event()

    def look() -> None:
        while not done.wait(0.1):
            seen.append(sum(map(_proportional, [os.getpid(), *_children()])))

    watching = Thread(target=look, daemon=True)
    watching.start()
    try:
        yield seen
    finally:
        done.set()
        watching.join()


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _proportional(pid: int) -> int:
    try:
        [line] = [x for x in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if x.startswith("Pss_Anon:")]
    except (OSError, ValueError):
        return 0
    return int(line.split()[1]) << 10


def _spine(file: Path, rows: int) -> pa.Table:
    random = np.random.default_rng(7)
    events = pq.read_table(file, columns=["carrier", "event_time"])
    times = events["event_time"].cast(pa.int64()).to_numpy()
    at = random.integers(times.min(), times.max(), rows)
    carriers = events["carrier"].take(pa.array(random.integers(0, events.num_rows, rows)))
    instants = pa.array(at).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({"label": np.arange(rows), "carrier": carriers, "event_time": instants})


def _timed(runs: int, *methods: Callable[[], pa.Table]) -> list[tuple[float, pa.Table]]:
    """Median seconds of each method, run in turn, and its last answer."""
    seconds: list[list[float]] = [[] for _ in methods]
    answers: list[pa.Table] = [pa.table({})] * len(methods)
    for _ in range(runs):
        for i, method in enumerate(methods):
            begin = perf_counter()
            answers[i] = method()
            seconds[i].append(perf_counter() - begin)
    return [(statistics.median(s), answer) for s, answer in zip(seconds, answers, strict=True)]


def _check(ours: pa.Table, plain: pa.Table) -> None:
    assert ours.num_rows == plain.num_rows
    assert ours["label"].equals(plain["label"]), "rows moved"
    for name in ours.column_names[3:]:
        short = name.partition(".")[2]
        left = ours[name].to_numpy()
        right = plain[short].to_numpy()
        some = plain[f"n_{short.partition('_')[2]}"].to_numpy() > 0 if "_" in short else ~np.isnan(right)
        counted = np.ones(left.size, np.bool_) if short.startswith("n_") else some
        np.testing.assert_allclose(left[counted], right[counted], rtol=1e-9, err_msg=name)
        assert counted.sum() == ours.num_rows - ours[name].null_count, name


def _alone(directory: Path, service: str, as_served: bool) -> None:
    lake = Lake(str(directory / "lake"))
    catalog = Registry(str(directory / "lake")).head()
    with peak_memory() as peak:
        export(service, directory / "spine.parquet", directory / "alone", lake=lake, catalog=catalog, now=0,
               as_served=as_served)  # fmt: skip
    print(max(peak))


_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Arrow keeps to it: a worker of one thread would otherwise have all processors of this machine."""


def _dask(bench: Bench, runs: int) -> None:
    """The same map on workers of one thread each."""
    from distributed import LocalCluster  # noqa: PLC0415 — only where it is asked for

    spent = {}
    for workers in (1, 2):
        options: dict[str, Any] = {"n_workers": workers, "threads_per_worker": 1, "env": _ONE_THREAD}
        with LocalCluster(dashboard_address=None, **options) as cluster:  # type: ignore[no-untyped-call]
            url = cluster.scheduler_address.replace("tcp://", "dask://")
            [(spent[workers], _)] = _timed(runs, partial(bench.ours, "windows", executor=url))
    print(f"  dask, windows  one worker {spent[1]:6.2f} s   two {spent[2]:6.2f} s   ratio {spent[1] / spent[2]:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--skew", type=float, default=2.0)
    parser.add_argument("--peers", choices=("all", "none"), default="all")
    parser.add_argument("--only", choices=("latest", "served", "windows"))
    parser.add_argument("--dask", action="store_true")
    parser.add_argument("--feast", metavar="PYTHON", help="an interpreter that has feast[duckdb]")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        directory, service, short = args.alone
        return _alone(Path(directory), service, short == "served")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), args.rows, args.events, args.skew)
        print(f"export: {bench.count:,} events x {args.rows:,} rows, skew {args.skew}, Parquet to Parquet, median of "
              f"{args.runs}", flush=True)  # fmt: skip
        _measure(bench, args)
        if args.dask:
            _dask(bench, args.runs)
    return None


def _measure(bench: Bench, args: argparse.Namespace) -> None:
    for what, short, service, peer, plain in (
        ("latest value", "latest", "latest", "DuckDB ASOF JOIN", bench.asof_join),
        ("as served", "served", "latest", "", None),
        ("12 windows", "windows", "windows", "NumPy prefix sums", bench.prefix_sums),
    ):
        if args.only not in (None, short):
            continue
        peers = [plain] if args.peers == "all" and plain is not None else []
        ours = partial(bench.ours, service, as_served=short == "served")
        (mine, answer), *others = _timed(args.runs, ours, *peers)
        line = f"  {what:14} ours {mine:6.2f} s, peak {bench.peak(service, short):6,} MiB"
        for theirs, plain_answer in others:
            _check(answer, plain_answer)
            line += f"   {peer:18} {theirs:6.2f} s   ratio {mine / theirs:5.2f}, answers equal"
        print(line, flush=True)
        if args.feast and short == "latest":
            theirs, plain_answer = bench.feast(args.feast)
            _check(answer, plain_answer)
            print(f"  {what:14} Feast {theirs:5.2f} s: {theirs / mine:5.1f} times ours, answers equal", flush=True)


if __name__ == "__main__":
    main()
