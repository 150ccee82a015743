"""A TCP proxy that misbehaves on command: what a network and a failover do to a connection, without privileges."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.parts.process import free_ports

T = TypeVar("T")

READ_BYTES = 64 << 10
_LINGER_NOT = struct.pack("ii", 1, 0)
"""SO_LINGER: close at once with a reset, and throw away what was not sent."""
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong now. Bytes are never lost from a connection that lives on: TCP would send them again."""

    delay: float = 0.0
    """Seconds that a reply waits."""
    share: float = 1.0
    """Of the replies that are delayed."""
    hold_requests: bool = False
    """A black hole towards the server: connections stay open, and their bytes arrive when it is over."""
    hold_replies: bool = False


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, cut: int | None) -> None:
        self.client, self.server = client, server
        self.cut = cut
        """Bytes of replies that still pass before the connection is reset; None for all."""

    def reset(self) -> None:
        for writer in (self.client, self.server):
            peer = writer.get_extra_info("socket")
            if peer is not None and peer.fileno() >= 0:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            writer.transport.abort()


class Proxy:
    """Listens on a port of 127.0.0.1 for connections to `target`, a port too, in a thread of its own.

    Faults are switched while connections live, from any thread: every method returns when it has taken effect. The
    seed decides which replies are delayed where only a share of them is.
    """

    def __init__(self, target: int, *, seed: int = 0, port: int | None = None) -> None:
        self.target = target
        self.port = free_ports(1)[0] if port is None else port
        self._faults = Faults()
        self._rng = random.Random(seed)
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._cut: int | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        return len(self._connections)

    def delay(self, seconds: float, share: float = 1.0) -> None:
        """From now on this share of the replies (as they are read, at most 64 KiB each) is late."""
        self._do(self._set(replace(self._faults, delay=seconds, share=share)))

    def black_hole(self, *, requests: bool = True, replies: bool = True) -> None:
        """Nothing passes, and nobody is told; new connections are taken."""
        self._do(self._set(replace(self._faults, hold_requests=requests, hold_replies=replies)))

    def cut_after(self, size: int) -> None:
        """Every connection, also a later one, is reset when so many more bytes of replies have passed."""
        self._do(self._set_cut(size))

    def reset(self) -> None:
        """Ends all connections with RST; new ones are taken."""
        self._do(self._reset())

    def refuse(self) -> None:
        """As where no process listens: connections are reset, and new ones refused."""
        self._do(self._stop_listening())

    def retarget(self, port: int) -> None:
        """Later connections go to another server, as a failover behind one address does; old ones are reset."""
        self.target = port
        self.reset()

    def heal(self) -> None:
        """Ends every fault. What a black hole held back passes on."""
        self._do(self._heal())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_SECONDS)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()

    async def _reset(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    async def _close(self) -> None:
        await self._stop_listening()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set(self, faults: Faults) -> None:
        """Whoever waits on a fault looks again."""
        self._faults = faults
        self._flowing.set()
        self._flowing = asyncio.Event()

    async def _set_cut(self, size: int | None) -> None:
        self._cut = size
        for connection in self._connections:
            connection.cut = size

    async def _heal(self) -> None:
        await self._set_cut(None)
        await self._set(Faults())
        await self._listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either side went away, or the proxy ends
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        from_server, server = await asyncio.open_connection("127.0.0.1", self.target)
        connection = _Connection(client, server, self._cut)
        self._connections.add(connection)
        ways = [
            asyncio.ensure_future(self._copy_requests(reader, server)),
            asyncio.ensure_future(self._copy_replies(from_server, connection)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._connections.discard(connection)
            server.transport.abort()

    async def _copy_requests(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            while self._faults.hold_requests:
                await self._flowing.wait()
            server.write(data)
            await server.drain()

    async def _copy_replies(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        while data := await reader.read(READ_BYTES):
            if self._faults.delay and self._rng.random() < self._faults.share:
                await asyncio.sleep(self._faults.delay)
            while self._faults.hold_replies:
                await self._flowing.wait()
            passing = data if connection.cut is None else data[: connection.cut]
            connection.client.write(passing)
            await connection.client.drain()
            if connection.cut is not None:
                connection.cut -= len(passing)
                if not connection.cut:
                    await asyncio.sleep(0)
                    connection.reset()
                    return
