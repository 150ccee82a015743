"""Requests made up from the API's own OpenAPI document: whatever they hold, the server never fails.

`SCHEMA_CASES=10000 make test ARGS='tests/e2e/test_api_schema.py --log-cli-level=INFO'` sends more than twenty thousand,
and says how many and how they were answered. It takes about ten minutes.
"""

import logging
import os
from collections import Counter
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
from featurestore.serving.negotiation import ARROW
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


CASES = int(os.environ.get("SCHEMA_CASES", "300"))
"""Lookups of each mode."""

_log = logging.getLogger(__name__)

# What a schema cannot say, and a client learns from a problem document: which services, keys and columns there are.
_BEYOND_THE_SCHEMA = [schemathesis.checks.positive_data_acceptance]


_ROUTES = [
    (path, GenerationMode.POSITIVE) for path in ("/v1/services", "/v1/views", "/v1/status", "/readyz", "/metrics")
]


# OpenAPI has no parameters for these headers, so they are made up here.
_WISHES = st.fixed_dictionaries(
    {},
    optional={
        "Accept": st.sampled_from([ARROW, f"application/json;q=0.5, {ARROW}", "application/json", "text/html"]),
        "Accept-Encoding": st.sampled_from(["gzip", "identity", "gzip;q=0"]),
    },
)


@pytest.mark.timeout(max(180, CASES // 5))
@pytest.mark.parametrize(("path", "mode"), [*(("/v1/lookup", mode) for mode in GenerationMode), *_ROUTES])
def test_no_request_makes_the_server_fail_or_leave_its_documentation(
    server: ApiProcess, path: str, mode: GenerationMode
) -> None:
    document: Any = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    [operation] = [found.ok() for found in document.get_all_operations() if found.ok().path == path]

    answered: Counter[tuple[int, str]] = Counter()

    @settings(max_examples=CASES if path == "/v1/lookup" else 10, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode), st.booleans(), _WISHES)
    def check(case: Any, known: bool, wishes: dict[str, str]) -> None:
        if known and mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            columns = list(case.body["entities"].values())
            case.body |= {"service": "flight_delay", "entities": {"origin": columns[0]}}
        response = case.call_and_validate(headers=wishes, excluded_checks=_BEYOND_THE_SCHEMA)
        answered[response.status_code, str(response.headers.get("content-type", [""])[0])] += 1

    check()
    _log.info("%s, %s: %d requests: %s", path, mode.name, answered.total(), dict(answered))
    assert path != "/v1/lookup" or answered.total() >= CASES
