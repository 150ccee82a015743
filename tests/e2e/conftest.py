"""The parts around a streaming project: each test has its own, and ends what it started."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from featurestore.online.store import OnlineStore
from streams.embedded import EmbeddedBroker
from tests.e2e.streaming import PARTITIONS, TOPIC, Project
from tests.parts.kafka import KafkaServer
from tests.parts.redis import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """It keeps its data over a restart."""
    with RedisServer(persist=True) as server:
        yield server


@pytest.fixture
def broker(embedded_broker: EmbeddedBroker) -> str:
    """Its address. A module that means the real one too has a fixture of this name, which is `either_broker`."""
    return embedded_broker.bootstrap


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def either_broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of one with the topic of `streaming`: embedded, then real."""
    if request.param == "embedded":
        with EmbeddedBroker() as embedded:
            yield embedded.bootstrap
        return
    with KafkaServer() as kafka:
        kafka.create_topic(TOPIC, partitions=PARTITIONS)
        yield kafka.bootstrap


@pytest.fixture
def project(broker: str, redis: RedisServer, tmp_path: Path) -> Iterator[Project]:
    found = Project(broker, redis.url, tmp_path)
    yield found
    found.stop()


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[OnlineStore]:
    async with OnlineStore.connect(redis.url) as connected:
        yield connected
