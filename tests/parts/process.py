"""A server process that tests can kill, freeze and restart."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from featurestore.online.embedded import start_attached


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class ServerProcess:
    """Base of the launchers: `argv` starts the server, `answers` says whether it is ready.

    The directory holds data and log; it stays through `kill` and `restart`, and goes with `stop`.
    """

    name = "server"
    start_seconds = 30.0
    stop_seconds = 5.0

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"fs-test-{self.name}-"))
        self._process: subprocess.Popen[bytes] | None = None

    def argv(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Starts on the data that is there and returns when the server answers."""
        assert not self.alive(), f"{self.name} is running already"
        with self.log.open("ab") as log:
            self._process = start_attached(self.argv(), stdout=log, stderr=subprocess.STDOUT, cwd=self.directory)
        deadline = time.monotonic() + self.start_seconds
        while not self.answers():
            if not self.alive() or time.monotonic() > deadline:
                said = self.tail()
                self.kill()
                raise RuntimeError(f"{self.name} did not start; it said:\n{said}")
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """SIGKILL, also when frozen; returns when the process is gone. The data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> None:
        """SIGTERM, and SIGKILL where that takes too long. The data stays."""
        if self._process is not None:
            self.thaw()
            self._process.terminate()
            try:
                self._process.wait(self.stop_seconds)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def restart(self) -> Self:
        """The same address and data in a new process, after a kill of the old one where it still runs."""
        self.kill()
        return self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends the server at once and removes its data; harmless when repeated."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.alive():
            self._process.send_signal(number)

    def __enter__(self) -> Self:
        try:
            return self if self.alive() else self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
