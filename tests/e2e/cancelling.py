"""Clients that leave at any moment, while Redis answers late: `python -m tests.e2e.cancelling --calls 80000`.

Every entity has values that no other has, so that an answer tells whose it is. Half of the calls go to a server
process, over connections that are reset at random; half to the application in this process, in tasks that are cancelled
at random, which reaches every `await` of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from featurestore.clock import SystemClock
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.telemetry import REGISTRY
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer
from tests.unit.serving import flights
from tests.unit.serving.api import running
from tests.unit.serving.process import ApiProcess

ENTITIES = 500
CLIENTS = 48
DELAY_SECONDS, DELAYED = 0.01, 0.3
"""How late a reply of Redis is, and how many are."""
LEAVES = 0.7
"""Share of the calls whose caller does not wait for the answer."""
_VIEW = flights.view("airport_delay")
_CARRIER, _SUM = _VIEW.order.index("last_carrier"), _VIEW.order.index("delay_sum_1h")


@dataclass
class Report:
    calls: int
    outcomes: Counter[str] = field(default_factory=Counter)
    """`answered`, `left`, `refused`, and `unread`: rows that say that Redis did not answer."""
    wrong: list[str] = field(default_factory=list)
    """Rows with anything but the values of the entity that was asked for."""
    lookups_left: float = 0
    """Lookups that run or wait when all callers are gone."""
    redis_connections: list[int] = field(default_factory=list)
    """After each quarter."""
    memory_mib: list[float] = field(default_factory=list)
    """Of the server, after each quarter."""
    seconds: float = 0

    def check(self, asked: list[int], rows: list[dict[str, Any]]) -> None:
        if len(rows) != len(asked):
            self.wrong.append(f"{len(rows)} rows for {len(asked)} entities")
        for entity, row in zip(asked, rows, strict=False):
            values, status = row["values"], row["status"]
            if status in ("unavailable", "deadline"):
                self.outcomes["unread"] += 1
            elif (values[_CARRIER], values[_SUM]) != (f"C{entity}", float(entity)):
                self.wrong.append(f"u{entity} was answered {values}")


def body_of(entities: list[int]) -> bytes:
    return json.dumps({"service": "flight_delay", "entities": {"origin": [f"u{e}" for e in entities]}}).encode()


async def fill(url: str) -> None:
    now = SystemClock().now()
    table = flights.departures([(now - 60_000_000 + e, f"u{e}", f"C{e}", e, float(e)) for e in range(ENTITIES)])
    values = flights.stored(_VIEW, table)
    async with OnlineStore.connect(url) as store:
        await store.write(_VIEW.id, list(values), list(values.values()))


Call = Callable[[random.Random, Report], Awaitable[None]]


async def storm(call: Call, calls: int, seed: int, report: Report) -> None:
    """`calls` of them, by CLIENTS callers at a time."""
    left = iter(range(calls))

    async def caller(number: int) -> None:
        rng = random.Random(seed * CLIENTS + number)
        for _ in left:
            await call(rng, report)

    await asyncio.gather(*(caller(number) for number in range(CLIENTS)))


def _patience(rng: random.Random) -> float:
    """Seconds until a caller leaves: mostly before a quick answer is there, at times after a delayed one."""
    return rng.random() ** 3 * 2 * DELAY_SECONDS


class Sockets:
    """Calls over connections of their own, which end when their caller leaves."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __call__(self, rng: random.Random, report: Report) -> None:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        asked = [rng.randrange(ENTITIES) for _ in range(rng.choice([1, 1, 3, 20]))]
        body = body_of(asked)
        request = b"POST /v1/lookup HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        if rng.random() < LEAVES:
            whole = rng.random() < 0.8
            writer.write(request if whole else request[: rng.randrange(1, len(request))])
            await asyncio.sleep(_patience(rng))
            writer.transport.abort() if rng.random() < 0.5 else writer.close()
            report.outcomes["left"] += 1
            return
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        self._idle.append((reader, writer))
        _note(report, int(head[9:12]), asked, answer)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


class Tasks:
    """Calls of the application in this process, whose tasks are cancelled when their caller leaves."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def __call__(self, rng: random.Random, report: Report) -> None:
        asked = [rng.randrange(ENTITIES) for _ in range(rng.choice([1, 1, 3, 20]))]
        asking = asyncio.ensure_future(self._http.post("/v1/lookup", content=body_of(asked)))
        if rng.random() < LEAVES:
            await asyncio.sleep(_patience(rng))
            asking.cancel()
        try:
            response = await asking
        except asyncio.CancelledError:
            report.outcomes["left"] += 1
            return
        _note(report, response.status_code, asked, response.json())


def _note(report: Report, status: int, asked: list[int], answer: Any) -> None:
    if status == 200:
        report.outcomes["answered"] += 1
        report.check(asked, answer["rows"])
    elif answer.get("code") == "overloaded":
        report.outcomes["refused"] += 1
    else:
        report.wrong.append(f"{status}: {answer}")


async def _everyone(http: httpx.AsyncClient, report: Report) -> None:
    """After all of it each entity has its own values."""
    for start in range(0, ENTITIES, 100):
        asked = list(range(start, start + 100))
        response = await http.post("/v1/lookup", content=body_of(asked))
        report.check(asked, response.json()["rows"])


def redis_connections(server: RedisServer) -> int:
    return int(server.command("INFO clients").split(b"connected_clients:")[1].split()[0]) - 1


async def until_idle(read: Callable[[], Awaitable[float]], seconds: float = 10.0) -> float:
    """The lookups that are still there when nothing more changes, 0 where all is well."""
    deadline = time.monotonic() + seconds
    while (left := await read()) and time.monotonic() < deadline:  # noqa: ASYNC110 - it has no event for it
        await asyncio.sleep(0.05)
    return left


def _lookups(sample: Callable[[str], float | None]) -> float:
    return sum(sample(name) or 0.0 for name in ("fs_lookups_running", "fs_lookups_waiting"))


async def disconnects(server: RedisServer, proxy: Proxy, calls: int, seed: int) -> Report:
    """Against a server process; Redis is behind the proxy."""
    report, started = Report(calls), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fs-cancel-") as lake:
        apply(Registry(lake), flights.definitions(), now=SystemClock().now())
        with ApiProcess(f"redis://127.0.0.1:{proxy.port}/0", Path(lake)) as api:
            await asyncio.to_thread(api.until_ready)
            async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:

                async def left() -> float:
                    lines = (await http.get("/metrics")).text.splitlines()
                    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
                    return _lookups(lambda name: float(samples[name]))

                calling = Sockets(int(api.url.rsplit(":", 1)[1]))
                for quarter in range(4):
                    await storm(calling, calls // 4, seed * 4 + quarter, report)
                    report.lookups_left = await until_idle(left)
                    report.redis_connections.append(redis_connections(server))
                    report.memory_mib.append(_memory_mib(api.pid))
                calling.close()
                await _everyone(http, report)
    report.seconds = time.monotonic() - started
    return report


async def cancellations(server: RedisServer, proxy: Proxy, calls: int, seed: int) -> Report:
    """In this process."""
    report, started = Report(calls), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fs-cancel-") as lake:
        async with running(f"redis://127.0.0.1:{proxy.port}/0", Path(lake)) as api:

            async def left() -> float:
                return _lookups(REGISTRY.get_sample_value)

            calling = Tasks(api.http)
            for quarter in range(4):
                await storm(calling, calls // 4, seed * 4 + quarter, report)
                report.lookups_left = await until_idle(left)
                report.redis_connections.append(redis_connections(server))
            await _everyone(api.http, report)
    report.seconds = time.monotonic() - started
    return report


def _memory_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * 4096 / (1 << 20), 1)


async def both(calls: int, seed: int) -> list[Report]:
    with RedisServer() as server, Proxy(server.port, seed=seed) as proxy:
        await fill(server.url)
        proxy.delay(DELAY_SECONDS, DELAYED)
        return [await run(server, proxy, calls // 2, seed) for run in (disconnects, cancellations)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=80_000)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    for report in asyncio.run(both(chosen.calls, chosen.seed)):
        sys.stdout.write(json.dumps(vars(report) | {"wrong": len(report.wrong), "first": report.wrong[:3]}) + "\n")


if __name__ == "__main__":
    main()
