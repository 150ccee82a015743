"""Fixtures of all tiers: real parts, started once per session, clean for each test."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from featurestore.clock import ManualClock
from streams.embedded import EmbeddedBroker
from tests.parts.kafka import KafkaServer, why_unavailable
from tests.parts.redis import RedisServer

# Durations on a shared machine say nothing about an example; a failing one prints how to repeat it.
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

_KAFKA = {"kafka", "own_kafka"}
_LEFT_OUT = pytest.StashKey[tuple[int, str]]()


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def pytest_configure() -> None:
    # A shell starts what it runs in the background with SIGINT ignored, and children inherit that: they would not end
    # on the Ctrl-C that tests send them.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what needs a real Kafka, and leaves it out only loudly, never in CI."""
    needing = [
        item for item in items if _KAFKA & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("kafka")
    ]
    for item in needing:
        item.add_marker(pytest.mark.kafka)
    reason = why_unavailable() if needing else ""
    if not reason:
        return
    if _in_ci():
        raise pytest.UsageError(f"CI=true, and {len(needing)} tests on a real Kafka cannot run: {reason}")
    config.stash[_LEFT_OUT] = (len(needing), reason)
    for item in needing:
        item.add_marker(pytest.mark.skip(reason=f"no real Kafka: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    count, reason = config.stash.get(_LEFT_OUT, (0, ""))
    if count:
        terminalreporter.section("THE REAL-BROKER TIER WAS LEFT OUT", red=True, bold=True)
        terminalreporter.line(f"{count} tests on a real Apache Kafka did not run: {reason}.", red=True)
        terminalreporter.line("Install Java 17 and Maven to run them; with CI=true this is an error.", red=True)


@pytest.fixture
def clock() -> ManualClock:
    """A clock at 2026-03-01T12:00:00Z that moves when told to."""
    return ManualClock(1_772_366_400_000_000)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis for the session. A test that kills or freezes it takes `own_redis` instead."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A real Redis for one test, to kill, freeze and restart; it loses its data with its process."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of the session's Redis, empty at the start of each test."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A real Kafka for the session: use topic names of your own. A test that kills it takes `own_kafka`."""
    with KafkaServer() as server:
        yield server


@pytest.fixture
def own_kafka() -> Iterator[KafkaServer]:
    """A real Kafka for one test, to kill, freeze and restart; it keeps its data."""
    with KafkaServer() as server:
        yield server


@pytest.fixture
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """A new in-process broker for each test; topics appear on first use, with 4 partitions."""
    with EmbeddedBroker() as broker:
        yield broker
