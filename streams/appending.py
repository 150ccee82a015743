"""Rows on their way to the lake: buffered, appended in a thread, in the way of a lane only when memory is short."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import pyarrow as pa

from featurestore.offline.lake import Lake
from featurestore.offline.marks import app_id
from featurestore.telemetry import LAKE_APPEND, get_logger
from streams.patience import Patience

Token = TypeVar("Token")


class _Sized(Protocol):
    @property
    def num_rows(self) -> int: ...


Rows = TypeVar("Rows", bound=_Sized)

_log = get_logger(__name__)

LIMIT_ROWS = 400_000
"""Held per table before lanes wait for the lake."""


@dataclass(slots=True)
class _Buffer(Generic[Token, Rows]):
    token: Token
    last: int
    rows: list[Rows] = field(default_factory=list)


class Appender(Generic[Token, Rows]):
    """Appends to one table, at most every `interval` seconds (or half of the limit), all partitions in one transaction.

    `build` makes a table (`_partition`, `_offset`, …) of all that was put since the last append, in the order in which
    the lake is to keep it; it runs in the thread of the append, not in the way of a lane.
    `on_durable(partition, token)` is told, after the append, the token that came with the last rows of a partition.
    """

    def __init__(
        self,
        lake: Lake,
        table: str,
        stream: str,
        patience: Patience,
        build: Callable[[Sequence[Rows]], pa.Table],
        on_durable: Callable[[int, Token], Awaitable[None]],
        *,
        interval: float,
        collect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`stream` names, with a partition, whose offsets the appends record. `collect` is called before each of them
        to `put` what is due."""
        self._lake, self._table, self._stream, self._patience = lake, table, stream, patience
        self._build, self._on_durable, self._collect = build, on_durable, collect
        self._interval = interval
        self._buffers: dict[int, _Buffer[Token, Rows]] = {}
        self._held = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._flushing = asyncio.Lock()
        self._failure: Exception | None = None

    async def recorded(self, partitions: Collection[int]) -> dict[int, int]:
        """The last offset that the lake has of each partition, -1 where it has none. Raises Unavailable."""
        ids = {p: app_id(self._stream, p) for p in partitions}
        found = await asyncio.to_thread(self._lake.recorded, self._table, list(ids.values()))
        return {p: found.get(name, -1) for p, name in ids.items()}

    async def add(self, partition: int, rows: Rows, last: int, token: Token) -> None:
        """Takes rows up to offset `last`; waits while too many are held."""
        await self._room.wait()
        self.check()
        self.put(partition, rows, last, token)

    def check(self) -> None:
        """Raises what the lake refused the last append for."""
        if self._failure is not None:
            raise self._failure

    def put(self, partition: int, rows: Rows, last: int, token: Token) -> None:
        """As `add`, whether there is room or not."""
        buffer = self._buffers.setdefault(partition, _Buffer(token, last))
        if last >= buffer.last:  # a log that is read again begins below what is buffered of it
            buffer.last, buffer.token = last, token
        buffer.rows.append(rows)
        self._held += rows.num_rows
        if self._held >= LIMIT_ROWS:
            self._room.clear()
        if self._held >= LIMIT_ROWS // 2:
            self._wake.set()

    def forget(self, partitions: Collection[int]) -> None:
        """Drops what is buffered of partitions that someone else owns now; they read it again."""
        for p in partitions:
            self._buffers.pop(p, None)
        self._recount()

    async def run(self) -> None:
        """Flushes until cancelled. What the lake refuses for good is raised by `add` and `check`, lest lanes go on for
        nothing."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._interval)
            self._wake.clear()
            try:
                await self.flush()
                self._failure = None
            except Exception as error:  # noqa: BLE001 — kept for `check`, and tried again
                _log.error("the lake refuses rows", table=self._table, exc_info=error)
                self._failure = error
                self._room.set()

    async def flush(self) -> None:
        """Appends all that is buffered; returns when the lake has it, however long that takes."""
        async with self._flushing:
            if self._collect is not None:
                await self._collect()
            taken, self._buffers = self._buffers, {}
            if not taken:
                return
            try:
                await self._patience.until_done(lambda: asyncio.to_thread(self._append, taken))
                for partition, buffer in taken.items():
                    await self._on_durable(partition, buffer.token)
            except BaseException:
                # Also when this task is cancelled: later rows must not pass these. Appending them twice is a no-op.
                self._put_back(taken)
                raise
            finally:
                self._recount()

    def _put_back(self, taken: dict[int, _Buffer[Token, Rows]]) -> None:
        for partition, buffer in taken.items():
            later = self._buffers.get(partition, buffer)
            rows = buffer.rows if later is buffer else buffer.rows + later.rows
            newest = later if later.last >= buffer.last else buffer
            self._buffers[partition] = _Buffer(newest.token, newest.last, rows)

    def _recount(self) -> None:
        self._held = sum(rows.num_rows for buffer in self._buffers.values() for rows in buffer.rows)
        if self._held < LIMIT_ROWS:
            self._room.set()

    def _append(self, taken: dict[int, _Buffer[Token, Rows]]) -> None:
        marks = {app_id(self._stream, p): buffer.last for p, buffer in taken.items()}
        rows = self._build([rows for buffer in taken.values() for rows in buffer.rows])
        started = time.perf_counter()
        self._lake.append(self._table, rows, marks)
        LAKE_APPEND.labels(self._table).observe(time.perf_counter() - started)
