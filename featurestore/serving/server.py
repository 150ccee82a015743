"""The process that serves the read API."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import Any, cast

from uvicorn import Config, Server
from uvicorn.supervisors import Multiprocess

from featurestore import telemetry
from featurestore.clock import SystemClock
from featurestore.config import Settings
from featurestore.engine.kernel import select
from featurestore.errors import ConfigError
from featurestore.online.embedded import end_with
from featurestore.serving.access import access_to, is_local
from featurestore.serving.app import create_app
from featurestore.serving.protocol import BoundedProtocol
from featurestore.serving.tls import tls_options

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Longer than what load balancers in front usually keep idle connections for, so that they close first."""
DRAIN_SECONDS = 15
HUNG_SECONDS = 30
"""A worker process that says nothing for so long is replaced. It says nothing while it starts, which takes seconds, and
on a busy machine more than the server's own 5: then none would ever be up."""
OTHER_FILES = 1024
"""Open files beside the clients' connections: Redis, the lake, libraries."""

_log = telemetry.get_logger(__name__)


def serve(settings: Settings, host: str, port: int, workers: int = 1) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes what is under way. Port 0 takes a free one.

    Says on stderr where it listens. Several workers are processes that share the socket. Raises ConfigError where
    the address cannot be listened on or the kernel cannot be had, and where everyone who reaches the address could ask
    without anybody having said so.
    """
    settings = settings.model_copy(update={"host": host})
    tls = tls_options(settings)
    select(settings.lookup_kernel)  # says what is missing before anything listens
    if not access_to(settings, SystemClock()).required and not is_local(host):
        _log.warning("whoever reaches this address may ask for everything", host=host, setting="FS_AUTH=none")
    listener = _listen(host, port)
    _allow_files(settings.connections)
    config = Config(
        partial(_worker_app, os.getpid(), settings) if workers > 1 else partial(create_app, settings),
        factory=True,
        host=host,
        port=listener.getsockname()[1],
        loop="uvloop",
        http=cast(Any, partial(BoundedProtocol, limit=settings.connections)),
        ws="none",
        lifespan="on",
        interface="asgi3",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        workers=workers,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=HUNG_SECONDS,
        **tls,
    )
    sys.stderr.write(f"read API on {_url(listener, 'https' if tls else 'http')}\n")
    sys.stderr.flush()
    with listener, suppress(KeyboardInterrupt):
        if workers > 1:
            Multiprocess(config, sockets=[listener]).run()
        else:
            _end_in_order()
            Server(config).run(sockets=[listener])


def _worker_app(parent: int, settings: Settings) -> Any:
    """For one of several processes: it ends in order also where the one that started it is killed."""
    end_with(parent, signal.SIGTERM)
    return create_app(settings)


def _allow_files(connections: int) -> None:
    """Raises the process's limit of open files, often 1,024, as far as connections need it and the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _end_in_order() -> None:
    """The server drains on SIGTERM and then raises it once more; by then there is nothing left to kill."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.set_inheritable(True)
    except OSError as error:
        hint = "choose another with --port, or 0 for a free one"
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint, field="port") from None
    return listener


def _url(listener: socket.socket, scheme: str) -> str:
    address, port = listener.getsockname()[:2]
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"
