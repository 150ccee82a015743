"""Open-loop load: lookups fall due at a fixed rate over a pool of connections, whether or not answers come.

A lookup that finds every connection busy is turned away at once, as in a client whose pool is exhausted. An answer is
good when it is a 200 within the budget; everything else is counted by what it was.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from tests.bench.load import body_of

TICK_SECONDS = 0.001
SAMPLED = 97
"""Of so many answers the first is kept, to be checked."""


@dataclass
class Tally:
    budget: float
    outcomes: Counter[str] = field(default_factory=Counter)
    """By class and outcome."""
    latencies: list[float] = field(default_factory=list)
    """Of what was answered with 200, in seconds."""
    samples: list[bytes] = field(default_factory=list)


class Flood:
    """The lookups that fall due, and the connections that have none under way."""

    def __init__(self, bodies: list[bytes], options: dict[str, Any]) -> None:
        head = b"POST /v1/lookup HTTP/1.1\r\nhost: bench\r\nx-request-class: %s\r\ncontent-length: %d\r\n\r\n"
        self._requests = [
            (i, kind, head % (kind.encode(), len(body)) + body)
            for i, body in enumerate(bodies)
            for kind in options["kinds"]
        ]
        self.tally = Tally(options["budget_seconds"])
        self.free: list[_Connection] = []
        self._rate, self._due, self._started = options["rate"], 0, 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def dispatch(self) -> None:
        """Sends what fell due since it was last called, as far as connections are free."""
        due = int((time.perf_counter() - self._started) * self._rate) if self._started else 0
        for number in range(self._due, min(due, self._due + len(self.free))):
            self.free.pop().ask(*self._requests[number % len(self._requests)])
        self.tally.outcomes["offered"] += due - self._due
        self._due = due


class _Connection(asyncio.Protocol):
    def __init__(self, flood: Flood) -> None:
        self._flood, self._tally = flood, flood.tally
        self._buffer, self._sent, self._number, self._kind = b"", 0.0, 0, ""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._flood.free.append(self)

    def ask(self, number: int, kind: str, request: bytes) -> None:
        self._number, self._kind, self._sent = number, kind, time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        body = body_of(self._buffer)
        if body is None:
            return
        self._note(self._buffer[9:12].decode(), body)
        self._buffer = b""
        self._flood.free.append(self)
        self._flood.dispatch()

    def _note(self, status: str, body: bytes) -> None:
        spent = time.perf_counter() - self._sent
        outcome = status if status != "200" else "good" if spent <= self._tally.budget else "late"
        self._tally.outcomes[f"{self._kind} {outcome}"] += 1
        if status != "200":
            if b'"code":"overloaded"' not in body:
                self._tally.outcomes[f"{self._kind} unexplained"] += 1
            return
        self._tally.latencies.append(spent)
        if len(self._tally.latencies) % SAMPLED == 1:
            self._tally.samples.append(b"%d %s" % (self._number, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.outcomes["connections lost"] += 1


async def _flood(port: int, bodies: list[bytes], options: dict[str, Any]) -> Tally:
    flood = Flood(bodies, options)
    loop = asyncio.get_running_loop()
    for _ in range(options["connections"]):
        await loop.create_connection(lambda: _Connection(flood), "127.0.0.1", port)
    flood.start()
    end = time.perf_counter() + options["seconds"]
    while time.perf_counter() < end:
        flood.dispatch()
        await asyncio.sleep(TICK_SECONDS)
    return flood.tally


def main() -> None:
    """`flood.py PORT BODIES SAMPLES OPTIONS`: prints what became of the lookups, leaves sampled answers in a file."""
    port, bodies, samples, options = sys.argv[1:]
    chosen = json.loads(options)
    tally = uvloop.run(_flood(int(port), Path(bodies).read_bytes().splitlines(), chosen))
    Path(samples).write_bytes(b"\n".join(tally.samples))
    took = sorted(tally.latencies) or [0.0]
    good = sum(count for name, count in tally.outcomes.items() if name.endswith(" good"))
    summary = {"goodput": good / chosen["seconds"], "outcomes": tally.outcomes}
    quantiles = {f"p{q}_ms": took[min(len(took) * q // 100, len(took) - 1)] * 1e3 for q in (50, 99)}
    print(json.dumps(summary | quantiles))


if __name__ == "__main__":
    main()
