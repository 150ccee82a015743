"""An event loop whose time is a number, and which can stop single processes at any step."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar
from typing import Any, ClassVar, Generic, TypeVar, cast

PROCESS: ContextVar[str] = ContextVar("process", default="")
"""Which simulated process a callback belongs to. The parts and the schedule of faults belong to none."""

T = TypeVar("T")


class NumberedTask(asyncio.Task[T], Generic[T]):
    """Hashes by when it was made, so that sets of tasks have the same order in every run."""

    numbers: ClassVar[Iterator[int]] = itertools.count()
    _number: int

    def __new__(cls, *_args: Any, **_options: Any) -> NumberedTask[T]:
        task: NumberedTask[T] = super().__new__(cls)
        task._number = next(cls.numbers)
        return task

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedLoop(asyncio.BaseEventLoop):
    """Nothing waits: where no callback is ready, time jumps to the next timer."""

    # Of the class above, which declares them only in its source.
    _ready: deque[Any]
    _scheduled: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.delay: Callable[[], float] = lambda: 0.0
        """How long a call in an executor takes; it is then run on the loop."""
        self._held: dict[str, list[asyncio.Handle]] = {}
        self._countdowns: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.steps = 0
        NumberedTask.numbers = itertools.count()  # an order of sets must not depend on the runs before
        self.set_task_factory(cast(Any, _numbered))

    def time(self) -> float:
        return self._now

    def freeze(self, process: str) -> None:
        """Nothing of the process runs until it is thawed. One that never is has been killed: it does not clean up."""
        self._held.setdefault(process, [])

    def thaw(self, process: str) -> None:
        """All that came for the process meanwhile happens now, in order."""
        self._ready.extend(self._held.pop(process, []))

    def thaw_all(self) -> None:
        """So that what is left of killed processes can be cancelled."""
        for process in list(self._held):
            self.thaw(process)

    def after_steps(self, steps: int, act: Callable[[], None]) -> None:
        """Acts between two callbacks, `steps` callbacks from now."""
        heapq.heappush(self._countdowns, (self.steps + steps, next(self._order), act))

    def outside(self, delay: float, act: Callable[[], None]) -> None:
        """Acts after `delay` seconds, on behalf of no process: it happens whoever dies meanwhile."""
        self.call_later(delay, act, context=Context())

    def run_in_executor(self, _executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """A thread is part of its process: it stands still with it, and ends with it."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                outcome = func(*args)
            except Exception as error:  # noqa: BLE001 — belongs to whoever waits
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(outcome)

        self.call_later(self.delay(), run)
        return future

    def _run_once(self) -> None:
        if not self._ready:
            self._jump()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS, "")
            if process in self._held:
                self._held[process].append(handle)
                continue
            handle._run()
            self.steps += 1
            while self._countdowns and self._countdowns[0][0] <= self.steps:
                heapq.heappop(self._countdowns)[2]()

    def _jump(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
        if not self._scheduled:
            raise RuntimeError("nothing is ready and nothing is planned: the simulation waits for ever")
        self._now = max(self._now, self._scheduled[0]._when)
        while self._scheduled and self._scheduled[0]._when <= self._now:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._ready.append(handle)

    def _write_to_self(self) -> None:
        """There is no selector to wake."""

    def _process_events(self, _events: Any) -> None:
        """There are none."""


def _numbered(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], context: Context | None = None
) -> NumberedTask[T]:
    return NumberedTask(coroutine, loop=loop, context=context)
