"""When lookups stop asking the store, and when they ask again."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from featurestore.errors import Unavailable
from featurestore.serving.breaker import LEAST_FAILURES, QUIET_SECONDS, SLOW_SECONDS, Breaker, State


class Store:
    """What the probe asks."""

    def __init__(self) -> None:
        self.away = True
        self.takes = 0.0
        self.asked = self.at_once = self.most_at_once = 0

    async def probe(self) -> None:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.takes)
        self.at_once -= 1
        if self.away:
            raise Unavailable("redis", "away")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def breaker(store: Store) -> AsyncIterator[Breaker]:
    made = Breaker(store.probe, dice=random.Random(7))
    yield made
    await made.close()


async def closes(breaker: Breaker, seconds: float) -> bool:
    async with asyncio.timeout(seconds):
        while not breaker.closed:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    return True


async def test_one_failure_among_successes_changes_nothing(breaker: Breaker) -> None:
    for i in range(10):
        breaker.succeeded(i / 100)
    breaker.failed(0.1, "reset")

    assert breaker.state is State.CLOSED


async def test_one_failure_after_a_silence_opens(breaker: Breaker) -> None:
    breaker.succeeded(0.0)
    breaker.failed(QUIET_SECONDS + 0.01, "refused")

    assert breaker.state is State.OPEN


async def test_failures_open_when_they_are_half_of_all(breaker: Breaker) -> None:
    for i in range(LEAST_FAILURES + 1):
        breaker.succeeded(i / 100)
    for i in range(LEAST_FAILURES):
        breaker.failed(0.1 + i / 100, "slow")
    assert breaker.closed

    breaker.failed(0.2, "slow")
    assert breaker.state is State.OPEN


async def test_outcomes_of_more_than_a_second_ago_do_not_count(breaker: Breaker) -> None:
    for i in range(LEAST_FAILURES - 1):
        breaker.succeeded(i / 100)
        breaker.failed(i / 100, "slow")
    breaker.succeeded(1.9)
    breaker.failed(2.0, "slow")

    assert breaker.state is State.CLOSED


async def test_it_closes_as_soon_as_a_probe_succeeds(breaker: Breaker, store: Store) -> None:
    breaker.failed(0.0, "refused")
    await asyncio.sleep(0.5)
    assert not breaker.closed
    assert store.asked >= 2

    store.away = False
    assert await closes(breaker, 2.0)
    breaker.succeeded(asyncio.get_running_loop().time())
    breaker.failed(asyncio.get_running_loop().time(), "reset")
    assert breaker.closed, "what was before the outage no longer counts"


async def test_one_probe_is_on_its_way_at_a_time(breaker: Breaker, store: Store) -> None:
    store.takes = 0.2
    breaker.failed(0.0, "refused")
    await asyncio.sleep(0.15)
    assert breaker.state is State.HALF_OPEN
    for _ in range(20):
        breaker.failed(0.1, "still on its way when it opened")
    await asyncio.sleep(0.6)

    assert store.most_at_once == 1


async def test_a_probe_that_is_answered_late_does_not_close(breaker: Breaker, store: Store) -> None:
    store.away, store.takes = False, SLOW_SECONDS + 0.1
    breaker.failed(0.0, "slow")
    await asyncio.sleep(0.7)
    assert not breaker.closed

    store.takes = 0.0
    assert await closes(breaker, 2.0)
