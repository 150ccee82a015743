"""Whether lookups ask the online store at all: no, for as long as asking it only costs time."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from enum import IntEnum

from featurestore import telemetry
from featurestore.errors import FeatureStoreError
from featurestore.telemetry import get_logger

SLOW_SECONDS = 0.25
"""A read that takes longer counts as failed, when it has taken so long and not only when it ends."""
WINDOW_SECONDS = 1.0
"""How far back outcomes count."""
LEAST_FAILURES = 3
"""What opens the breaker where reads succeed as well; they must be half of all besides."""
QUIET_SECONDS = 0.5
"""Where no read has succeeded for so long, one failure is enough."""
FIRST_PROBE_SECONDS, LAST_PROBE_SECONDS = 0.05, 0.5
"""Until the next probe; doubled each time, and varied by a fifth so that processes do not ask in step."""

_log = get_logger(__name__)


class State(IntEnum):
    """As the metric `fs_store_breaker_state` has it."""

    CLOSED = 0
    """Lookups ask the store."""
    HALF_OPEN = 1
    """A single read is on its way to find out whether it answers again; lookups do without."""
    OPEN = 2
    """Lookups do without."""


class Breaker:
    """Closed until reads fail; then a probe at a time, in the background, until one succeeds in time.

    One per process and event loop. `dice` varies when probes go out.
    """

    def __init__(self, probe: Callable[[], Awaitable[object]], *, dice: random.Random | None = None) -> None:
        """`probe` reads something as lookups do, and raises a FeatureStoreError where it cannot."""
        self._probe, self._dice = probe, dice or random.Random()  # noqa: S311 — no secret
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=1000)
        self._failures = 0
        self._succeeded = float("-inf")
        self._probing: asyncio.Task[None] | None = None
        self.state = State.CLOSED

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    def succeeded(self, now: float) -> None:
        """A read was answered in time. `now` is the event loop's."""
        self._succeeded = now
        self._note(now, failed=False)

    def failed(self, now: float, reason: str) -> None:
        """A read was refused, or is not answered in time."""
        self._note(now, failed=True)
        if not self.closed:
            return
        often = self._failures >= LEAST_FAILURES and 2 * self._failures >= len(self._outcomes)
        if often or now - self._succeeded > QUIET_SECONDS:
            self._open(reason)

    async def close(self) -> None:
        """Ends the probes."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])

    def _note(self, now: float, *, failed: bool) -> None:
        if len(self._outcomes) == self._outcomes.maxlen:
            self._failures -= self._outcomes.popleft()[1]
        self._outcomes.append((now, failed))
        self._failures += failed
        while self._outcomes[0][0] < now - WINDOW_SECONDS:
            self._failures -= self._outcomes.popleft()[1]

    def _open(self, reason: str) -> None:
        _log.error("lookups are answered without the online store", reason=reason)
        telemetry.STORE_BREAKER_OPENED.inc()
        self._becomes(State.OPEN)
        self._probing = asyncio.ensure_future(self._until_back())

    async def _until_back(self) -> None:
        delay = FIRST_PROBE_SECONDS
        while not await self._answers(delay * self._dice.uniform(0.8, 1.2)):
            delay = min(2 * delay, LAST_PROBE_SECONDS)
        self._outcomes.clear()
        self._failures = 0
        self._succeeded = asyncio.get_running_loop().time()
        self._becomes(State.CLOSED)
        _log.info("the online store is back")

    async def _answers(self, delay: float) -> bool:
        loop = asyncio.get_running_loop()
        self._becomes(State.OPEN)
        await asyncio.sleep(delay)
        self._becomes(State.HALF_OPEN)
        started = loop.time()
        try:
            await self._probe()
        except FeatureStoreError:
            return False
        except Exception:  # noqa: BLE001 — a defect of the probe must not end the probing
            _log.exception("the online store was not asked whether it is back")
            return False
        return loop.time() - started <= SLOW_SECONDS

    def _becomes(self, state: State) -> None:
        self.state = state
        telemetry.STORE_BREAKER_STATE.set(state)
