"""A whole feature store on this machine, for `dev` and `demo`: broker, Redis, workers and read API.

    with Stack(Path(".fs"), definitions="definitions.py") as stack:   # returns when lookups can be answered
        stack.url                     # of the read API, as http://127.0.0.1:43210
        stack.settings                # for this process, as OnlineStore.connect(stack.settings.redis)
        stack.addresses               # FS_KAFKA, FS_REDIS, FS_LAKE, FS_HOST, FS_PORT: what to print for another shell
        stack.environment             # the same for a child process: subprocess.run(…, env=stack.environment)
        stack.catalog                 # what was applied
        stack.kill_worker()           # SIGKILL
        stack.start_worker()          # as often as workers are wanted
        stack.wait()                  # until Ctrl-C, or until a part ends: then Unavailable with its last words

Everything it started is gone afterwards: on return, on any exception, on Ctrl-C, SIGTERM and SIGHUP, and (on Linux)
even where this process is killed with -9. Only logs and lake stay, in the directory. Use it from the main thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from featurestore.cli.http import get, is_ok
from featurestore.cli.processes import Child, child_environment, module_command
from featurestore.clock import SystemClock
from featurestore.config import EMBEDDED, PREFIX, Settings
from featurestore.definitions.load import load_definitions
from featurestore.errors import AccessDenied, ConfigError, FeatureStoreError, UsageError
from featurestore.offline.lake import Lake
from featurestore.online.embedded import EmbeddedRedis
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply

if TYPE_CHECKING:
    from featurestore.registry.catalog import Catalog

START_SECONDS = 60.0
"""For each part; a laptop that is busy with something else takes its time."""
DRAIN_SECONDS = 20.0
_LISTENS = re.compile(r"read API on (https?://\S+)")
_ADDRESS = re.compile(r"^\S+:\d+(,\S+:\d+)*$", re.MULTILINE)
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_LAKE_ROOMS = frozenset({"registry", "events", "features", "visible", "served"})
_LAKE_SECONDS = "1"
"""How often the lake is appended to here. An embedded broker forgets soon, so a killed worker must not be far back."""

EMBEDDED_LIMITS = (
    "the embedded broker is for development: memory only, 4 partitions a topic, about 5 MB kept of each "
    "(`featurestore publish` waits for the worker; other producers must go slowly)"
)


class Stack:
    """See the module. `kafka` and `redis` are `embedded` or addresses of parts that run already.

    `definitions` (a module or .py file) are applied at each start; without them the registry of the lake decides.
    `lake` is `<directory>/lake` by default; with an embedded broker it is emptied at each start, since what it holds
    has offsets of a broker that is gone, and for the same reason another lake must hold no events. `environment` has
    further `FS_*` settings of the children. `say` is told of each step. Port 0 takes a free one.
    """

    def __init__(  # noqa: PLR0913 — the parts, each of which may be somebody's own
        self,
        directory: Path,
        *,
        definitions: str = "",
        schemas: Path | None = None,
        kafka: str = EMBEDDED,
        redis: str = EMBEDDED,
        lake: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.directory = directory.absolute()
        given = {"FS_LOG": "console", "FS_LAKE_INTERVAL_SECONDS": _LAKE_SECONDS, **os.environ, **(environment or {})}
        self.environment = child_environment({**given, "FS_LAKE": lake or str(self.directory / "lake")})
        self.url = ""
        self.catalog: Catalog | None = None
        self._definitions, self._schemas = definitions, schemas
        self._kafka, self._redis_url = kafka, redis
        self._host, self._port, self._workers_wanted = host, port, workers
        self._say = say
        self._broker: Child | None = None
        self._redis: EmbeddedRedis | None = None
        self._api: Child | None = None
        self._workers: list[Child] = []
        self._before: dict[int, Any] = {}
        self._own_lake = not lake
        self._lock: IO[bytes] | None = None

    @property
    def settings(self) -> Settings:
        """What the children run with."""
        fields = {name: self.environment.get(PREFIX + name.upper()) for name in Settings.model_fields}
        return Settings(**{name: value for name, value in fields.items() if value})  # type: ignore[arg-type]

    @property
    def pids(self) -> dict[str, int]:
        """Part → process id, of those that run; workers are `worker`, `worker-2` and so on."""
        children = [child for child in (self._broker, self._api, *self._workers) if child is not None]
        pids = {child.name: child.pid for child in children if child.returncode is None}
        return pids | ({"redis": self._redis.pid} if self._redis is not None else {})

    @property
    def addresses(self) -> dict[str, str]:
        """The variables that let another process work with these parts."""
        url = urlsplit(self.url)
        named = {name: self.environment[name] for name in ("FS_KAFKA", "FS_REDIS", "FS_LAKE")}
        return {**named, "FS_HOST": url.hostname or "", "FS_PORT": str(url.port)}

    @property
    def embedded_broker(self) -> bool:
        return self._kafka == EMBEDDED

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    # Life

    def start(self) -> None:
        """Returns when the API is ready. Raises what stands in the way; then nothing is left running."""
        self._catch_signals()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends everything, workers first so that they can drain; harmless when repeated."""
        with _no_interrupts():
            _end([*self._workers, *([self._api] if self._api else [])], DRAIN_SECONDS)
            _end([self._broker] if self._broker else [], 2.0)
            if self._redis is not None:
                self._redis.stop()
            self._workers, self._api, self._broker, self._redis = [], None, None, None
            if self._lock is not None:
                self._lock.close()
                self._lock = None
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def wait(self) -> None:
        """Blocks while all parts run. Raises Unavailable, with the last words of the part, when one ends."""
        while True:
            self.check()
            time.sleep(0.2)

    def check(self) -> None:
        """As `wait`, looking only once. A worker that `kill_worker` ended does not count."""
        for child in (self._broker, self._api, *self._workers):
            if child is not None:
                child.require_alive()

    def start_worker(self) -> int:
        """Starts one more worker and returns its number; it catches up in its own time."""
        taken = {child.name for child in self._workers}
        number = next(n for n in range(1, len(taken) + 2) if _worker_name(n) not in taken)
        self._workers.append(self._child(_worker_name(number), *module_command("streams.worker")))
        return number

    def kill_worker(self, number: int = 1) -> int:
        """SIGKILL to a worker, in the middle of whatever it does; returns the process id that it had."""
        child = next((child for child in self._workers if child.name == _worker_name(number)), None)
        if child is None:
            raise UsageError(f"there is no worker {number}")
        child.kill()
        self._workers.remove(child)
        return child.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # Steps

    def _start(self) -> None:
        self._take_directory()
        self._apply()
        self._start_stores()
        self._say("read API")
        self._api = self._child(
            "api", *module_command("featurestore.cli", "serve", "--host", self._host, "--port", str(self._port))
        )
        self._say("worker")
        for _ in range(self._workers_wanted):
            self.start_worker()
        self._wait_ready()

    def _take_directory(self) -> None:
        """Raises ConfigError where another stack has the directory, or the lake cannot be this broker's."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self.directory} is in use: something like this runs there already",
                              hint="stop that one, or name another directory") from None  # fmt: skip
        except OSError as error:
            raise ConfigError(f"{self.directory} cannot be written: {error.strerror}") from None
        if self.embedded_broker:
            self._empty_lake() if self._own_lake else self._refuse_old_events()

    def _empty_lake(self) -> None:
        lake = Path(self.environment["FS_LAKE"])
        foreign = {entry.name for entry in lake.iterdir()} - _LAKE_ROOMS if lake.is_dir() else set()
        if foreign:
            raise ConfigError(f"{lake} holds what no lake has: {', '.join(sorted(foreign)[:3])}",
                              hint="name another directory: this one would be emptied")  # fmt: skip
        shutil.rmtree(lake, ignore_errors=True)

    def _refuse_old_events(self) -> None:
        lake = Lake(self.environment["FS_LAKE"])
        if lake.tables():
            raise ConfigError(
                f"the lake {lake.url} has tables with the offsets of another broker", field="FS_LAKE",
                hint="an embedded broker begins at offset 0: use a new FS_LAKE, or leave it unset",
            )  # fmt: skip

    def _start_stores(self) -> None:
        self._say("broker")
        self.environment["FS_KAFKA"] = self._start_broker() if self._kafka == EMBEDDED else self._kafka
        self._say("Redis")
        if self._redis_url == EMBEDDED:
            self._redis = EmbeddedRedis()
        self.environment["FS_REDIS"] = self._redis.url if self._redis is not None else self._redis_url

    def _start_broker(self) -> str:
        catalog = self.catalog
        topics = sorted({source.topic for source in catalog.sources.values()}) if catalog is not None else []
        broker = self._broker = self._child("broker", *module_command("streams.embedded", *topics))
        broker.wait_until(lambda: _ADDRESS.search(broker.text()) is not None, START_SECONDS)
        found = _ADDRESS.search(broker.text())
        assert found is not None  # noqa: S101 — the line above waited for it
        return found[0]

    def _apply(self) -> None:
        registry = Registry(self.environment["FS_LAKE"])
        if not self._definitions:
            self.catalog = registry.head()
            return
        self._say("definitions")
        definitions = load_definitions(self._definitions, self._schemas)
        self.catalog = apply(registry, definitions, now=SystemClock().now())

    def _wait_ready(self) -> None:
        api = self._api
        assert api is not None  # noqa: S101 — started before
        api.wait_until(lambda: _LISTENS.search(api.text()) is not None, START_SECONDS)
        found = _LISTENS.search(api.text())
        assert found is not None  # noqa: S101 — the line above waited for it
        self.url = found[1]
        # An empty registry is never ready; it becomes so with the first `apply`.
        probe = "/readyz" if self.catalog is not None and self.catalog.revision else "/healthz"
        api.wait_until(lambda: is_ok(self.url + probe), START_SECONDS)
        if self.embedded_broker and self._workers_wanted:
            # The topics are there, so lanes open by themselves; until then answers would say `stale`.
            api.wait_until(self._all_fresh, START_SECONDS)
        self.check()

    def _all_fresh(self) -> bool:
        """Whether a worker vouches for every partition of every view."""
        try:
            views = get(self.url + "/v1/status")["views"]
        except AccessDenied:
            raise
        except FeatureStoreError:
            return False
        return all(parts and all(p["status"] != "stale" for p in parts.values()) for parts in views.values())

    def _child(self, name: str, *argv: str) -> Child:
        return Child(name, argv, self.environment, self.logs / f"{name}.log")

    def _catch_signals(self) -> None:
        """The default action of these would end this process without running anything."""
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("a Stack starts processes that live as long as their thread: use it from the main thread")
        self._before = {number: signal.signal(number, _leave) for number in _SIGNALS}


def _worker_name(number: int) -> str:
    return "worker" if number == 1 else f"worker-{number}"


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end(children: list[Child], seconds: float) -> None:
    """SIGTERM to all, then SIGKILL to those that take too long."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + seconds
    for child in children:
        if not child.wait(max(0.0, deadline - time.monotonic())):
            child.kill()


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """A second Ctrl-C must not cut the stopping short; it is bounded in time anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, handler)
