"""The process that serves the read API."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import partial

from uvicorn import Config, Server
from uvicorn.supervisors import Multiprocess

from featurestore.config import Settings
from featurestore.errors import ConfigError
from featurestore.serving.app import create_app

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Longer than what load balancers in front usually keep idle connections for, so that they close first."""
DRAIN_SECONDS = 15


def serve(settings: Settings, host: str, port: int, workers: int = 1) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes what is under way. Port 0 takes a free one.

    Says on stderr where it listens. Several workers are processes that share the socket. Raises ConfigError where
    the address cannot be listened on.
    """
    listener = _listen(host, port)
    config = Config(
        partial(create_app, settings),
        factory=True,
        host=host,
        port=listener.getsockname()[1],
        loop="uvloop",
        http="httptools",
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
    )
    sys.stderr.write(f"read API on {_url(listener)}\n")
    sys.stderr.flush()
    with listener, suppress(KeyboardInterrupt):
        if workers > 1:
            Multiprocess(config, sockets=[listener]).run()
        else:
            _end_in_order()
            Server(config).run(sockets=[listener])


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


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
