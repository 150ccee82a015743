"""A child process with a log file, that does not outlive this one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from featurestore.errors import Unavailable
from featurestore.online.embedded import start_attached

_TAIL_BYTES = 64 << 10
_POLL_SECONDS = 0.02


def module_command(module: str, *arguments: str) -> list[str]:
    """What runs a module of this installation. `-P`: a file of the user's that has its name must not shadow it."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """With the place of this package last on PYTHONPATH, so that children find it in a checkout as well."""
    home = str(Path(__file__).parents[2])
    path = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), home]
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


class Child:
    """One running process. Its output, stderr included, goes to `log`, which is appended to."""

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as out:
            self._from = out.tell()
            self._process = start_attached(
                list(argv),
                env=child_environment(environment),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def text(self) -> str:
        """What it said since it started, or the end of that."""
        with self.log.open("rb") as said:
            size = said.seek(0, 2)
            said.seek(max(self._from, size - _TAIL_BYTES))
            return said.read().decode(errors="replace")

    def tail(self, lines: int = 12) -> str:
        return "\n".join(f"  | {line}" for line in self.text().splitlines()[-lines:]) or "  | (it said nothing)"

    def require_alive(self) -> None:
        """Raises Unavailable, with the end of the log, once the process has ended."""
        code = self.returncode
        if code is not None:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise Unavailable(self.name, f"the {self.name} {how}; it said last\n{self.tail()}",
                              hint=f"the whole log is in {self.log}")  # fmt: skip

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Raises Unavailable, with the end of the log, where the process ends or the time passes first."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.require_alive()
            if time.monotonic() > deadline:
                raise Unavailable(self.name, f"the {self.name} was not ready within {seconds:.0f} s; it said last\n"
                                  f"{self.tail()}", hint=f"the whole log is in {self.log}")  # fmt: skip
            time.sleep(_POLL_SECONDS)

    def terminate(self) -> None:
        """Asks it to end: SIGTERM, and the end of its stdin."""
        self._close_stdin()
        if self.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self.returncode is None:
            self._process.kill()
        self._process.wait()
        self._close_stdin()

    def wait(self, seconds: float) -> bool:
        """Whether it ended within the time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._close_stdin()
        return True

    def _close_stdin(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
