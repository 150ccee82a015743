"""The read API as its own process, as `serve` runs it."""

import re
import sys
import time
from pathlib import Path

import httpx

from tests.parts.process import ServerProcess

_ROOT = Path(__file__).resolve().parents[3]
_SERVE = """
import sys
sys.path.insert(0, sys.argv[4])
from featurestore.config import load_settings
from featurestore.serving.server import serve
serve(load_settings(redis=sys.argv[1], lake=sys.argv[2]), "127.0.0.1", 0, int(sys.argv[3]))
"""


class ApiProcess(ServerProcess):
    """On a port that the server chooses and tells."""

    name = "api"

    def __init__(self, redis_url: str, lake: Path, *, workers: int = 1) -> None:
        super().__init__()
        self._words = [redis_url, str(lake), str(workers), str(_ROOT)]

    def argv(self) -> list[str]:
        return [sys.executable, "-c", _SERVE, *self._words]

    @property
    def url(self) -> str:
        match = re.search(r"read API on (http://\S+)", self.tail(100_000))
        return match[1] if match else ""

    def answers(self) -> bool:
        if not self.url:
            return False
        try:
            return httpx.get(f"{self.url}/healthz", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def until_ready(self, seconds: float = 15.0) -> None:
        """Waits for /readyz."""
        deadline = time.monotonic() + seconds
        while (seen := httpx.get(f"{self.url}/readyz", timeout=5)).status_code != 200:
            assert time.monotonic() < deadline, seen.text
            time.sleep(0.05)

    def exit_code(self, seconds: float) -> int:
        """Waits for the end of a process that was told to end."""
        assert self._process is not None
        return self._process.wait(seconds)
