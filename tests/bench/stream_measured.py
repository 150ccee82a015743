"""A measured worker: started on a backlog, watched through what it stores, asked for its notes in the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from featurestore.online.embedded import start_attached
from featurestore.online.store import OnlineStore
from tests.bench.stream_events import TOPIC
from tests.bench.stream_process import Figures, cpu_of, peak_of, resident_of

WAIT_SECONDS = 600.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02
LAKE_INTERVAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sampled:
    """Delays of events (seconds), sorted, and how many events each stands for."""

    seconds: np.ndarray
    weight: np.ndarray

    def quantile(self, q: float) -> float:
        if not self.seconds.size:
            return float("nan")
        reached = np.cumsum(self.weight)
        return float(self.seconds[np.searchsorted(reached, q * reached[-1])])


class MeasuredWorker:
    """One worker process of a project of its own: its groups, shuffle topics and keys are new."""

    def __init__(self, *, kafka: str, redis: str, lake: Path, project: str, folder: Path) -> None:
        self._notes, self._log = folder / f"{project}.notes", folder / f"{project}.log"
        self._settings = {
            "FS_KAFKA": kafka,
            "FS_REDIS": redis,
            "FS_LAKE": str(lake),
            "FS_PROJECT": project,
            "FS_LAKE_INTERVAL_SECONDS": str(LAKE_INTERVAL_SECONDS),
            "BENCH_NOTES": str(self._notes),
        }

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = start_attached(
                [sys.executable, "-m", "tests.bench.stream_worker"],
                env={**os.environ, **self._settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    async def measure(self, store: OnlineStore, views: Sequence[str], events: int) -> Figures:
        """From the first records that the worker fetched until all of its effects are there: every view has counted
        so many events behind its fences, and the lake's marks too."""
        deadline = time.monotonic() + WAIT_SECONDS
        memory: list[tuple[int, int]] = []
        while (done := await _done(store, views)) < events:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the worker did not get there; its log ends:\n{self._tail()}")
            memory.append((done, resident_of(self._process.pid)))
            await asyncio.sleep(POLL_SECONDS)
        ended, cpu = time.monotonic(), cpu_of(self._process.pid)
        first = self._read()[0]
        rate, used = events / (ended - first["started"]), (cpu - first["cpu"]) * 1e6 / events
        return Figures(rate, used, peak_of(self._process.pid), _slope(memory, events // 2))

    def stop(self, *, since: float = 0.0) -> Sampled:
        """Ends it in order. Returns the delays of events that could be read after the instant `since` (monotonic)."""
        self._process.send_signal(signal.SIGTERM)
        if (code := self._process.wait(STOP_SECONDS)) != 0:
            raise SystemExit(f"the worker ended with {code}; its log ends:\n{self._tail()}")
        batches = [(events, delays) for at, events, delays in self._read()[-1]["delays"] if at >= since]
        seconds = np.array([delay for _, delays in batches for delay in delays])
        weight = np.array([events / len(delays) for events, delays in batches for _ in delays])
        order = np.argsort(seconds)
        return Sampled(seconds[order], weight[order])

    def _read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._notes.read_text().splitlines()]

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


async def _done(store: OnlineStore, views: Sequence[str]) -> int:
    """Events that every view and the lake have."""
    marks = await store.intake_marks(TOPIC)
    done = [sum(mark.ledger.get("consumed", 0) for mark in marks.values())]
    for view in views:
        fences = await store.fences(view)
        done.append(sum(counts[0] for fence in fences.values() for counts in fence.ledger.values()))
    return min(done)


def _slope(memory: Sequence[tuple[int, int]], after: int) -> float:
    """Bytes per event, by least squares over what was seen after so many events."""
    late = np.array([(done, held) for done, held in memory if done >= after], float)
    return float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 1 else float("nan")
