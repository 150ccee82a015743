"""Callers that leave at random: no answer is another's, and everything they held is given back.

`python -m tests.e2e.cancelling` does the same with 80,000 calls, of which more than 40,000 are left.
"""

from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.e2e.cancelling import DELAY_SECONDS, DELAYED, Report, cancellations, disconnects, fill
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer

CALLS = 2_000
CONNECTIONS = 40
"""To Redis, of the API and of the tests together: a pool has 32 at most."""


@pytest.fixture
def parts() -> Iterator[tuple[RedisServer, Proxy]]:
    with RedisServer() as server, Proxy(server.port, seed=1) as proxy:
        yield server, proxy


@pytest.mark.parametrize("run", [disconnects, cancellations])
async def test_no_entity_gets_anothers_values_and_nothing_is_kept(
    parts: tuple[RedisServer, Proxy], run: Callable[[RedisServer, Proxy, int, int], Awaitable[Report]]
) -> None:
    server, proxy = parts
    await fill(server.url)
    proxy.delay(DELAY_SECONDS, DELAYED)
    report = await run(server, proxy, CALLS, 1)

    assert report.wrong == []
    assert report.outcomes["left"] > CALLS / 2
    assert report.outcomes["answered"] > CALLS / 10
    assert report.outcomes.total() - report.outcomes["unread"] == CALLS
    assert report.lookups_left == 0
    assert max(report.redis_connections) <= CONNECTIONS
