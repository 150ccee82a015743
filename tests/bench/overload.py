"""Goodput while ten times as much is asked as can be answered: `python -m tests.bench.overload [--rows 1 100]`.

The peak is the best goodput over several numbers of connections that ask in a closed loop. Then lookups fall due at
ten times that rate, over many connections, in three classes, while another process's connection asks `/healthz` all the
time. Good is a 200 within the budget; sampled answers are compared with what was stored.

So many connections cost the system more for each answer than few, whoever answers: the limit is what a bare handler
keeps of its own peak when as many connections ask it in a closed loop, in the same run.
"""

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from featurestore.clock import SystemClock
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.bench import serve
from tests.parts.process import free_ports
from tests.parts.redis import RedisServer
from tests.unit.serving import flights

TARGET, HEALTH_MS = 0.85, 100.0
HEALTH_EVERY = 0.05
SETTLE_SECONDS = 1.5
"""Until what the run before left behind is told and forgotten."""
FACTOR = 10
BUDGET_SECONDS, UNBOUNDED = 0.1, 60.0
"""Of our API, and of the bare handler, which refuses nobody: its answers count however late they are."""
CLASSES = ["critical", "normal", "normal", "normal", "batch"]
PEAK_CONNECTIONS = (16, 32, 64)


@contextmanager
def health_asked(port: int) -> Iterator[list[float]]:
    """Asks /healthz over and over; the list grows by the milliseconds that each answer took."""
    took: list[float] = []
    ended = threading.Event()

    def repeat() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not ended.wait(HEALTH_EVERY):
            started = time.perf_counter()
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            healthy = answer.read() == b'{"status":"ok"}'
            took.append((time.perf_counter() - started) * 1e3 if healthy else float("inf"))
        connection.close()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join()


def flood(port: int, requests: list[bytes], folder: Path, **options: Any) -> dict[str, Any]:
    (folder / "bodies").write_bytes(b"\n".join(requests))
    words = [str(port), str(folder / "bodies"), str(folder / "samples"), json.dumps(options)]
    command = [sys.executable, "-m", "tests.bench.flood", *words]
    done = subprocess.run(command, capture_output=True, check=True, preexec_fn=_on_last_cpu)
    result: dict[str, Any] = json.loads(done.stdout)
    result["samples"] = [line.split(b" ", 1) for line in (folder / "samples").read_bytes().splitlines()]
    return result


def _on_last_cpu() -> None:
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})


def _scheduled(pid: int) -> tuple[int, int]:
    """Nanoseconds for which the process's first thread ran, and waited for a processor that others had."""
    ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran), int(waited)


class Scale:
    """Overload at one size of request."""

    def __init__(
        self, name: str, served: tuple[int, int], rows: int, expected: dict[str, list[Any]], folder: Path
    ) -> None:
        self._name, (self._port, self._pid) = name, served
        self._budget = UNBOUNDED if name == "bare" else BUDGET_SECONDS
        self._rows, self._expected, self._folder = rows, expected, folder
        self._requests = serve.bodies(rows)

    def _checked(self, **options: Any) -> dict[str, Any]:
        time.sleep(SETTLE_SECONDS)
        before, (ran, waited) = serve.cpu_seconds(self._pid), _scheduled(self._pid)
        result = flood(self._port, self._requests, self._folder, budget_seconds=self._budget, **options)
        result["by_cpu"] = result["goodput"] * options["seconds"] / (serve.cpu_seconds(self._pid) - before)
        ran, waited = (now - then for now, then in zip(_scheduled(self._pid), (ran, waited), strict=True))
        result["share"] = ran / (ran + waited)
        result["failures"] = result["outcomes"].get("connections lost", 0)
        result["failures"] += sum(n for name, n in result["outcomes"].items() if name.endswith("unexplained"))
        result["checked"] = serve.verify(self._name, result, self._requests, self._expected)
        return result

    def peak(self, seconds: float) -> dict[str, Any]:
        """Every connection asks again as soon as it is answered."""
        runs = [self.asked_again(n, seconds) for n in PEAK_CONNECTIONS]
        return max(runs, key=lambda run: float(run["goodput"]))

    def asked_again(self, connections: int, seconds: float) -> dict[str, Any]:
        return self._checked(connections=connections, rate=1e6, seconds=seconds, kinds=["normal"])

    def overloaded(self, peak: dict[str, Any], connections: int, seconds: float) -> dict[str, Any]:
        with health_asked(self._port) as took:
            options = {"connections": connections, "seconds": seconds, "kinds": CLASSES}
            result = self._checked(rate=FACTOR * peak["goodput"], **options)
        result["health_ms"] = sorted(took) or [float("inf")]
        return result

    def report(self, peaks: list[dict[str, Any]], runs: list[dict[str, Any]], limit: str) -> None:
        by_rate, by_cpu = _shares(runs, peaks)
        peak, goodput = (statistics.median(run["goodput"] for run in of) for of in (peaks, runs))
        health = max(run["health_ms"][-1] for run in runs)
        p99 = statistics.median(run["p99_ms"] for run in runs)
        met = "met" if max(by_rate, by_cpu) >= TARGET and health <= HEALTH_MS else "NOT MET"
        print(f"{self._rows:>4} × 10  peak {peak:.0f}/s, at {FACTOR} times that {goodput:.0f}/s: ", end="")
        print(f"{by_rate:.0%} by rate, {by_cpu:.0%} by CPU; {limit}")
        print(f"{'':>10}answered p99 {p99:.0f} ms; /healthz at most {health:.0f} ms of {HEALTH_MS:.0f}; ", end="")
        print(f"the server got {statistics.median(run['share'] for run in runs):.0%} of the processor it wanted")
        for kind in dict.fromkeys(CLASSES):
            of = {name.split()[1]: sum(run["outcomes"].get(name, 0) for run in runs) for name in _names(kind)}
            share = of["good"] / max(1, sum(of.values()))
            print(f"{'':>10}{kind:<9}{share:>5.0%} good of those sent ({of})")
        print(f"{'':>10}{sum(run['checked'] for run in runs)} answers checked; target {TARGET:.0%}: {met}", flush=True)


def _shares(runs: list[dict[str, Any]], peaks: list[dict[str, Any]]) -> list[float]:
    """What is left of the peak, by rate and by CPU."""
    pairs = list(zip(runs, peaks, strict=True))
    return [statistics.median(run[of] / peak[of] for run, peak in pairs) for of in ("goodput", "by_cpu")]


def _names(kind: str) -> list[str]:
    return [f"{kind} {outcome}" for outcome in ("good", "late", "503")]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, nargs="+", default=[1, 100])
    options.add_argument("--connections", type=int, default=512)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs-bench-")))
        now = SystemClock().now()
        apply(Registry(str(folder / "lake")), flights.definitions(), now=now)
        expected = asyncio.run(serve.fill(server.url, now))
        os.sched_setaffinity(server.pid, {(os.cpu_count() or 1) - 1})
        serve.fill_bare(server.url, expected)
        port, of_bare = free_ports(2)
        words = [server.url, str(folder / "lake"), str(port)]
        served = stack.enter_context(serve.process(sys.executable, "-c", serve.SERVE, *words, cpu=0))
        words = [str(server.port), str(of_bare)]
        bare = stack.enter_context(serve.process(sys.executable, "-m", "tests.bench.bare_asgi", *words, cpu=0))
        stack.enter_context(serve.beating(server.url))
        for one in (port, of_bare):
            serve.until_answered(one)
        print(f"{chosen.connections} connections, budget {BUDGET_SECONDS * 1e3:.0f} ms, {chosen.rounds} rounds: median")
        for rows in chosen.rows:
            ours = Scale("featurestore", (port, served.pid), rows, expected, folder)
            limit = Scale("bare", (of_bare, bare.pid), rows, expected, folder)
            peaks, runs, least, most = (list[dict[str, Any]]() for _ in range(4))
            for _ in range(chosen.rounds):
                peaks.append(ours.peak(chosen.seconds / 3))
                runs.append(ours.overloaded(peaks[-1], chosen.connections, chosen.seconds))
                least.append(limit.peak(chosen.seconds / 3))
                most.append(limit.asked_again(chosen.connections, chosen.seconds / 3))
            by_rate, by_cpu = _shares(most, least)
            ours.report(peaks, runs, f"a bare handler keeps {by_rate:.0%} by rate, {by_cpu:.0%} by CPU")


if __name__ == "__main__":
    main()
