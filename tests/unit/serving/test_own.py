"""A service's own features over HTTP, on the real engine, a real Redis and a lake."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from featurestore.clock import HOUR, MINUTE, ManualClock, format_instant
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.serving.negotiation import ARROW
from featurestore.serving.requests import MAX_TEXT
from tests.unit.serving import flights, trips
from tests.unit.serving.api import Api, running

ENTITIES: dict[str, list[Any]] = {"origin": ["JFK", "LGA", "XXX"], "flight": [1, 7, 1]}


@pytest.fixture
async def api(redis_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Api]:
    """JFK: delays of 20 and 10 in the last hour, the latter of B6 and of leg 1. LGA: one of 7 h ago, of leg 7."""
    now = clock.now()
    apply(Registry(str(tmp_path)), trips.definitions(), now=now)
    table = flights.departures(
        [
            (now - 7 * HOUR, "LGA", "DL", 7, -4.0),
            (now - 40 * MINUTE, "JFK", "AA", 3, 20.0),
            (now - 5 * MINUTE, "JFK", "B6", 1, 10.0),
        ]
    )
    async with running(redis_url, tmp_path, clock) as started:
        for name in ("airport_delay", "leg_delay"):
            await started.write(flights.view(name), flights.stored(flights.view(name), table))
        await started.beat()
        await started.status_becomes({"origin": ["JFK"]}, "ok")
        yield started


async def ask(api: Api, request: Any, query: str = "", **fields: Any) -> httpx.Response:
    body = {"service": "trip_risk", "entities": ENTITIES, "request": request, **fields}
    return await api.lookup(body, query)


async def own(api: Api, request: Any, **fields: Any) -> list[list[Any]]:
    """By row, values of the service's own features."""
    response = await ask(api, request, **fields)
    assert response.status_code == 200, response.text
    return [row["values"][-len(trips.OWN) :] for row in response.json()["rows"]]


async def test_own_features_come_after_those_of_the_views_and_no_column_that_only_they_stand_on(api: Api) -> None:
    fields = {"expected_delay": [45, 3.5, None], "carrier": "DL", "seats": [180, 90, 10], "sold": 100}
    answer = (await ask(api, fields)).json()

    assert trips.NAMES == answer["features"]
    assert [
        {"values": [2, 15.0, 10.0, 3.0, True, False, 80, True], "status": "ok"},
        {
            "values": [0, 0.0, None, None, None, True, -10, None],
            "status": ["ok", "default", "expired", "default", "expired", "ok", "ok", "default"],
        },
        {
            "values": [0, 0.0, None, None, None, None, -90, None],
            "status": ["not_found"] * 6 + ["ok", "not_found"],
        },
    ] == answer["rows"]


async def test_a_default_stands_where_a_field_is_absent_or_null(api: Api) -> None:
    absent = await own(api, {"expected_delay": 30})
    null = await own(api, {"expected_delay": [30] * 3, "carrier": None, "seats": [None] * 3, "sold": None})

    assert [2.0, True, True, 100, False] == absent[0]
    assert absent == null


async def test_a_field_without_a_default_may_be_null_and_not_absent(api: Api) -> None:
    assert [None, True, True, 100, None] == (await own(api, {"expected_delay": None}))[0]
    problem = (await ask(api, {"seats": 3})).json()
    assert ("invalid_request", "request.expected_delay") == (problem["code"], problem["field"])
    for nothing in (dict[str, Any](), None):
        assert "request.expected_delay" == (await ask(api, nothing)).json()["field"]


@pytest.mark.parametrize(
    ("given", "field", "near"),
    [
        ({"expected_delay": [1, 2]}, "request.expected_delay", None),
        ({"expected_delay": [1, 2, 3, 4]}, "request.expected_delay", None),
        ({"expected_delay": "12"}, "request.expected_delay", None),
        ({"expected_delay": [1, True, 2]}, "request.expected_delay[1]", None),
        ({"expected_delay": [[1], 1, 2]}, "request.expected_delay[0]", None),
        ({"expected_delay": {"JFK": 1}}, "request.expected_delay", None),
        ({"expected_delay": 1, "seats": 1.0}, "request.seats", None),
        ({"expected_delay": 1, "seats": [1, 2, 2**63]}, "request.seats[2]", None),
        ({"expected_delay": 1, "carrier": 5}, "request.carrier", None),
        ({"expected_delay": 1, "carrier": "x" * (MAX_TEXT + 1)}, "request.carrier", None),
        ({"expected_delay": 1, "checked": 1}, "request.checked", None),
        ({"expected_delays": 1}, "request.expected_delays", ["expected_delay"]),
        ({"expected_delay": 1, "origin": "JFK"}, "request.origin", None),
        ([1, 2, 3], "request", None),
        ("expected_delay", "request", None),
    ],
)
async def test_fields_that_cannot_be_are_named(api: Api, given: Any, field: str, near: list[str] | None) -> None:
    response = await ask(api, given)

    problem = response.json()
    assert (422, "invalid_request", field) == (response.status_code, problem["code"], problem["field"])
    assert near == problem.get("near")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (b'{"expected_delay": 1, "expected_delay": 2}', "request.expected_delay"),
        (b'{"expected_delay": 1e999}', "request.expected_delay"),
        (b'{"expected_delay": [1, -1e999, 2]}', "request.expected_delay[1]"),
        (b'{"expected_delay": NaN}', ""),
        (b'{"expected_delay": 1, "carrier": "\\ud800"}', ""),
    ],
)
async def test_what_json_does_not_have_and_what_is_given_twice_is_refused(api: Api, fields: bytes, field: str) -> None:
    body = b'{"service": "trip_risk", "entities": {"origin": ["a", "b", "c"], "flight": [1, 2, 3]}, "request": %s}'
    response = await api.http.post("/v1/lookup", content=body % fields)

    assert (422, field) == (response.status_code, response.json().get("field", ""))


async def test_colons_in_fields_are_no_duplicates(api: Api) -> None:
    assert [[None, None, False, 100, None]] == [
        [*row[:1], None, *row[2:]] for row in (await own(api, {"expected_delay": None, "carrier": '::"{[:'}))[:1]
    ]


async def test_a_service_without_own_features_takes_no_fields(api: Api) -> None:
    body = {"service": "flight_delay", "entities": {"origin": ["JFK"]}}

    problem = (await api.lookup(body | {"request": {"seats": 1}})).json()
    assert ("request", "leave `request` out") == (problem["field"], problem["hint"])
    for nothing in (dict[str, Any](), None):
        assert 200 == (await api.lookup(body | {"request": nothing})).status_code


async def test_the_full_shape_says_what_own_features_stand_on(api: Api, clock: ManualClock) -> None:
    rows = (await ask(api, {"expected_delay": 30}, "?shape=full")).json()["rows"]

    jfk = rows[0]["features"]
    latest = {"as_of": format_instant(clock.now() - 5 * MINUTE), "age_seconds": 300.0}
    assert {"value": 2.0, "status": "ok"} | latest == jfk["trip_risk.delay_over_mean"]
    assert latest == {name: jfk["trip_risk.flagged"][name] for name in latest}
    assert {"value": 100, "status": "ok", "as_of": None, "age_seconds": None} == jfk["trip_risk.seats_left"]


async def test_columns_and_arrow_have_own_features_with_their_types(api: Api) -> None:
    fields = {"expected_delay": [30, 1, None]}
    lean = (await ask(api, fields, "?types=true")).json()
    columns = (await ask(api, fields, "?shape=columns")).json()["columns"]
    body = {"service": "trip_risk", "entities": ENTITIES, "request": fields}
    response = await api.http.post("/v1/lookup", json=body, headers={"accept": ARROW})
    table = pa.ipc.open_stream(response.content).read_all()

    assert dict(zip(trips.OWN, ["float", "bool", "bool", "int", "bool"], strict=True)) == {
        name: lean["types"][name] for name in trips.OWN
    }
    by_column = [list(values) for values in zip(*(row["values"] for row in lean["rows"]), strict=True)]
    assert by_column == [column["values"] for column in columns]
    assert by_column == [table[name].to_pylist() for name in trips.NAMES]
    assert [pa.float64(), pa.bool_(), pa.bool_(), pa.int64(), pa.bool_()] == [table[n].type for n in trips.OWN]
    statuses = [table[f"{name}__status"].to_pylist()[2] for name in trips.NAMES]
    assert lean["rows"][2]["status"] == statuses


async def test_no_rows_are_answered_with_no_rows(api: Api) -> None:
    nobody: dict[str, list[Any]] = {"origin": [], "flight": []}
    for shape in ("", "?shape=full", "?shape=columns"):
        assert 200 == (await ask(api, {"expected_delay": 1, "sold": []}, shape, entities=nobody)).status_code


async def test_a_value_that_stands_on_what_was_not_there_in_time_says_so(api: Api) -> None:
    rows = (await ask(api, {"expected_delay": 30}, budget_ms=1e-3)).json()["rows"]

    assert {
        "values": [None, 0.0, None, None, None, None, 100, None],
        "status": ["deadline"] * 6 + ["ok", "deadline"],
    } == rows[0]


async def test_lookups_that_are_answered_together_keep_their_own_fields(api: Api) -> None:
    asked = [
        own(api, {"expected_delay": [15.0 * i, i, i], "seats": i, "carrier": "B6" if i % 2 else "x"}) for i in range(40)
    ]
    answers = await asyncio.gather(*asked)

    assert [[float(i), True, bool(i % 2), i, i > 2] for i in range(40)] == [rows[0] for rows in answers]


async def test_services_are_listed_with_their_fields(api: Api) -> None:
    listed = {service["name"]: service for service in (await api.http.get("/v1/services")).json()["services"]}

    assert [] == listed["flight_delay"]["request"]
    assert trips.NAMES == listed["trip_risk"]["features"]
    assert {
        "carrier": ("string", False, "B6"),
        "checked": ("bool", False, False),
        "expected_delay": ("float", True, None),
        "seats": ("int", False, 100),
        "sold": ("int", False, 0),
    } == {f["name"]: (f["type"], f["required"], f["default"]) for f in listed["trip_risk"]["request"]}
