"""Rows that lie before what the online state can answer exactly: answered from the lake, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.engine.columns import ARROW_TYPES, FeatureColumn
from featurestore.engine.packing import headers
from featurestore.engine.sections import GENERATION, NOBODY, OFFSET, PARTITION
from featurestore.engine.statuses import overlaid
from featurestore.errors import AtOutOfRange, StoreRefused, Unavailable
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.offline.lake import Lake
from featurestore.offline.point import covers, lookup_at
from featurestore.online.store import Fence, OnlineStore
from featurestore.serving.answers import Answer, Block, Origin, placeholder
from featurestore.serving.fallback import Fallbacks, missing
from featurestore.serving.plan import LookupPlan
from featurestore.serving.problems import Problem, Refused
from featurestore.serving.requests import KeyValue
from featurestore.telemetry import get_logger
from featurestore.types import STATUS_CODES, Status

THREADS = 2
QUEUE = 16
"""Lookups that may wait for the threads or run in them; one more is refused with 503."""
LAKE_SECONDS = 30.0
"""What a lookup without a budget may take."""
PATIENCE_SECONDS = 10.0
"""How long the lake has for taking the events that were applied: it does so in intervals of seconds."""
RETRY_SECONDS = 0.2

_NOT_FOUND = STATUS_CODES[Status.NOT_FOUND]

T = TypeVar("T")

_log = get_logger(__name__)


class PastLookups:
    """One per process. `close` abandons what still runs."""

    def __init__(self, lake: Lake, store: OnlineStore, board: FreshnessBoard, fallbacks: Fallbacks) -> None:
        self._lake, self._store, self._board, self._fallbacks = lake, store, board, fallbacks
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lake-lookup")
        self._busy = 0

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def complete(
        self,
        plan: LookupPlan,
        entities: Sequence[list[KeyValue]],
        keys: list[list[str | None]],
        answer: Answer,
        missing: np.ndarray,
        budget_ms: float | None,
    ) -> Answer:
        """The answer with its `missing` rows (`bool[n]`) computed from events at the answer's `at`.

        Raises AtOutOfRange where the lake lacks events that were applied online, Refused where too many wait and where
        a view's policy wants it so. A lake or a store that does not answer makes the rows `unavailable`, a spent budget
        makes them `deadline`.
        """
        rows = np.flatnonzero(missing)
        seconds = LAKE_SECONDS if budget_ms is None else max(0.0, min(budget_ms / 1e3, LAKE_SECONDS))
        asked = [[of_view[row] for row in rows.tolist()] for of_view in keys]
        try:
            async with asyncio.timeout(seconds):
                await self._until_covered([part.view for part in plan.parts], asked, seconds)
                found = await self._found(plan, entities, asked, rows, answer.at)
        except TimeoutError:
            found = self._fallbacks.unread(plan, asked, rows.size, answer.at, answer.at, Status.DEADLINE)
        except (Unavailable, StoreRefused) as error:
            _log.error("a lookup into the past is not answered", reason=error.message)
            found = self._fallbacks.unread(plan, asked, rows.size, answer.at, answer.at, Status.UNAVAILABLE)
        source: Origin = "lake" if rows.size == missing.size else "mixed"
        return Answer(_merged(answer, found, rows), 0, missing.size, answer.at, source)

    async def _found(
        self,
        plan: LookupPlan,
        entities: Sequence[list[KeyValue]],
        asked: list[list[str | None]],
        rows: np.ndarray,
        at: int,
    ) -> Block:
        chosen = rows.tolist()
        views = [part.view for part in plan.parts]
        columns = {
            name: pa.array([column[row] for row in chosen], ARROW_TYPES[dtype])
            for name, dtype, column in zip(plan.entities.names, plan.entities.dtypes, entities, strict=True)
        }
        instants = np.full(rows.size, at, np.int64)
        features = await self._in_thread(lambda: lookup_at(self._lake, views, columns, instants))
        return self._block(plan, features, asked, instants)

    async def _until_covered(
        self, views: Sequence[CompiledView], asked: list[list[str | None]], seconds: float
    ) -> None:
        """Waits until the lake holds what was applied online when this was asked, for most of `seconds` at most.

        A worker writes values, then the fence that says which events they hold, and on its own schedule the lake. So
        each value asked for waits for its fence, and the fences for the lake. Both are read here, not taken from the
        board: what it read some time ago may lack the very event that sent this lookup into the past.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + min(0.8 * seconds, PATIENCE_SECONDS)
        wanted = [await self._positions(view, keys) for view, keys in zip(views, asked, strict=True)]
        while not await self._covered(views, wanted):
            if loop.time() + RETRY_SECONDS > until:
                raise AtOutOfRange(
                    "`at` lies before an entity's latest event, and the lake does not hold every applied event yet",
                    field="at",
                    hint="ask again in some seconds, or leave `at` out for the present values",
                )
            await asyncio.sleep(RETRY_SECONDS)

    async def _positions(self, view: CompiledView, keys: list[str | None]) -> dict[int, tuple[int, int]]:
        """Fold partition → the highest (generation, offset) among the stored values of these keys."""
        stored = headers(await self._store.read(view.id, [key for key in keys if key is not None]))
        # A value of nobody's partition stands on loaded events only: there is no fence to wait for.
        stored = stored[stored[:, PARTITION] != NOBODY]
        return {p: (g, o) for p, g, o in sorted(stored[:, [PARTITION, GENERATION, OFFSET]].tolist())}

    async def _covered(self, views: Sequence[CompiledView], wanted: list[dict[int, tuple[int, int]]]) -> bool:
        needs: list[tuple[CompiledSource, dict[int, int]]] = []
        for view, positions in zip(views, wanted, strict=True):
            fences = await self._store.fences(view.id)
            if any(p not in fences or fences[p].position < position for p, position in positions.items()):
                return False
            needs.append((view.source, _applied(fences.values())))
        return await self._in_thread(lambda: all(covers(self._lake, source, vector) for source, vector in needs))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._busy >= QUEUE:
            hint = "ask for instants before the latest events less often, or export them"
            raise Refused(Problem(503, "overloaded", "too many lookups wait for the lake", "at", hint))
        self._busy += 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        running.add_done_callback(self._finished)
        return await asyncio.shield(running)

    def _finished(self, running: asyncio.Future[T]) -> None:
        self._busy -= 1
        if not running.cancelled():
            running.exception()  # a lookup that gave up no longer looks

    def _block(
        self,
        plan: LookupPlan,
        features: Mapping[str, Sequence[FeatureColumn]],
        keys: list[list[str | None]],
        at: np.ndarray,
    ) -> Block:
        block = placeholder(plan, at.size, 0, Status.OK)
        nowhere, unseen = np.full(at.size, -1, np.int64), np.zeros(at.size, np.bool_)
        for part, of_view in zip(plan.parts, keys, strict=True):
            fresh = self._board.of(part.view.id).of(of_view, nowhere, unseen)
            for column, feature in part.picks:
                read = features[part.view.id][feature]
                block.columns[column], block.as_of[column], block.at[column] = read.to_list(), read.as_of, at
                block.status[column] = overlaid(read.status, fresh)
                if part.view.on_missing == "error" and (read.status == _NOT_FOUND).any():
                    raise Refused(missing(part))
        return block


def _applied(fences: Iterable[Fence]) -> dict[int, int]:
    """Source partition → highest offset that any partition of the view has applied."""
    applied: dict[int, int] = {}
    for fence in fences:
        for partition, offset in fence.vector.items():
            applied[partition] = max(offset, applied.get(partition, -1))
    return applied


def _merged(answer: Answer, found: Block, rows: np.ndarray) -> Block:
    """The answer's part of its block, with `rows` replaced."""
    part = slice(answer.start, answer.stop)
    merged = Block(
        lambda: [values[part] for values in answer.block.columns],
        status=answer.block.status[:, part].copy(),
        as_of=[as_of[part].copy() for as_of in answer.block.as_of],
        at=[at[part].copy() for at in answer.block.at],
    )
    merged.status[:, rows] = found.status
    for i, values in enumerate(merged.columns):
        merged.as_of[i][rows], merged.at[i][rows] = found.as_of[i], found.at[i]
        for row, value in zip(rows.tolist(), found.columns[i], strict=True):
            values[row] = value
    return merged
