"""What all simulated parts share: time, chance, what is broken at the moment, and the record of what happened."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tests.simulation.loop import SimulatedLoop

T = TypeVar("T")

START = 1_772_366_400_000_000
"""2026-03-01T12:00:00Z, in µs."""
_REFUSED_SECONDS = 0.3


class Violation(AssertionError):
    """A promise that the simulation saw broken."""


class Gone(Exception):
    """A part did not answer, or its answer was lost: what was asked may have happened or not."""


@dataclass
class World:
    """`rng` decides everything that the code under test does not."""

    rng: random.Random
    loop: SimulatedLoop
    say: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    calm: bool = False
    """From then on nothing fails."""
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def now(self) -> int:
        """A `Clock`: virtual µs."""
        return START + int(self.loop.time() * 1_000_000)

    def latency(self) -> float:
        """Seconds that a message is on its way: mostly milliseconds, sometimes a second or more."""
        if self.rng.random() < 0.02 and not self.calm:
            return self.rng.uniform(0.1, 2.5)
        return self.rng.expovariate(200.0)

    def note(self, what: str) -> None:
        """One line of the trace. Equal seeds give equal traces."""
        line = f"{self.loop.time():10.4f} {what}\n"
        self._digest.update(line.encode())
        if self.say:
            sys.stderr.write(line)

    @property
    def trace(self) -> str:
        return self._digest.hexdigest()


class Part:
    """A machine at the other end of a wire. What arrives there happens, whatever became of who sent it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.down = False
        self.flaky = 0.0
        """Share of the messages that fail while nothing is down."""

    def ask(self, effect: Callable[[], T], delay: float | None = None) -> asyncio.Future[tuple[T | None, bool]]:
        """(the effect's outcome, whether an answer came)."""
        world, future = self.world, self.world.loop.create_future()

        def arrive() -> None:
            if self.down or self._fails():
                world.counts["refused"] += 1
                world.loop.outside(world.rng.uniform(0, _REFUSED_SECONDS), lambda: answer(None, False))
                return
            outcome = effect()
            lost = self._fails()
            world.counts["answers lost"] += lost
            world.loop.outside(world.latency(), lambda: answer(None if lost else outcome, not lost))

        def answer(outcome: T | None, came: bool) -> None:
            if not future.done():
                future.set_result((outcome, came))

        world.loop.outside(world.latency() if delay is None else delay, arrive)
        return future

    async def done(self, effect: Callable[[], T]) -> T:
        """The effect's outcome. Raises Gone."""
        outcome, came = await self.ask(effect)
        if not came:
            raise Gone(self.name)
        return outcome  # type: ignore[return-value]

    def fails_now(self) -> bool:
        """For calls without a message of their own."""
        return self.down or self._fails()

    def _fails(self) -> bool:
        return not self.world.calm and self.world.rng.random() < self.flaky
