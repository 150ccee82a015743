"""A load generator for keep-alive HTTP, cheap enough to saturate a server from one other core."""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop


@dataclass
class Tally:
    stop_at: float
    latencies: list[float] = field(default_factory=list)
    samples: list[bytes] = field(default_factory=list)
    failures: int = 0
    running: int = 0


def body_of(answer: bytes) -> bytes | None:
    """Of one HTTP answer, as far as it has come; None while a part is still on its way."""
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return None
    at = answer.lower().find(b"content-length:", 0, head)
    length = int(answer[at + 15 : answer.index(b"\r\n", at)])
    return answer[head + 4 :] if len(answer) >= head + 4 + length else None


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it has the answer."""

    def __init__(self, requests: list[bytes], first: int, tally: Tally, done: asyncio.Event) -> None:
        self._requests, self._next, self._tally, self._done = requests, first, tally, done
        self._buffer = b""
        self._transport: Any = None
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._tally.running += 1
        self._ask()

    def _ask(self) -> None:
        self._next = (self._next + 1) % len(self._requests)
        self._sent = time.perf_counter()
        self._transport.write(self._requests[self._next])

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        body = body_of(self._buffer)
        if body is None:
            return
        now = time.perf_counter()
        self._tally.latencies.append(now - self._sent)
        self._tally.failures += not self._buffer.startswith(b"HTTP/1.1 200")
        if len(self._tally.latencies) % 97 == 0:
            self._tally.samples.append(b"%d %s" % (self._next, body))
        self._buffer = b""
        if now < self._tally.stop_at:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.failures += exc is not None
        self._tally.running -= 1
        if self._tally.running == 0:
            self._done.set()


async def _run(port: int, path: str, bodies: list[bytes], clients: int, seconds: float) -> Tally:
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: ".encode()
    requests = [head + b"%d\r\n\r\n" % len(body) + body for body in bodies]
    tally, done = Tally(time.perf_counter() + seconds), asyncio.Event()
    loop = asyncio.get_running_loop()
    for i in range(clients):
        await loop.create_connection(lambda i=i: _Client(requests, i * 7, tally, done), "127.0.0.1", port)  # type: ignore[misc]
    await done.wait()
    return tally


def main() -> None:
    """`load.py PORT PATH BODIES CLIENTS SECONDS SAMPLES`: prints a summary, leaves sampled answers in a file."""
    port, path, bodies, clients, seconds, samples = sys.argv[1:]
    lines = Path(bodies).read_bytes().splitlines()
    tally = uvloop.run(_run(int(port), path, lines, int(clients), float(seconds)))
    Path(samples).write_bytes(b"\n".join(tally.samples))
    took = sorted(tally.latencies)
    print(
        json.dumps(
            {
                "requests": len(took),
                "rate": len(took) / float(seconds),
                "p50_ms": took[len(took) // 2] * 1e3,
                "p99_ms": took[len(took) * 99 // 100] * 1e3,
                "failures": tally.failures,
            }
        )
    )


if __name__ == "__main__":
    main()
