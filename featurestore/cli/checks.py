"""What `doctor` looks at: one function for each part, each of which returns findings and raises nothing."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featurestore.cli import http
from featurestore.cli.access import access_findings
from featurestore.cli.environment import DEFAULT_DEFINITIONS
from featurestore.cli.history import history_findings
from featurestore.cli.streamed import stream_answer
from featurestore.clock import SECOND, SystemClock, format_instant
from featurestore.config import EMBEDDED, Settings, load_settings, redact, unknown_variables
from featurestore.definitions.load import load_definitions
from featurestore.engine import kernel
from featurestore.engine.array import select
from featurestore.errors import FeatureStoreError
from featurestore.online.fences import Stage
from featurestore.online.health import Finding, Level
from featurestore.online.store import OnlineStore, Rebuild
from featurestore.registry.catalog import EMPTY, Catalog
from featurestore.registry.log import Registry
from featurestore.registry.plan import plan

_PACKAGES = (
    "aiokafka", "deltalake", "duckdb", "fastapi", "faust-streaming", "msgspec", "numpy", "obstore", "pyarrow", "redis",
    "uvicorn", "xxhash",
)  # fmt: skip
_FULL = 0.95
_BEAT_SECONDS = 15
_REDIS_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Line:
    """One finding. `ms` is what the part took to answer, where that says something."""

    part: str
    level: str
    message: str
    hint: str = ""
    ms: float | None = None

    def document(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Iterator[Line]:
    """All findings, as they come."""
    yield from _lines("python", _python)
    yield from _lines("packages", _packages)
    try:
        settings = load_settings()
    except FeatureStoreError as error:
        yield Line("settings", Level.FAULT, error.message, error.hint)
        return
    yield from _lines("settings", lambda: _settings(settings))
    yield from _lines("compute", lambda: _compute(settings))
    yield from _lines("lake", lambda: _lake(settings))
    catalog, lines = _registry(settings)
    yield from lines
    yield from _lines("definitions", lambda: _definitions(settings, catalog))
    yield from _lines("redis", lambda: _redis(settings))
    yield from _lines("kafka", lambda: _kafka(settings, catalog))
    yield from _lines("worker", lambda: _worker(settings, catalog))
    yield from _lines("history", lambda: _history(settings, catalog))
    yield from _lines("access", lambda: access_findings(settings, SystemClock().now()))
    yield from _lines("api", lambda: _api(settings))


def _lines(part: str, check: Callable[[], Sequence[Finding]]) -> list[Line]:
    """The first finding carries the time that the check took."""
    started = time.perf_counter()
    try:
        found = check()
    except FeatureStoreError as error:
        found = [Finding("", Level.FAULT, error.message, error.hint)]
    except Exception as error:  # noqa: BLE001 — doctor goes on to the next part whatever happens
        found = [Finding("", Level.FAULT, f"unexpected {type(error).__name__}: {error}", "this is a defect: report it")]
    spent = round((time.perf_counter() - started) * 1000, 1)
    return [Line(part, f.level, redact(f.message), f.hint, None if i else spent) for i, f in enumerate(found)]


def _ok(message: str) -> Finding:
    return Finding("", Level.OK, message)


def _python() -> list[Finding]:
    text = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    return [_ok(f"{text}, {os.cpu_count()} cores")]


def _packages() -> list[Finding]:
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return [Finding("", Level.FAULT, f"not installed: {', '.join(missing)}", "pip install featurestore")]
    return [_ok(", ".join(f"{name} {number}" for name, number in found.items()))]


def _settings(settings: Settings) -> list[Finding]:
    unknown = unknown_variables(os.environ)
    shown = f"project {settings.project}, kafka {settings.kafka}, redis {settings.redis}, lake {settings.lake}"
    return [
        _ok(redact(shown)),
        *(
            Finding("", Level.ADVICE, f"{name} is set, and no setting has that name",
                    f"did you mean {' or '.join(near)}?" if near else "unset it")
            for name, near in unknown.items()
        ),
    ]  # fmt: skip


def _compute(settings: Settings) -> list[Finding]:
    _, said = select(settings.compute)
    kernel.select(settings.lookup_kernel)
    return [_ok(f"{said}; lookups are evaluated by {settings.lookup_kernel}")]


def _lake(settings: Settings) -> list[Finding]:
    number = Registry(settings.lake).latest()
    if "://" in settings.lake:
        return [_ok(f"{redact(settings.lake)} answers, {number} revisions")]
    path = Path(settings.lake).absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return [Finding("", Level.FAULT, f"{path} cannot be written", f"let this user write {there}, or set FS_LAKE")]
    usage = shutil.disk_usage(there)
    text = f"{path} is writable, {usage.free / 2**30:,.1f} GiB free"
    if usage.used / usage.total > _FULL:
        return [Finding("", Level.ADVICE, text, "the disk is nearly full: events cannot be stored once it is")]
    return [_ok(text if path.exists() else f"{text}; the first `apply` makes it")]


def _registry(settings: Settings) -> tuple[Catalog, list[Line]]:
    started = time.perf_counter()
    try:
        catalog = Registry(settings.lake).head()
    except FeatureStoreError as error:
        return EMPTY, [Line("registry", Level.FAULT, error.message, error.hint)]
    spent = round((time.perf_counter() - started) * 1000, 1)
    if not catalog.revision:
        return catalog, [Line("registry", Level.ADVICE, "nothing is published yet", "run: featurestore apply", spent)]
    views, services = len(catalog.views), len(catalog.services)
    return catalog, [
        Line("registry", Level.OK, f"revision {catalog.revision}: {views} views, {services} services", "", spent)
    ]


def _definitions(settings: Settings, catalog: Catalog) -> list[Finding]:
    target = settings.definitions or (str(DEFAULT_DEFINITIONS) if DEFAULT_DEFINITIONS.is_file() else "")
    if not target:
        return [Finding("", Level.ADVICE, "none are named", "set FS_DEFINITIONS to a module or .py file")]
    found = plan(catalog, load_definitions(target, settings.schemas))
    text = f"{target} holds together"
    if found.breaking:
        return [Finding("", Level.ADVICE, f"{text}, and would be refused", "`featurestore plan` says why")]
    if found.steps:
        return [Finding("", Level.ADVICE, f"{text}, {len(found.steps)} changes are not applied", "`featurestore plan`")]
    return [_ok(f"{text}, and is what is published")]


def _redis(settings: Settings) -> list[Finding]:
    if settings.redis == EMBEDDED:
        return [_embedded("FS_REDIS")]

    async def check() -> list[Finding]:
        store = OnlineStore.connect(settings.redis, project=settings.project, timeout_seconds=_REDIS_SECONDS)
        try:
            return await store.check()
        finally:
            await store.close()

    return asyncio.run(check())


def _embedded(name: str) -> Finding:
    return Finding("", Level.ADVICE, f"{name}=embedded: this part lives in `featurestore dev` only",
                   "run doctor with the addresses that dev prints")  # fmt: skip


def _kafka(settings: Settings, catalog: Catalog) -> list[Finding]:
    if settings.kafka == EMBEDDED:
        return [_embedded("FS_KAFKA")]
    answer = stream_answer("topics")
    findings = [_ok(f"{settings.kafka} answers")]
    if answer["embedded"]:
        findings = [Finding("", Level.ADVICE, f"{settings.kafka} is an embedded broker",
                            "for development only: memory, 4 partitions a topic, about 5 MB kept of each")]  # fmt: skip
    sources = [topic for topic in answer["topics"] if topic["role"] == "source"]
    return [*findings, *(_topic(topic) for topic in sources)]


def _topic(topic: dict[str, Any]) -> Finding:
    name = topic["topic"]
    if not topic["exists"]:
        return Finding("", Level.FAULT, f"topic {name} of source {topic['source']} does not exist",
                       f"create it, as: kafka-topics.sh --create --topic {name} --partitions 8 "
                       "--config message.timestamp.type=LogAppendTime")  # fmt: skip
    text = f"topic {name}: {len(topic['partitions'])} partitions"
    if topic["log_append_time"] is None:
        return _ok(text)
    if not topic["log_append_time"]:
        hint = "set message.timestamp.type=LogAppendTime: the broker's clock then judges events from the future"
        return Finding("", Level.ADVICE, f"{text}, timestamps of the producers", hint)
    return _ok(f"{text}, LogAppendTime")


def _worker(settings: Settings, catalog: Catalog) -> list[Finding]:
    if settings.redis == EMBEDDED:
        return [_embedded("FS_REDIS")]
    if not catalog.sources:
        return [_ok("has nothing to do before the first apply")]

    async def ask() -> tuple[int, list[str], dict[str, Rebuild]]:
        store = OnlineStore.connect(settings.redis, project=settings.project, timeout_seconds=_REDIS_SECONDS)
        try:
            stages = [f"intake:{name}" for name in catalog.sources]
            stages += [f"fold:{view.id}" for view in catalog.views.values()]
            beats = [(stage, p, beat) for stage in stages for p, beat in (await store.beats(stage)).items()]
            rebuilds = await store.rebuilds()
        finally:
            await store.close()
        latest = max((beat.at for _, _, beat in beats), default=0)
        stopped = [f"{stage} partition {p}: {beat.stopped}" for stage, p, beat in beats if beat.stopped]
        return latest, stopped, rebuilds

    latest, stopped, rebuilds = asyncio.run(ask())
    now = SystemClock().now()
    found = [_rebuild(view, mark, now) for view, mark in rebuilds.items()]
    if stopped:
        hint = "the partition stays stopped until this is repaired"
        found += [Finding("", Level.FAULT, text, hint) for text in stopped]
    if found:
        return found
    age = (now - latest) / SECOND
    if age > _BEAT_SECONDS:
        return [Finding("", Level.ADVICE, "none runs: there is no recent sign of life", "start: featurestore worker")]
    return [_ok(f"last sign of life {age:.1f} s ago")]


def _history(settings: Settings, catalog: Catalog) -> list[Finding]:
    return [_embedded("FS_REDIS")] if settings.redis == EMBEDDED else history_findings(settings, catalog)


def _rebuild(view: str, mark: Rebuild, now: int) -> Finding:
    verb, doing, meanwhile = _REGENERATED[mark.stage]
    text = f"{view} is being {doing} by {mark.by}, since {format_instant(mark.started_at)}"
    silent = (now - mark.at) / SECOND
    if mark.abandoned(now):
        return Finding("", Level.FAULT, f"{text}, without a sign of life for {silent:,.0f} s",
                       f"complete it with: featurestore {verb}; its values are {meanwhile} until then")  # fmt: skip
    return Finding("", Level.ADVICE, text, f"its values are {meanwhile} until it is done")


_REGENERATED = {
    Stage.REPLACING: ("rebuild", "rebuilt", "unavailable"),
    Stage.FILLING: ("backfill", "backfilled", "as they were"),
    Stage.PROMOTING: ("backfill", "backfilled", "stale"),
}


def _api(settings: Settings) -> list[Finding]:
    url = http.api_url(settings)
    if not http.is_ok(f"{url}/healthz"):
        hint = "start: featurestore serve; or set FS_HOST and FS_PORT to where it is"
        return [Finding("", Level.ADVICE, f"nothing serves at {url}", hint)]
    if not http.is_ok(f"{url}/readyz"):
        return [Finding("", Level.FAULT, f"{url} runs and is not ready", f"{url}/readyz says why")]
    return [_ok(f"{url} is ready")]
