"""Metrics and logs: every metric object of the package, and the only importer of prometheus_client and structlog.

Labels come from definitions (views, services, topics) and fixed vocabularies, never from entity ids, so that their
number is bounded. Units are seconds, bytes and records.
"""

import getpass
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from structlog.typing import EventDict, Processor

from featurestore.config import redact
from featurestore.errors import ConfigError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REGISTRY = CollectorRegistry()
"""Our own, so that a host application's metrics and Faust's stay apart from these."""
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

_FAST = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0)
_DELAY = (0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_APPEND = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

EVENTS = Counter(
    "fs_events_total",
    "Events of a source by what became of them in a view: applied, duplicate, late, dead_lettered or filtered.",
    ("source", "view", "outcome"),
    registry=REGISTRY,
)
DEAD_LETTERS = Counter(
    "fs_dead_letters_total",
    "Records that broke their contract, by reason code.",
    ("topic", "reason"),
    registry=REGISTRY,
)
CONSUMER_LAG = Gauge(
    "fs_consumer_lag_records", "Records not yet taken from a partition.", ("topic", "partition"), registry=REGISTRY
)
VISIBLE_DELAY = Histogram(
    "fs_visible_delay_seconds",
    "From an event's append to its topic until its effect can be read online.",
    ("view",),
    buckets=_DELAY,
    registry=REGISTRY,
)
LOOKUP_DURATION = Histogram(
    "fs_lookup_duration_seconds",
    "Lookups as the server sees them.",
    ("service",),
    buckets=_FAST,
    registry=REGISTRY,
)
LOOKUPS = Counter("fs_lookups_total", "Lookups by outcome.", ("service", "outcome"), registry=REGISTRY)
LOOKUPS_SHED = Counter(
    "fs_lookups_shed_total",
    "Lookups refused before they were read, by request class and reason: waited, budget, queue_full, memory, "
    "connections or quota.",
    ("class", "reason"),
    registry=REGISTRY,
)
LOOKUPS_RUNNING = Gauge("fs_lookups_running", "Lookups that were let in and are not answered yet.", registry=REGISTRY)
LOOKUPS_LIMIT = Gauge(
    "fs_lookups_limit", "What may run at a time now, counted as FS_LOOKUPS_AT_ONCE is.", registry=REGISTRY
)
LOOKUPS_WAITING = Gauge("fs_lookups_waiting", "Lookups that wait to be let in.", registry=REGISTRY)
CONNECTIONS = Gauge("fs_connections", "Open connections to this API process.", registry=REGISTRY)
ACCESS_REFUSED = Counter(
    "fs_access_refused_total",
    "Requests whose sender was not believed, by reason; `scope` and `admin`: believed, and may not ask for this.",
    ("reason",),
    registry=REGISTRY,
)
ACCESS_FILE_BROKEN = Gauge(
    "fs_access_file_broken",
    "1 while a file of keys cannot be used as it is, by its setting; what was read before stays in force.",
    ("setting",),
    registry=REGISTRY,
)
STORE_DURATION = Histogram(
    "fs_store_duration_seconds", "Round trips to the online store.", ("op",), buckets=_FAST, registry=REGISTRY
)
STORE_BREAKER_STATE = Gauge(
    "fs_store_breaker_state",
    "Whether lookups ask the online store: 0 they do, 1 a single probe does, 2 nobody does.",
    registry=REGISTRY,
)
STORE_BREAKER_OPENED = Counter(
    "fs_store_breaker_opened_total", "How often lookups stopped asking the online store.", registry=REGISTRY
)
STORE_VALUES = Counter(
    "fs_store_values_total",
    "Stored values that lookups asked for: read, or kept since the online store did not announce a change.",
    ("how",),
    registry=REGISTRY,
)
STORE_HEDGES = Counter(
    "fs_store_hedges_total",
    "Reads that a replica was asked for as well, by outcome: won, lost (the first answer came first) or failed.",
    ("outcome",),
    registry=REGISTRY,
)
FALLBACK_ROWS = Counter(
    "fs_fallback_rows_total",
    "Rows of a view that were answered without its stored values, by what stood in: last_known, default or null.",
    ("view", "kind"),
    registry=REGISTRY,
)
LAST_KNOWN_BYTES = Gauge(
    "fs_last_known_bytes", "Memory of values that are kept for when the online store is away.", registry=REGISTRY
)
LOOKUP_ROWS = Counter(
    "fs_lookup_rows_total",
    "Rows of a view in lookups of present values: evaluated, or remembered since nothing had changed.",
    ("how",),
    registry=REGISTRY,
)
REMEMBERED_BYTES = Gauge(
    "fs_remembered_bytes", "Memory of rows that hold until their stored value changes.", registry=REGISTRY
)
REGISTRY_REVISION = Gauge("fs_registry_revision", "The registry revision in use.", registry=REGISTRY)
WAITING_FOR = Gauge(
    "fs_waiting_for", "1 while work waits for a part: kafka, redis, lake or dlq.", ("part",), registry=REGISTRY
)
PARTITION_STOPPED = Gauge(
    "fs_partition_stopped",
    "1 while a partition is stopped and a person is needed.",
    ("topic", "partition", "reason"),
    registry=REGISTRY,
)
STATE_ENTITIES = Gauge("fs_state_entities", "Entities in a worker's state arrays.", ("view",), registry=REGISTRY)
SERVED_ROWS = Counter(
    "fs_served_rows_total", "Rows of answers that were recorded in the lake.", ("service",), registry=REGISTRY
)
SERVED_DROPPED = Counter(
    "fs_served_dropped_total",
    "Rows of answers that were chosen to be recorded, and were not: too many waited for the lake.",
    ("service",),
    registry=REGISTRY,
)
LAKE_APPEND = Histogram(
    "fs_lake_append_seconds", "One transaction of a lake table.", ("table",), buckets=_APPEND, registry=REGISTRY
)


def package_version() -> str:
    try:
        return version("featurestore")
    except PackageNotFoundError:
        return "unknown"


Info("fs_build", "What is running.", registry=REGISTRY).info(
    {"version": package_version(), "python": ".".join(map(str, sys.version_info[:3]))}
)


def this_process() -> str:
    """Names this process to the people who find its unfinished work."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a container's user may have no name
    return f"process {os.getpid()} of {user} on {socket.gethostname()}"


def exposition() -> bytes:
    """All metrics of this process in Prometheus' text format, of type CONTENT_TYPE."""
    return generate_latest(REGISTRY)


@contextmanager
def metrics_served(host: str, port: int) -> Iterator[int]:
    """Serves `exposition` over HTTP, in a thread, while the context lasts; gives the port, a free one for 0.

    Raises ConfigError where the address cannot be listened on: another worker of the machine may have it.
    """
    try:
        server, thread = start_http_server(port, host, REGISTRY)
    except OSError as error:
        raise ConfigError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}",
            hint="give each worker of a machine a port of its own, or 0 for a free one",
            field="FS_METRICS_PORT",
        ) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _without_passwords(_logger: Any, _method: str, event: EventDict) -> EventDict:
    return {key: redact(value) if isinstance(value, str) and "://" in value else value for key, value in event.items()}


_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
)

_RENDER: dict[str, tuple[Processor, ...]] = {
    "json": (structlog.processors.format_exc_info, _without_passwords, structlog.processors.JSONRenderer()),
    # Plain tracebacks: the pretty ones print local variables, which may hold secrets and take seconds to render.
    "console": (
        _without_passwords,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        ),
    ),
}


def setup_logging(mode: Literal["json", "console"], *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Every log line of the process, ours and the libraries', to `stream` (stderr): stdout is for data.

    Replaces the root logger's handlers. Passwords in URLs are masked.
    """
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_RENDER[mode]],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger that takes an event and its facts: `log.info("lane started", topic=topic)`.

    It works through the standard library's logger of the same name, and leaves structlog's own configuration alone.
    """
    wrapped = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return cast(structlog.stdlib.BoundLogger, wrapped)
