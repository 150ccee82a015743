"""The parts around a streaming project: each test has its own, and ends what it started."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from featurestore.online.store import OnlineStore
from streams.embedded import EmbeddedBroker
from tests.e2e.streaming import Project
from tests.parts.redis import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """It keeps its data over a restart."""
    with RedisServer(persist=True) as server:
        yield server


@pytest.fixture
def broker(embedded_broker: EmbeddedBroker) -> str:
    """Its address. A module that means the real one too has a fixture of this name."""
    return embedded_broker.bootstrap


@pytest.fixture
def project(broker: str, redis: RedisServer, tmp_path: Path) -> Iterator[Project]:
    found = Project(broker, redis.url, tmp_path)
    yield found
    found.stop()


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[OnlineStore]:
    async with OnlineStore.connect(redis.url) as connected:
        yield connected
