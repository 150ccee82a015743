"""A sample of the answers on its way into the lake: bounded, and never in the way of a lookup."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from threading import Thread
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from featurestore import telemetry
from featurestore.clock import Clock
from featurestore.engine.columns import ARROW_TYPES
from featurestore.errors import Unavailable
from featurestore.offline.lake import Lake
from featurestore.offline.served import Answered, add_served, served_rows, served_table
from featurestore.serving.answers import Answer
from featurestore.serving.arrow import typed
from featurestore.serving.plan import LookupPlan
from featurestore.serving.requests import KeyValue

MAX_VALUES = 500_000
"""Most values and keys that wait for the lake. A number takes 40 to 50 bytes for a second and some 10 from then on;
texts and lists take what they are long."""
CONVERT_SECONDS = 1.0
CONVERT_VALUES = 20_000
"""Answers become Arrow columns this often, or when this much of them is there. As Python's objects they take more
memory, and each full garbage collection walks them."""
PORTION_VALUES = 2_000
PAUSE_SECONDS = 0.001
"""So much is made into columns at a time, about a millisecond's work, and then the event loop has its turn."""
END_SECONDS = 5.0
"""What the lake has at the end of the process for the last rows."""

T = TypeVar("T")
Entities: TypeAlias = Sequence[list[KeyValue]]
Fields: TypeAlias = Mapping[str, pa.Array]
"""Of the request, those that were given."""

_log = telemetry.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Record:
    """One answer, as it was encoded."""

    plan: LookupPlan
    facts: Answered
    entities: Entities
    fields: Fields
    columns: list[list[Any]]
    status: np.ndarray
    size: int
    """As `_size` says."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Answers of one version of a service, as the lake takes them."""

    service: str
    version: int
    table: pa.Table
    size: int


_Gone = tuple[str, int, int]
"""Service, rows and size of what no longer waits."""


class ServedLog:
    """Writes each answer with the probability `share` into the lake. One per process and event loop.

    Whole answers are kept in memory and appended every `interval_seconds`, and earlier where many wait. A lake that is
    away is asked again each time. What does not fit into `room` (values and keys) meanwhile is dropped and counted, and
    so is what is left when the process ends. `dice` decides which answers are kept.
    """

    def __init__(
        self,
        lake: Lake,
        clock: Clock,
        share: float,
        interval_seconds: float,
        *,
        dice: random.Random | None = None,
        room: int = MAX_VALUES,
    ) -> None:
        self._lake, self._clock, self._share, self._interval = lake, clock, share, interval_seconds
        self._dice = dice or random.Random()  # noqa: S311 — a sample is no secret
        self._throw = self._dice.random
        self._room = room
        self._answers: list[_Record] = []
        self._fresh = 0
        """Size of the answers."""
        self._rows: list[_Rows] = []
        self._size = 0
        """Of all that waits."""
        self._waiting: Counter[str] = Counter()
        """Rows of it, by service."""
        self._wake = asyncio.Event()
        self._away = self._ending = False

    def note(self, plan: LookupPlan, entities: Entities, fields: Fields, answer: Answer) -> None:
        """Takes the answer, or passes it over. Nothing of it may change afterwards."""
        if self._throw() < self._share:
            self._keep(plan, entities, fields, answer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Appends until it is left, and then what is still there, for `END_SECONDS` at most."""
        if not self._share:
            yield
            return
        task = asyncio.ensure_future(self._run())
        try:
            yield
        finally:
            self._ending = True
            self._wake.set()
            await asyncio.wait([task], timeout=END_SECONDS)
            task.cancel()
            await asyncio.wait([task])
            self._give_up()

    async def flush(self) -> None:
        """Gives the lake everything that waits; what it does not take goes on waiting."""
        await self._convert()
        await self._append()

    def _keep(self, plan: LookupPlan, entities: Entities, fields: Fields, answer: Answer) -> None:
        rows, service = answer.stop - answer.start, plan.service.name
        size = _size(rows, len(plan.arrow_types) + len(entities) + len(fields))
        if self._size + size > self._room:
            telemetry.SERVED_DROPPED.labels(service).inc(rows)
            return
        request, now = self._dice.getrandbits(63), self._clock.now()
        facts = Answered(request, plan.version, plan.revision, answer.at, now, answer.source, rows)
        self._answers.append(_Record(plan, facts, entities, fields, *_part(answer), size))
        self._size += size
        self._fresh += size
        self._waiting[service] += rows
        if self._fresh > CONVERT_VALUES:
            self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval
        while not self._ending:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(CONVERT_SECONDS, self._interval))
            self._wake.clear()
            await self._convert()
            if loop.time() >= due or (self._size > self._room // 2 and not self._away):
                await self._append()
                due = loop.time() + self._interval
        await self.flush()

    async def _convert(self) -> None:
        if self._answers:
            answers, self._answers, self._fresh = self._answers, [], 0
            made, bad = await _in_thread(partial(_converted, answers))
            self._rows += made
            self._forget(telemetry.SERVED_DROPPED, bad)

    async def _append(self) -> None:
        if self._rows:
            outcome = await _in_thread(partial(_appended, self._lake, self._rows))
            self._rows = outcome.left
            self._forget(telemetry.SERVED_ROWS, outcome.taken)
            self._forget(telemetry.SERVED_DROPPED, outcome.refused)
            self._tell(outcome.error)

    def _forget(self, counter: Any, gone: Iterable[_Gone]) -> None:
        for service, rows, size in gone:
            counter.labels(service).inc(rows)
            self._waiting[service] -= rows
            self._size -= size

    def _tell(self, error: Unavailable | None) -> None:
        if error is not None and not self._away:
            _log.error("answers wait for the lake to be recorded", reason=error.message, hint=error.hint)
        elif error is None and self._away:
            _log.info("the lake records answers again")
        self._away = error is not None
        telemetry.WAITING_FOR.labels("lake").set(self._away)

    def _give_up(self) -> None:
        for service, rows in (+self._waiting).items():
            telemetry.SERVED_DROPPED.labels(service).inc(rows)
            _log.error("the process ends before these answers are recorded", service=service, rows=rows)


@dataclass(slots=True)
class _Outcome:
    """What became of rows that the lake was given."""

    taken: list[_Gone] = field(default_factory=list)
    refused: list[_Gone] = field(default_factory=list)
    left: list[_Rows] = field(default_factory=list)
    error: Unavailable | None = None


def _size(rows: int, columns: int) -> int:
    """Values, keys and fields of an answer, and two rows more: what else it is made of takes as much memory as they."""
    return (rows + 2) * columns


def _part(answer: Answer) -> tuple[list[list[Any]], np.ndarray]:
    """The answer's columns and statuses, copied where its block holds those of others too: they need not be kept."""
    block, part = answer.block, slice(answer.start, answer.stop)
    if part.stop - part.start == block.status.shape[1]:
        return block.columns, block.status
    return [values[part] for values in block.columns], block.status[:, part].copy()


def _converted(answers: list[_Record]) -> tuple[list[_Rows], list[_Gone]]:
    """The answers as rows, and those that cannot be."""
    made: list[_Rows] = []
    bad: list[_Gone] = []
    for portion in _portions(answers):
        service, size = portion[0].plan.service.name, sum(record.size for record in portion)
        try:
            made.append(_Rows(service, portion[0].facts.version, _table(portion), size))
        except Exception as error:  # noqa: BLE001 — the log of answers must not end with one that it cannot take
            bad.append((service, sum(record.facts.rows for record in portion), size))
            _log.error("answers cannot be recorded", service=service, exc_info=error)
        portion.clear()  # freeing a second's answers at once would take as long as making them rows
        time.sleep(PAUSE_SECONDS)
    return made, bad


def _portions(answers: list[_Record]) -> Iterator[list[_Record]]:
    """Answers of one version of a service, PORTION_VALUES or one answer at a time; empties the list."""
    open_: dict[tuple[str, int], list[_Record]] = {}
    sizes: Counter[tuple[str, int]] = Counter()
    answers.reverse()
    while answers:
        record = answers.pop()
        version = record.plan.service.name, record.facts.version
        open_.setdefault(version, []).append(record)
        sizes[version] += record.size
        del record
        if sizes[version] >= PORTION_VALUES:
            del sizes[version]
            yield open_.pop(version)
    yield from open_.values()


def _table(portion: Sequence[_Record]) -> pa.Table:
    """The columns of one version are the same whatever the revision."""
    plan = portion[0].plan
    keys = {
        name: pa.array(list(chain.from_iterable([record.entities[i] for record in portion])), ARROW_TYPES[dtype])
        for i, (name, dtype) in enumerate(zip(plan.entities.names, plan.entities.dtypes, strict=True))
    }
    fields = {
        field.name: pa.concat_arrays([_field(record, field.name, ARROW_TYPES[field.dtype]) for record in portion])
        for field in plan.service.request
    }
    features = {
        name: typed(list(chain.from_iterable([record.columns[i] for record in portion])), kind)
        for i, (name, kind) in enumerate(zip(plan.service.feature_names, plan.arrow_types, strict=True))
    }
    statuses = np.concatenate([record.status for record in portion], axis=1)
    named = dict(zip(plan.service.feature_names, statuses, strict=True))
    return served_rows([record.facts for record in portion], keys | fields, features, named)


def _field(record: _Record, name: str, kind: pa.DataType) -> pa.Array:
    given = record.fields.get(name)
    return given if given is not None else pa.nulls(record.facts.rows, kind)


def _appended(lake: Lake, waiting: Iterable[_Rows]) -> _Outcome:
    """Gives them to the lake, the rows of one version at a time."""
    outcome = _Outcome()
    by_version: dict[tuple[str, int], list[_Rows]] = {}
    for rows in waiting:
        by_version.setdefault((rows.service, rows.version), []).append(rows)
    for (service, _), group in by_version.items():
        table = pa.concat_tables([rows.table for rows in group])
        gone = (service, table.num_rows, sum(rows.size for rows in group))
        try:
            with telemetry.LAKE_APPEND.labels(served_table(service)).time():
                add_served(lake, service, table)
            outcome.taken.append(gone)
        except Unavailable as error:
            outcome.left += group
            outcome.error = error
        except Exception as error:  # noqa: BLE001 — as above
            outcome.refused.append(gone)
            _log.error("answers cannot be recorded", service=service, exc_info=error)
    return outcome


async def _in_thread(work: Callable[[], T]) -> T:
    """In a thread that the end of the process does not wait for, as it would for a pool's: a lake may take minutes."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 — it belongs to who waits
            outcome.set_exception(error)

    Thread(target=run, name="served-log", daemon=True).start()
    return await asyncio.wrap_future(outcome)
