"""Lookups per second beside a bare ASGI handler: `python -m tests.bench.serve [--seconds 3] [--rounds 3]`.

Both servers are one process and ask the same Redis; they are measured in turn, in one run. Sampled answers of every
round are compared with the values that were stored.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis

from featurestore.clock import MINUTE, SystemClock
from featurestore.engine.read import ViewReader
from featurestore.online.fences import Beat, Fence
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.parts.process import free_ports
from tests.parts.redis import RedisServer
from tests.unit.serving import flights

ENTITIES = 2_000
CLIENTS = 16
TARGET = 0.20

_SERVE = """
import sys
from featurestore.config import load_settings
from featurestore.serving.server import serve
serve(load_settings(redis=sys.argv[1], lake=sys.argv[2]), "127.0.0.1", int(sys.argv[3]))
"""


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


async def fill(url: str, now: int) -> dict[str, list[Any]]:
    """Stores the entities for both servers; returns what each must be answered with."""
    view = flights.view("airport_delay")
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
        for of in flights.definitions().views:
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


def until_answered(port: int) -> None:
    """Waits until a lookup is answered as it should be, from loaded definitions and fresh partitions."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/lookup", bodies(1)[0])
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - our own servers
                if b'"stale"' not in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"nothing answers on port {port}")


def bodies(rows: int) -> list[bytes]:
    """Requests for different entities, so that nothing is answered from a cache of one."""
    pick = np.random.default_rng(7)
    return [
        json.dumps({"service": "flight_delay", "entities": {"origin": [f"u{e}" for e in chosen]}}).encode()
        for chosen in pick.integers(0, ENTITIES, (64, rows)).tolist()
    ]


def measure(port: int, requests: list[bytes], seconds: float, folder: Path) -> dict[str, Any]:
    (folder / "bodies").write_bytes(b"\n".join(requests))
    words = [str(port), str(folder / "bodies"), str(CLIENTS), str(seconds), str(folder / "samples")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load", *words], capture_output=True, check=True, preexec_fn=_on_last_cpu
    )
    result: dict[str, Any] = json.loads(done.stdout)
    result["samples"] = [line.split(b" ", 1) for line in (folder / "samples").read_bytes().splitlines()]
    return result


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _on_last_cpu() -> None:
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})


def verify(name: str, result: dict[str, Any], requests: list[bytes], expected: dict[str, list[Any]]) -> int:
    """How many sampled answers were checked; raises on any that is wrong."""
    if result["failures"]:
        raise SystemExit(f"{name}: {result['failures']} requests failed")
    for number, body in result["samples"]:
        keys = json.loads(requests[int(number)])["entities"]["origin"]
        rows = json.loads(body)["rows"]
        got = [row["values"] if name == "featurestore" else row for row in rows]
        if name == "featurestore" and {row["status"] for row in rows} != {"ok"}:
            raise SystemExit(f"statuses are {[row['status'] for row in rows][:5]}, expected ok")
        for key, row in zip(keys, got, strict=True):
            if not all(_same(a, b) for a, b in zip(row, expected[key], strict=True)):
                raise SystemExit(f"{name} answered {row} for {key}, expected {expected[key]}")
    return len(result["samples"])


def _same(got: Any, expected: Any) -> bool:
    if isinstance(expected, str):
        return got in (expected, 0.0)  # the bare handler knows no text
    return math.isclose(got, expected, rel_tol=1e-9)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs-bench-")))
        now = SystemClock().now()
        apply(Registry(str(folder / "lake")), flights.definitions(), now=now)
        expected = asyncio.run(fill(server.url, now))
        fill_bare(server.url, expected)
        os.sched_setaffinity(server.pid, {(os.cpu_count() or 1) - 1})
        ours, bare = free_ports(2)
        lake = str(folder / "lake")
        served = stack.enter_context(process(sys.executable, "-c", _SERVE, server.url, lake, str(ours), cpu=0))
        words = [str(server.port), str(bare)]
        plain = stack.enter_context(process(sys.executable, "-m", "tests.bench.bare_asgi", *words, cpu=0))
        stack.enter_context(beating(server.url))
        for port in (ours, bare):
            until_answered(port)
        ports = {"bare": (bare, plain.pid), "featurestore": (ours, served.pid)}
        _compare(chosen.seconds, chosen.rounds, ports, expected, folder)


def _compare(
    seconds: float,
    rounds: int,
    ports: dict[str, tuple[int, int]],
    expected: dict[str, list[Any]],
    folder: Path,
) -> None:
    print(f"{CLIENTS} clients, {rounds} rounds of {seconds:g} s in turn, req/s: median (range)")
    for size in (1, 100):
        requests = bodies(size)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in ports}
        checked = 0
        for number in range(-1, rounds):
            for name, (port, pid) in ports.items():
                before = cpu_seconds(pid)
                result = measure(port, requests, seconds if number >= 0 else 0.5, folder)
                result["cpu_us"] = (cpu_seconds(pid) - before) / result["requests"] * 1e6
                checked += verify(name, result, requests, expected)
                if number >= 0:
                    found[name].append(result)
        rates = {name: statistics.median(r["rate"] for r in results) for name, results in found.items()}
        effort = {name: statistics.median(r["cpu_us"] for r in results) for name, results in found.items()}
        for name, results in found.items():
            low, high = min(r["rate"] for r in results), max(r["rate"] for r in results)
            p50, p99 = (statistics.median(r[k] for r in results) for k in ("p50_ms", "p99_ms"))
            print(
                f"{size:>4} × 10  {name:<13} {rates[name]:>8.0f} ({low:.0f}–{high:.0f})  "
                f"p50 {p50:.2f} ms  p99 {p99:.2f} ms  CPU {effort[name]:.0f} µs  "
                f"{rates[name] / rates['bare']:.0%} of bare, by CPU {effort['bare'] / effort[name]:.0%}"
            )
        ratio = min(rates["featurestore"] / rates["bare"], effort["bare"] / effort["featurestore"])
        print(f"{'':>10}{checked} answers checked; target {TARGET:.0%}: {'met' if ratio >= TARGET else 'NOT MET'}")


if __name__ == "__main__":
    main()
