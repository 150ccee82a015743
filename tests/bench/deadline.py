"""How late answers are, by fault of Redis: `python -m tests.bench.deadline [--seconds 5] [--budget-ms 20]`.

The API is a process of its own, behind a proxy that is between it and Redis. Clients ask again as soon as they are
answered. An answer is late by what it took longer than its budget, as the client sees it, and as the server says
(`spent_ms`); the first has what the machine does beside. With `--replica` Redis has a replica for hedged reads.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from featurestore.clock import SystemClock
from featurestore.errors import FeatureStoreError
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.bench.serve import beat, bodies, fill
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer
from tests.unit.serving import flights
from tests.unit.serving.process import ApiProcess

CLIENTS = 8


@contextmanager
def beating(url: str) -> Iterator[None]:
    """A heartbeat a second, whenever Redis takes it."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(1):
            with suppress(FeatureStoreError):
                asyncio.run(beat(url))

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Loads:
    """What is asked, again and again."""

    budget_ms: float
    requests: list[bytes]


@contextmanager
def asked_beside(port: int, rows: int, folder: Path) -> Iterator[None]:
    """Two more clients, in a process of their own, with large requests without a budget."""
    if not rows:
        yield
        return
    (folder / "bodies").write_bytes(b"\n".join(bodies(rows)))
    words = [str(port), "/v1/lookup", str(folder / "bodies"), "2", "3600", str(folder / "samples")]
    child = subprocess.Popen([sys.executable, "-m", "tests.bench.load", *words], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.kill()
        child.wait()


@dataclass
class Tally:
    took_ms: list[float] = field(default_factory=list)
    spent_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    failures: int = 0


async def _client(port: int, requests: list[bytes], first: int, stop_at: float, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = first
    while time.perf_counter() < stop_at:
        number = (number + 1) % len(requests)
        started = time.perf_counter()
        writer.write(requests[number])
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        tally.took_ms.append((time.perf_counter() - started) * 1e3)
        if not head.startswith(b"HTTP/1.1 200"):
            tally.failures += 1
            continue
        answer = json.loads(body)
        tally.spent_ms.append(answer["spent_ms"])
        status = answer["rows"][0]["status"]
        tally.statuses[status if isinstance(status, str) else "mixed"] += 1
    writer.close()


async def _ticks(budget_ms: float, stop_at: float, tally: Tally) -> None:
    """What the machine alone makes late: a timer of one budget after the other."""
    while time.perf_counter() < stop_at:
        started = time.perf_counter()
        await asyncio.sleep(budget_ms / 1e3)
        tally.took_ms.append((time.perf_counter() - started) * 1e3)


async def _load(port: int, loads: Loads, seconds: float) -> tuple[Tally, Tally]:
    tally, ticks, stop_at = Tally(), Tally(), time.perf_counter() + seconds
    clients = [_client(port, loads.requests, i * 7, stop_at, tally) for i in range(CLIENTS)]
    await asyncio.gather(*clients, _ticks(loads.budget_ms, stop_at, ticks))
    return tally, ticks


def _requests(rows: int, budget_ms: float) -> list[bytes]:
    asked = [json.dumps(json.loads(body) | {"budget_ms": budget_ms}).encode() for body in bodies(rows)]
    head = b"POST /v1/lookup HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return [head % len(body) + body for body in asked]


def faults(redis: RedisServer, proxy: Proxy) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name → what makes it, and what ends it."""
    found: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {"none": (lambda: None, lambda: None)}
    for share in (0.01, 0.5, 1.0):
        for delay in (0.05, 0.2, 0.5):
            name = f"+{delay * 1e3:g} ms on {share:.0%}"
            found[name] = (lambda d=delay, s=share: proxy.delay(d, s), proxy.heal)  # type: ignore[misc]
    found["frozen"] = (redis.freeze, redis.thaw)
    found["black hole"] = (proxy.black_hole, proxy.heal)
    found["refused"] = (proxy.refuse, proxy.heal)
    found["killed"] = (redis.kill, redis.start)
    return found


def report(name: str, tally: Tally, ticks: Tally, budget_ms: float) -> str:
    noise = np.array(ticks.took_ms) - budget_ms
    took, spent = np.array(tally.took_ms), np.array(tally.spent_ms or [0.0])
    late, said = np.maximum(took - budget_ms, 0), np.maximum(spent - budget_ms, 0)
    statuses = ", ".join(f"{status} {count / took.size:.1%}" for status, count in tally.statuses.most_common())
    return (
        f"{name:<18} {took.size:>6} asked, {tally.failures} failed; p50 {np.median(took):.1f} p99 "
        f"{np.quantile(took, 0.99):.1f} ms; late at p99.9 by {np.quantile(late, 0.999):.1f} ms, as the server says "
        f"{np.quantile(said, 0.999):.1f} ms, a plain timer at p99 by "
        f"{np.quantile(noise, 0.99):.1f} ms, at most by {noise.max():.1f} ms; {statuses}"
    )


def recovery_ms(port: int) -> float:
    """Until a lookup is answered from Redis again."""
    started = time.perf_counter()
    body = bodies(1)[0]
    with httpx.Client() as http:
        while time.perf_counter() - started < 20:
            answer = http.post(f"http://127.0.0.1:{port}/v1/lookup", content=body, timeout=5).json()
            if answer["rows"][0]["status"] not in ("unavailable", "deadline"):
                return (time.perf_counter() - started) * 1e3
            time.sleep(0.01)
    raise SystemExit("Redis is back, and lookups do without it")


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def reads(port: int) -> dict[str, float]:
    """How many there were so far, and how many of them went to the replica as well, by what came of it."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    names = {'fs_store_duration_seconds_count{op="read"}': "reads"}
    names |= {f'fs_store_hedges_total{{outcome="{outcome}"}}': outcome for outcome in ("won", "lost", "failed")}
    lines = [line.rsplit(" ", 1) for line in text.splitlines()]
    return {names[line[0]]: float(line[1]) for line in lines if line[0] in names}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=5.0)
    options.add_argument("--budget-ms", type=float, default=20.0)
    options.add_argument("--rows", type=int, default=1)
    options.add_argument("--beside", type=int, default=0, help="entities of the requests of two more clients")
    options.add_argument("--replica", action="store_true")
    options.add_argument("--only", default="", help="the faults whose name has this in it")
    chosen = options.parse_args()
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(persist=True, options={"appendfsync": "no"}))
        proxy = stack.enter_context(Proxy(redis.port))
        lake = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs-bench-")))
        now = SystemClock().now()
        apply(Registry(str(lake)), flights.definitions(), now=now)
        asyncio.run(fill(redis.url, now))
        settings: dict[str, str] = {}
        if chosen.replica:
            replica = stack.enter_context(RedisServer(options={"replicaof": f"127.0.0.1 {redis.port}"}))
            settings["FS_REDIS_REPLICA"] = replica.url
        stack.enter_context(environment(**settings))
        stack.enter_context(beating(redis.url))
        # The proxy would be busier with large answers than the API is.
        address = redis.url if chosen.beside else f"redis://127.0.0.1:{proxy.port}/0"
        api = stack.enter_context(ApiProcess(address, lake))
        api.until_ready()
        port = int(api.url.rsplit(":", 1)[1])
        stack.enter_context(asked_beside(port, chosen.beside, lake))
        _run(chosen, redis, proxy, port)


def _run(chosen: Any, redis: RedisServer, proxy: Proxy, port: int) -> None:
    print(f"{CLIENTS} clients, {chosen.rows} entities × 10 features, budget {chosen.budget_ms:g} ms; "
          f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")  # fmt: skip
    loads = Loads(chosen.budget_ms, _requests(chosen.rows, chosen.budget_ms))
    recoveries = []
    asyncio.run(_load(port, loads, 2.0))
    for name, (begin, end) in faults(redis, proxy).items():
        if chosen.only not in name or (chosen.beside and name not in ("none", "frozen", "killed")):
            continue
        before = reads(port)
        begin()
        try:
            tally, ticks = asyncio.run(_load(port, loads, chosen.seconds))
        finally:
            end()
        took = recovery_ms(port)
        recoveries.append(took)
        more = {key: value - before.get(key, 0.0) for key, value in reads(port).items()}
        told = f"back after {took:.0f} ms {more if chosen.replica else ''}"
        print(report(name, tally, ticks, chosen.budget_ms), told, flush=True)
    print(f"back after {statistics.median(recoveries):.0f} ms at the median, {max(recoveries):.0f} ms at most")


if __name__ == "__main__":
    main()
