"""Waiting for a part that does not answer: nothing is skipped, and everybody can see what is waited for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from featurestore.errors import Unavailable
from featurestore.telemetry import WAITING_FOR, get_logger

T = TypeVar("T")

FIRST_DELAY, LAST_DELAY = 0.05, 2.0
_SAY_AGAIN_SECONDS = 10.0

_log = get_logger(__name__)


class Patience:
    """Repeats effects until they succeed; `waiting_for` is the part that is missing now, or empty."""

    def __init__(self) -> None:
        self._waiting: dict[str, int] = {}
        self._said: dict[str, float] = {}

    @property
    def waiting_for(self) -> str:
        return next(iter(self._waiting), "")

    async def until_done(self, effect: Callable[[], Awaitable[T]]) -> T:
        """Runs an idempotent effect until it no longer raises Unavailable. Other errors pass."""
        delay, missed = FIRST_DELAY, ""
        try:
            while True:
                try:
                    return await effect()
                except Unavailable as error:
                    if error.part != missed:
                        self._leave(missed)
                        missed = error.part
                        self._enter(missed)
                    self._say(error)
                # Jitter, so that the lanes of many workers do not come back in one wave.
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 — no secret
                delay = min(delay * 2, LAST_DELAY)
        finally:
            self._leave(missed)

    def note(self, error: Unavailable) -> None:
        """Says that a part is missing, for waits that are not `until_done`."""
        WAITING_FOR.labels(error.part).set(1)
        self._say(error)

    def clear(self, part: str) -> None:
        if part not in self._waiting:
            WAITING_FOR.labels(part).set(0)

    def _enter(self, part: str) -> None:
        self._waiting[part] = self._waiting.get(part, 0) + 1
        WAITING_FOR.labels(part).set(1)

    def _leave(self, part: str) -> None:
        if not part:
            return
        self._waiting[part] -= 1
        if not self._waiting[part]:
            del self._waiting[part]
            WAITING_FOR.labels(part).set(0)
            _log.info("the part answers again", part=part)

    def _say(self, error: Unavailable) -> None:
        now = time.monotonic()
        if now - self._said.get(error.part, -_SAY_AGAIN_SECONDS) >= _SAY_AGAIN_SECONDS:
            self._said[error.part] = now
            _log.warning(f"waiting for {error.part}", reason=error.message, hint=error.hint)
