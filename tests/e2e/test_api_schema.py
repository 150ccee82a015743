"""Requests made up from the API's own OpenAPI document: whatever they hold, the server never fails."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from featurestore.clock import SystemClock
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.parts.redis import RedisServer
from tests.unit.serving import flights
from tests.unit.serving.process import ApiProcess


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    lake = tmp_path_factory.mktemp("lake")
    apply(Registry(str(lake)), flights.definitions(), now=SystemClock().now())
    with ApiProcess(redis_server.url, lake) as process:
        process.until_ready()
        yield process


# What a schema cannot say, and a client learns from a problem document: which services, keys and columns there are.
_BEYOND_THE_SCHEMA = [schemathesis.checks.positive_data_acceptance]


_ROUTES = [
    (path, GenerationMode.POSITIVE) for path in ("/v1/services", "/v1/views", "/v1/status", "/readyz", "/metrics")
]


@pytest.mark.parametrize(("path", "mode"), [*(("/v1/lookup", mode) for mode in GenerationMode), *_ROUTES])
def test_no_request_makes_the_server_fail_or_leave_its_documentation(
    server: ApiProcess, path: str, mode: GenerationMode
) -> None:
    document: Any = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    [operation] = [found.ok() for found in document.get_all_operations() if found.ok().path == path]

    @settings(max_examples=300 if path == "/v1/lookup" else 10, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def check(case: Any, known: bool) -> None:
        if known and mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            columns = list(case.body["entities"].values())
            case.body |= {"service": "flight_delay", "entities": {"origin": columns[0]}}
        case.call_and_validate(excluded_checks=_BEYOND_THE_SCHEMA)

    check()
