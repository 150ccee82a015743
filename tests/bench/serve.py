"""Lookups per second beside Feast and a bare ASGI handler: `python -m tests.bench.serve [--seconds 3] [--rounds 3]`.

All servers are one process each on the same core and ask the same Redis; they are measured in turn, in one run.
Nothing is stored meanwhile, so our API soon remembers nearly all rows, and keeps their values while Redis says nothing
else. Another one, "evaluated", keeps neither (FS_REMEMBERED_BYTES=0), as where every value changes between two lookups;
what users see is between the two, as with `--writes 5000`.
Sampled answers of every round are compared with the values that were stored. `--memory 10000000` sends as many lookups
of one entity more, and says what the API's memory does meanwhile. Feast takes part where `--feast` names a
Python that has it (`python -m venv feast; feast/bin/pip install "feast[redis]"`): it cannot share our dependencies.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from featurestore.clock import MINUTE, SystemClock
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.read import ViewReader
from featurestore.online.fences import Beat, Fence
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.bench import serve_memory, serve_wide, serve_writes
from tests.bench.stream_process import cpu_of
from tests.parts.process import free_ports
from tests.parts.redis import RedisServer
from tests.unit.serving import flights

ENTITIES = 2_000
CLIENTS = 16
TARGET = 0.50
"""Of the bare handler's rate."""
WIDE_CLIENTS, WIDE_P99_MS = 4, 15.0
"""For 100 entities × 50 features."""
MEMORY_SECONDS = 5.0
"""Between two looks at the API's memory."""
FEAST = defaultdict[int, float | None](lambda: None, {1: 10.0, 100: 45.0, 500: 75.0})
FEAST_FULL = defaultdict[int, float | None](lambda: None, {1: 4.0, 500: 15.0})
"""Times Feast's rate, by entities of a request."""

SERVE = """
import sys
from featurestore.config import load_settings
from featurestore.serving.server import serve
serve(load_settings(redis=sys.argv[1], lake=sys.argv[2]), "127.0.0.1", int(sys.argv[3]))
"""
WAIT_MS = 10_000
"""Sixteen requests of 500 entities are more than a slow machine answers in the 50 ms that a lookup waits by default."""


def steady_events(now: int) -> Any:
    """Departures whose place inside or outside each window does not change for the next minutes."""
    ages = [*range(5, 50, 5), *range(150, 1200, 60)]
    return flights.departures(
        [
            (now - age * MINUTE + e, f"u{e}", f"C{e % 7}", e, float((e * 7 + age) % 61))
            for age in reversed(ages)
            for e in range(ENTITIES)
        ]
    )


async def fill(url: str, now: int, view: CompiledView | None = None) -> dict[str, list[Any]]:
    """Stores the entities for all servers; returns what each must be answered with. The view is `airport_delay` unless
    another one is given."""
    view = view or flights.view("airport_delay")
    values = flights.stored(view, steady_events(now))
    async with OnlineStore.connect(url) as store:
        for start in range(0, ENTITIES, 500):
            part = list(values.items())[start : start + 500]
            await store.write(view.id, [key for key, _ in part], [value for _, value in part])
    reading = ViewReader(view).read(list(values.values()), None, now)
    rows = zip(*[column.to_list() for column in reading.columns], strict=True)
    return {key: list(row) for key, row in zip(values, rows, strict=True)}


def fill_bare(url: str, expected: dict[str, list[Any]]) -> None:
    """The same numbers in a fixed layout; text becomes a number, as that handler knows no text."""
    with redis.Redis.from_url(url) as client:
        rows = {f"bare:{key}": [v if isinstance(v, int | float) else 0.0 for v in row] for key, row in expected.items()}
        client.mset({key: np.array(row, "<f8").tobytes() for key, row in rows.items()})


async def beat(url: str) -> None:
    """What a worker that keeps up says of itself."""
    now, view = SystemClock().now(), flights.view("airport_delay")
    async with OnlineStore.connect(url) as store:
        sign = {p: Beat(at=now, position=10, end=10, behind_seconds=0.0) for p in range(4)}
        await store.put_beats("intake:departures", sign)
        for of in serve_wide.definitions().views:
            await store.put_beats(f"fold:{of.id}", sign)
        for p in range(4):
            await store.put_fence(view.id, p, Fence(0, 9, {}, {}, now, now, now))


@contextmanager
def beating(url: str) -> Iterator[None]:
    """A heartbeat a second, as long as the block lasts."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.is_set():
            asyncio.run(beat(url))
            ended.wait(1)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def process(*argv: str, cpu: int) -> Iterator[subprocess.Popen[bytes]]:
    pinned = ["taskset", "-c", str(cpu)] if (os.cpu_count() or 1) > 1 else []
    child = subprocess.Popen([*pinned, *argv], stderr=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(20)


def until_answered(port: int, path: str = "/v1/lookup", body: bytes = b"") -> None:
    """Waits until a lookup is answered as it should be, from loaded definitions and fresh partitions."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body or bodies(1)[0], headers)
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - our own servers
                if b'"stale"' not in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"nothing answers on port {port}")


def picks(rows: int) -> list[list[str]]:
    """Entities of each request: different ones, so that nothing is answered from a cache of one."""
    chosen = np.random.default_rng(7).integers(0, ENTITIES, (64, rows)).tolist()
    return [[f"u{e}" for e in request] for request in chosen]


def bodies(rows: int) -> list[bytes]:
    return [json.dumps({"service": "flight_delay", "entities": {"origin": keys}}).encode() for keys in picks(rows)]


def feast_bodies(rows: int) -> list[bytes]:
    features = [f"airport_delay:{name}" for name in flights.view("airport_delay").order]
    return [json.dumps({"features": features, "entities": {"origin": keys}}).encode() for keys in picks(rows)]


def measure(port: int, requests: list[bytes], seconds: float, folder: Path, **options: Any) -> dict[str, Any]:
    """`path` and `clients` are options of the load."""
    (folder / "bodies").write_bytes(b"\n".join(requests))
    path, clients = options.get("path", "/v1/lookup"), options.get("clients", CLIENTS)
    words = [str(port), path, str(folder / "bodies"), str(clients), str(seconds), str(folder / "samples")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load", *words], capture_output=True, check=True, preexec_fn=_on_last_cpu
    )
    result: dict[str, Any] = json.loads(done.stdout)
    result["samples"] = [line.split(b" ", 1) for line in (folder / "samples").read_bytes().splitlines()]
    return result


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and its children have used."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_of(pid) + sum(cpu_seconds(int(child)) for child in children)


def _on_last_cpu() -> None:
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})


def verify(name: str, result: dict[str, Any], requests: list[bytes], expected: dict[str, list[Any]]) -> int:
    """How many sampled answers were checked; raises on any that is wrong."""
    if result["failures"]:
        raise SystemExit(f"{name}: {result['failures']} requests failed")
    for number, body in result["samples"]:
        keys = json.loads(requests[int(number)])["entities"]["origin"]
        for key, row in zip(keys, _ROWS[name](json.loads(body)), strict=True):
            if not all(_same(a, b) for a, b in zip(row, expected[key], strict=True)):
                raise SystemExit(f"{name} answered {row} for {key}, expected {expected[key]}")
    return len(result["samples"])


def _lean_rows(answer: dict[str, Any]) -> list[list[Any]]:
    _require_ok({row["status"] for row in answer["rows"]})
    return [row["values"] for row in answer["rows"]]


def _full_rows(answer: dict[str, Any]) -> list[list[Any]]:
    rows = [list(row["features"].values()) for row in answer["rows"]]
    _require_ok({feature["status"] for row in rows for feature in row})
    return [[feature["value"] for feature in row] for row in rows]


def _require_ok(statuses: set[Any]) -> None:
    if statuses != {"ok"}:
        raise SystemExit(f"statuses are {statuses}, expected ok")


def _feast_rows(answer: dict[str, Any]) -> list[list[Any]]:
    """Its columns come in an order of its own."""
    columns = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    order = flights.view("airport_delay").order
    return [list(row) for row in zip(*(columns[name]["values"] for name in order), strict=True)]


_ROWS: dict[str, Callable[[dict[str, Any]], list[list[Any]]]] = {
    "bare": lambda answer: answer["rows"],
    "featurestore": _lean_rows,
    "featurestore, evaluated": _lean_rows,
    "featurestore, full": _full_rows,
    "Feast": _feast_rows,
}


def _same(got: Any, expected: Any) -> bool:
    if isinstance(expected, str):
        return got in (expected, 0.0)  # the bare handler knows no text
    return math.isclose(got, expected, rel_tol=1e-9)


@dataclass(frozen=True, slots=True)
class Served:
    """One of those that are measured."""

    name: str
    port: int
    pid: int
    path: str = "/v1/lookup"
    bodies: Callable[[int], list[bytes]] = bodies


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rows", type=int, nargs="+", default=[1, 100, 500])
    options.add_argument(
        "--memory", type=int, default=0, metavar="LOOKUPS", help="lookups over which memory is watched"
    )
    options.add_argument(
        "--kernel", default="numba", choices=["numpy", "numba"], help="what our API evaluates lookups with"
    )
    options.add_argument("--writes", type=int, metavar="RATE", help="values written a second meanwhile")
    options.add_argument("--feast", metavar="PYTHON", help="an interpreter that has feast[redis]")
    chosen = options.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs-bench-")))
        now = SystemClock().now()
        apply(Registry(str(folder / "lake")), serve_wide.definitions(), now=now)
        expected = asyncio.run(fill(server.url, now))
        of_wide = asyncio.run(fill(server.url, now, serve_wide.view()))
        fill_bare(server.url, expected)
        os.sched_setaffinity(server.pid, {(os.cpu_count() or 1) - 1})
        ours, forgetful, bare, theirs = free_ports(4)
        lake = str(folder / "lake")
        os.environ["FS_LOOKUP_KERNEL"], os.environ["FS_LOOKUP_WAIT_MS"] = chosen.kernel, str(WAIT_MS)
        served = stack.enter_context(process(sys.executable, "-c", SERVE, server.url, lake, str(ours), cpu=0))
        os.environ["FS_REMEMBERED_BYTES"] = "0"
        again = stack.enter_context(process(sys.executable, "-c", SERVE, server.url, lake, str(forgetful), cpu=0))
        words = [str(server.port), str(bare)]
        plain = stack.enter_context(process(sys.executable, "-m", "tests.bench.bare_asgi", *words, cpu=0))
        stack.enter_context(beating(server.url))
        for port in (ours, forgetful, bare):
            until_answered(port)
        if chosen.writes:
            view_id = flights.view("airport_delay").id
            stack.enter_context(serve_writes.writing(server.url, view_id, list(expected), chosen.writes))
        measured = [
            Served("bare", bare, plain.pid),
            Served("featurestore", ours, served.pid),
            Served("featurestore, evaluated", forgetful, again.pid),
            Served("featurestore, full", ours, served.pid, path="/v1/lookup?shape=full"),
        ]
        if chosen.feast:
            measured.append(stack.enter_context(feast(chosen.feast, folder, server.port, theirs, expected)))
        print(
            f"{CLIENTS} clients, {chosen.rounds} rounds of {chosen.seconds:g} s in turn, req/s: median (range); "
            f"lookups evaluated by {chosen.kernel}"
        )
        for rows in chosen.rows:
            _compare(rows, chosen.seconds, chosen.rounds, measured, expected, folder)
        for name, port in (("featurestore", ours), ("featurestore, evaluated", forgetful)):
            _measure_wide(name, port, chosen.seconds, chosen.rounds, of_wide, folder)
        if chosen.memory:
            _watch_memory(measured[1], chosen.memory, list(expected), server.url, folder)


def _watch_memory(of: Served, lookups: int, keys: Sequence[str], url: str, folder: Path) -> None:
    requests, row = of.bodies(1), serve_memory.expected_at(url, keys)

    def ask() -> int:
        result = measure(of.port, requests, MEMORY_SECONDS, folder, path=of.path)
        for sample in result["samples"]:
            [key] = json.loads(requests[int(sample[0])])["entities"]["origin"]
            verify(of.name, result | {"samples": [sample]}, requests, {key: row(sample[1], key)})
        return int(result["requests"])

    serve_memory.watch(ask, of.pid, lookups)


def _measure_wide(
    name: str, port: int, seconds: float, rounds: int, expected: dict[str, list[Any]], folder: Path
) -> None:
    requests, found, checked = serve_wide.bodies(picks(100)), [], 0
    for number in range(-1, rounds):
        result = measure(port, requests, seconds if number >= 0 else 0.5, folder, clients=WIDE_CLIENTS)
        checked += verify(name, result, requests, expected)
        if number >= 0:
            found.append(result)
    rate, p50, p99 = (statistics.median(r[k] for r in found) for k in ("rate", "p50_ms", "p99_ms"))
    verdict = "met" if p99 <= WIDE_P99_MS else "NOT MET"
    print(
        f" 100 × 50  {name}, {WIDE_CLIENTS} clients  {rate:.0f}  p50 {p50:.2f} ms  p99 {p99:.2f} ms; "
        f"target {WIDE_P99_MS:g} ms: {verdict} ({checked} answers checked)"
    )


@contextmanager
def feast(python: str, folder: Path, redis: int, port: int, expected: dict[str, list[Any]]) -> Iterator[Served]:
    """Feast over the same values."""
    home = folder / "feast"
    home.mkdir()
    columns = zip(*expected.values(), strict=True)
    features = dict(zip(flights.view("airport_delay").order, map(pa.array, columns), strict=True))
    at = pa.array([SystemClock().now()] * len(expected), pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"origin": list(expected), "event_timestamp": at, **features}), home / "values.parquet")
    peer = str(Path(__file__).with_name("feast_peer.py"))
    with process(python, peer, str(home), str(redis), str(port), cpu=0) as child:
        until_answered(port, "/get-online-features", feast_bodies(1)[0])
        yield Served("Feast", port, child.pid, "/get-online-features", feast_bodies)


def _compare(
    size: int,
    seconds: float,
    rounds: int,
    measured: Sequence[Served],
    expected: dict[str, list[Any]],
    folder: Path,
) -> None:
    found: dict[str, list[dict[str, Any]]] = {of.name: [] for of in measured}
    checked = 0
    for number in range(-1, rounds):
        for of in measured:
            requests = of.bodies(size)
            before = cpu_seconds(of.pid)
            result = measure(of.port, requests, seconds if number >= 0 else 0.5, folder, path=of.path)
            result["cpu_us"] = (cpu_seconds(of.pid) - before) / result["requests"] * 1e6
            checked += verify(of.name, result, requests, expected)
            if number >= 0:
                found[of.name].append(result)
    rates = {name: statistics.median(r["rate"] for r in results) for name, results in found.items()}
    for name, results in found.items():
        low, high = min(r["rate"] for r in results), max(r["rate"] for r in results)
        p50, p99 = (statistics.median(r[k] for r in results) for k in ("p50_ms", "p99_ms"))
        beside = "".join(f"  {rates[name] / rates[peer]:.2f} × {peer}" for peer in ("bare", "Feast") if peer in rates)
        print(
            f"{size:>4} × 10  {name:<23} {rates[name]:>8.0f} ({low:.0f}–{high:.0f})  "
            f"p50 {p50:.2f} ms  p99 {p99:.2f} ms{beside}"
        )
    print(f"{'':>10}{checked} answers checked")
    effort = {name: statistics.median(r["cpu_us"] for r in results) for name, results in found.items()}
    for ours, peer, what, target in (
        ("featurestore", "bare", "of the bare handler", TARGET),
        ("featurestore, evaluated", "bare", "of the bare handler, evaluated", TARGET),
        ("featurestore", "Feast", "times Feast", FEAST[size]),
        ("featurestore, evaluated", "Feast", "times Feast, evaluated", FEAST[size]),
        ("featurestore, full", "Feast", "times Feast, full shape", FEAST_FULL[size]),
    ):
        if peer in rates:
            by_cpu = effort[peer] / effort[ours]
            _judge(f"{what} (by CPU {by_cpu:.2f}: {effort[ours]:.0f} µs)", rates[ours] / rates[peer], target)


def _judge(what: str, ratio: float, target: float | None) -> None:
    verdict = "" if target is None else f"; target {target:g}: {'met' if ratio >= target else 'NOT MET'}"
    print(f"{'':>10}{ratio:.2f} {what}{verdict}", flush=True)


if __name__ == "__main__":
    main()
