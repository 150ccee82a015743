"""What stands in for values that are stale, missing or unread, by the policy of their view."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore import telemetry
from featurestore.clock import MINUTE, SECOND, ManualClock, format_instant
from featurestore.online.fences import Rebuild
from featurestore.serving.fallback import LastKnown
from tests.unit.serving import policies
from tests.unit.serving.api import Api, running

TRUE = [2, 6.0, 7.0, 4]
UNSEEN = [0, 0.0, None, 0]
DECLARED = [None, 0.0, None, None]
NULLS = [None, None, None, None]


@pytest.fixture
async def api(redis_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Api]:
    async with running(redis_url, tmp_path, clock, applied=False) as started:
        await policies.publish(started)
        yield started


async def ask(api: Api, policy: str, *origins: str | None, **fields: Any) -> Any:
    body = {"service": f"of_{policy}", "entities": {"origin": list(origins)}, **fields}
    return (await api.lookup(body)).json()


async def stop_vouching(api: Api) -> None:
    await policies.beat(api, stopped="gap in the log")
    await api.status_becomes({"origin": ["JFK"]}, "stale", "of_served")


async def rebuild(api: Api, name: str) -> None:
    """Marks the view as half-filled: nothing of it may be shown."""
    mark = Rebuild(
        generation=5, lake_version=3, vector={}, offsets={}, buckets=4, done=[0], tallies={}, entities=9, events=11,
        started_at=api.clock.now(), together=[], at=api.clock.now(), by="process 1 of ops",
    )  # fmt: skip
    await api.store.swap_rebuild(f"{name}@1", mark, over=b"")


@pytest.mark.parametrize(
    ("policy", "values"), [("served", TRUE), ("defaulted", DECLARED), ("nulled", NULLS), ("remembered", TRUE)]
)
async def test_a_stale_value_is_replaced_as_its_view_says(api: Api, policy: str, values: list[Any]) -> None:
    await stop_vouching(api)

    [row] = (await ask(api, policy, "JFK"))["rows"]
    assert row == {"values": values, "status": "last_known" if policy == "remembered" else "stale"}


async def test_a_stale_value_of_a_view_that_wants_none_refuses_the_request(api: Api) -> None:
    await stop_vouching(api)

    response = await api.lookup({"service": "of_refused", "entities": {"origin": ["JFK"]}})
    problem = response.json()
    assert (response.status_code, problem["code"], problem["field"]) == (503, "not_vouched_for", "refused")
    assert response.headers["retry-after"] == "1"


async def test_a_refusal_concerns_the_requests_with_such_a_row_and_no_others(api: Api) -> None:
    await stop_vouching(api)

    assert (await ask(api, "refused", None))["rows"][0]["status"] == "not_found"
    assert (await ask(api, "served", "JFK"))["rows"][0]["values"] == TRUE


async def test_a_last_known_value_has_the_event_time_it_stands_on_and_its_age_from_now(
    api: Api, clock: ManualClock
) -> None:
    seen = clock.now()
    clock.advance(30 * SECOND)  # nobody has given a sign of life since
    response = await api.lookup({"service": "of_remembered", "entities": {"origin": ["JFK"]}}, "?shape=full")

    described = response.json()["rows"][0]["features"]["remembered.delay_max_24h"]
    assert described == {
        "value": 7.0,
        "status": "last_known",
        "as_of": format_instant(seen - 60 * SECOND),
        "age_seconds": 90.0,
    }


async def test_a_value_known_longer_ago_than_the_policy_allows_is_not_used(api: Api, clock: ManualClock) -> None:
    clock.advance(60 * SECOND)
    assert (await ask(api, "remembered", "JFK"))["rows"] == [{"values": TRUE, "status": "last_known"}]

    clock.advance(1)
    assert (await ask(api, "remembered", "JFK"))["rows"] == [{"values": DECLARED, "status": "stale"}]


async def test_rows_without_a_last_known_value_get_the_declared_defaults(api: Api) -> None:
    await stop_vouching(api)

    rows = (await ask(api, "remembered", "LGA", "JFK", None))["rows"]
    assert rows == [
        {"values": DECLARED, "status": "stale"},
        {"values": TRUE, "status": "last_known"},
        {"values": UNSEEN, "status": "not_found"},
    ]


async def test_while_a_view_is_rebuilt_its_last_known_values_are_shown(api: Api) -> None:
    await rebuild(api, "remembered")
    await api.status_becomes({"origin": ["JFK"]}, "last_known", "of_remembered")

    assert (await ask(api, "remembered", "JFK"))["rows"][0]["values"] == TRUE


async def test_a_value_read_while_nobody_vouched_for_it_is_not_remembered(api: Api, clock: ManualClock) -> None:
    await stop_vouching(api)
    clock.advance(50 * SECOND)
    await policies.beat(api, stopped="gap in the log")
    await ask(api, "remembered", "JFK")
    clock.advance(20 * SECOND)

    assert (await ask(api, "remembered", "JFK"))["rows"][0]["status"] == "stale"


async def test_an_explicit_instant_is_never_answered_with_a_last_known_value(api: Api, clock: ManualClock) -> None:
    await stop_vouching(api)

    [row] = (await ask(api, "remembered", "JFK", at=format_instant(clock.now())))["rows"]
    assert row == {"values": DECLARED, "status": "stale"}


@pytest.mark.parametrize(
    ("policy", "values"), [("served", DECLARED), ("defaulted", DECLARED), ("nulled", NULLS), ("remembered", TRUE)]
)
async def test_a_spent_budget_is_answered_as_the_view_says(api: Api, policy: str, values: list[Any]) -> None:
    [row] = (await ask(api, policy, "JFK", budget_ms=0.000001))["rows"]
    assert row == {"values": values, "status": "last_known" if policy == "remembered" else "deadline"}


async def test_a_spent_budget_refuses_the_request_where_the_view_wants_no_stand_in(api: Api) -> None:
    problem = await ask(api, "refused", "JFK", budget_ms=0.000001)
    assert (problem["status"], problem["code"]) == (503, "not_vouched_for")


async def test_each_view_of_a_service_has_its_own_policy(api: Api) -> None:
    [row] = (await ask(api, "two", "JFK", budget_ms=0.000001))["rows"]
    assert row == {"values": DECLARED + TRUE, "status": ["deadline"] * 4 + ["last_known"] * 4}


async def test_an_entity_that_is_missing_has_nulls_where_the_view_says_so(api: Api) -> None:
    rows = (await ask(api, "missing_null", "XXX", "JFK", None))["rows"]
    assert rows == [
        {"values": NULLS, "status": "not_found"},
        {"values": TRUE, "status": "ok"},
        {"values": NULLS, "status": "not_found"},
    ]


async def test_an_entity_that_is_missing_refuses_the_request_where_the_view_says_so(api: Api) -> None:
    problem = await ask(api, "missing_error", "JFK", "XXX")
    assert (problem["status"], problem["code"], problem["field"]) == (422, "entity_missing", "entities.origin")

    assert (await ask(api, "missing_error", "JFK"))["rows"] == [{"values": TRUE, "status": "ok"}]


async def test_an_entity_is_not_called_missing_while_its_view_is_rebuilt(api: Api) -> None:
    await rebuild(api, "missing_error")
    await api.status_becomes({"origin": ["JFK"]}, "unavailable", "of_missing_error")

    assert (await ask(api, "missing_error", "XXX"))["rows"][0]["status"] == "unavailable"


async def test_fallbacks_are_counted_by_view_and_by_what_stood_in(api: Api) -> None:
    def counted(kind: str) -> float:
        value = telemetry.REGISTRY.get_sample_value("fs_fallback_rows_total", {"view": "remembered@1", "kind": kind})
        return value or 0.0

    before = counted("last_known"), counted("default")
    await stop_vouching(api)
    await ask(api, "remembered", "JFK", "LGA", "EWR")

    assert (counted("last_known") - before[0], counted("default") - before[1]) == (1, 2)


def test_memory_of_last_known_values_is_bounded_and_the_latest_stay() -> None:
    known = LastKnown(1 << 20)
    for second in range(200):
        keys = [f"{second}-{i}" for i in range(100)]
        known.remember("v@1", keys, [bytes(900)] * 100, second)
        assert known.size <= 1 << 20

    latest, at = known.find("v@1", [f"199-{i}" for i in range(100)], 0)
    assert latest == [bytes(900)] * 100
    assert at.tolist() == [199] * 100
    assert known.find("v@1", ["0-0"], 0)[0] == [None]


def test_a_key_that_is_read_over_and_over_does_not_push_out_the_others() -> None:
    known = LastKnown(1 << 20)
    known.remember("v@1", ["quiet"], [b"q" * 900], 1)
    for instant in range(5_000):
        known.remember("v@1", ["busy"], [b"b" * 900], instant)

    assert known.find("v@1", ["quiet"], 0)[0] == [b"q" * 900]


def test_a_value_known_from_before_the_limit_is_not_found() -> None:
    known = LastKnown(1 << 20)
    known.remember("v@1", ["a", "b"], [b"1" * 64, None], MINUTE)

    values, at = known.find("v@1", ["a", "b", None, "c"], MINUTE)
    assert values == [b"1" * 64, None, None, None]
    assert at[0] == MINUTE
    assert known.find("v@1", ["a"], MINUTE + 1)[0] == [None]
    assert known.find("w@1", ["a"], 0)[0] == [None]


def test_without_memory_nothing_is_remembered() -> None:
    known = LastKnown(0)
    known.remember("v@1", ["a"], [b"1" * 64], 1)

    assert known.find("v@1", ["a"], 0)[0] == [None]
    assert np.isfinite(known.size)
