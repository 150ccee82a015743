"""A server on a real socket that answers what a test tells it to, connection by connection."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

LEAN: dict[str, Any] = {
    "service": "flight_delay",
    "version": 3,
    "revision": 41,
    "at": "2026-03-01T12:00:00.5Z",
    "spent_ms": 1.9,
    "source": "online",
    "features": ["v.departures", "v.delay_mean", "v.carrier", "v.seen", "v.instants"],
    "types": {
        "origin": "string",
        "v.departures": "int",
        "v.delay_mean": "float",
        "v.carrier": "string",
        "v.seen": "timestamp",
        "v.instants": "list<timestamp>",
    },
    "rows": [
        {
            "values": [2, 12.0, "B6", "2026-03-01T11:00:00Z", ["2026-03-01T11:00:00.25Z"]],
            "status": ["ok", "ok", "stale", "ok", "ok"],
        },
        {"values": [0, None, None, None, []], "status": "not_found"},
    ],
}
"""An answer of two rows."""


def http(status: int, body: bytes, **headers: str) -> bytes:
    """The bytes of an answer; `retry_after` becomes the header Retry-After."""
    told = {"content-type": "application/json", "content-length": str(len(body))}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in told.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def problem(status: int, code: str, **members: Any) -> bytes:
    headers = {name: members.pop(name) for name in ("retry_after",) if name in members}
    document = {"type": "about:blank", "title": "-", "status": status, "detail": "no", "code": code, **members}
    return http(status, json.dumps(document).encode(), content_type="application/problem+json", **headers)


SOUND = http(200, json.dumps(LEAN).encode())
RESET = b""
"""Instead of an answer: the connection is reset."""
SILENCE = b"-"
"""Instead of an answer: none, and the connection stays open."""

Answer = bytes | Callable[[socket.socket], None]


class Answering:
    """Answers the n-th request with the n-th of `answers`, and further ones with the last."""

    def __init__(self, *answers: Answer) -> None:
        self._answers: Sequence[Answer] = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        """Path, headers and body of each, in order."""
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._open:
            _end(peer)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(peer)
            self._threads.append(threading.Thread(target=self._serve, args=(peer,), daemon=True))
            self._threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, peer.makefile("rb") as reader:
            try:
                while (line := reader.readline()) and self._answer(peer, line, reader):
                    pass
            except OSError:
                return

    def _answer(self, peer: socket.socket, line: bytes, reader: Any) -> bool:
        headers = {}
        while (header := reader.readline().decode().strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        body = reader.read(int(headers.get("content-length", "0")))
        with self._lock:
            self.requests.append((line.split()[1].decode(), headers, json.loads(body)))
            answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        if answer == SILENCE:
            return True
        if answer == RESET:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            return False
        if callable(answer):
            answer(peer)
        else:
            peer.sendall(answer)
        return True


def _end(peer: socket.socket) -> None:
    try:
        peer.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it ended before
