"""Both clients against a server on a real socket that behaves as told."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore import AsyncClient, Client
from featurestore.client.result import LookupResult
from featurestore.errors import (
    AccessDenied,
    AtOutOfRange,
    FeatureStoreError,
    InvalidRequest,
    NotFound,
    Unavailable,
    UsageError,
)
from tests.unit.client.answering import LEAN, RESET, SILENCE, SOUND, Answering, http, problem

JFK = {"origin": ["JFK", "XXX"]}
KEY = "fsk_0123456789abcdef"

Lookup = Callable[..., LookupResult]


def by_client(url: str, *words: Any, said: Mapping[str, Any] | None = None, **how: Any) -> LookupResult:
    with Client(url, **(said or {})) as client:
        return client.lookup(*(words or ("flight_delay", JFK)), **how)


def by_async_client(url: str, *words: Any, said: Mapping[str, Any] | None = None, **how: Any) -> LookupResult:
    async def ask() -> LookupResult:
        async with AsyncClient(url, **(said or {})) as client:
            return await client.lookup(*(words or ("flight_delay", JFK)), **how)

    return asyncio.run(ask())


@pytest.fixture(params=[by_client, by_async_client])
def lookup(request: pytest.FixtureRequest) -> Lookup:
    asked: Lookup = request.param
    return asked


def test_a_lookup_is_asked_as_documented(lookup: Lookup) -> None:
    with Answering(SOUND) as server:
        lookup(server.url, said={"api_key": KEY}, at="2026-03-01T13:00:00+01:00", budget_ms=20, request={"amount": 2.5})

    [(path, headers, body)] = server.requests
    assert "/v1/lookup?types=true" == path
    assert {
        "service": "flight_delay",
        "entities": JFK,
        "at": "2026-03-01T12:00:00Z",
        "budget_ms": 20,
        "request": {"amount": 2.5},
    } == body
    assert f"Bearer {KEY}" == headers["authorization"]
    assert ("application/json", "identity") == (headers["content-type"], headers["accept-encoding"])


def test_what_is_not_said_is_not_sent(lookup: Lookup) -> None:
    with Answering(SOUND) as server:
        lookup(server.url)

    [(_, headers, body)] = server.requests
    assert {"service": "flight_delay", "entities": JFK} == body
    assert not {"authorization", "x-budget-ms", "x-request-class"} & headers.keys()


def test_the_class_of_requests_is_told_where_it_is_given(lookup: Lookup) -> None:
    with Answering(SOUND) as server:
        lookup(server.url, said={"request_class": "batch"})

    assert "batch" == server.requests[0][1]["x-request-class"]


def test_the_budget_of_the_client_stands_for_calls_without_one(lookup: Lookup) -> None:
    with Answering(SOUND) as server:
        lookup(server.url, said={"budget_ms": 70})
        lookup(server.url, said={"budget_ms": 70}, budget_ms=30)

    assert [70, 30] == [body["budget_ms"] for _, _, body in server.requests]
    assert ["70.000", "30.000"] == [headers["x-budget-ms"] for _, headers, _ in server.requests]


def test_a_path_before_the_api_is_kept(lookup: Lookup) -> None:
    with Answering(SOUND) as server:
        lookup(f"{server.url}/features/")

    assert "/features/v1/lookup?types=true" == server.requests[0][0]


@pytest.mark.parametrize(
    "column",
    [
        ["JFK", "XXX"],
        ("JFK", "XXX"),
        np.array(["JFK", "XXX"]),
        pd.Series(["JFK", "XXX"]),
        pl.Series(["JFK", "XXX"]),
        pa.array(["JFK", "XXX"]),
        [np.str_("JFK"), pa.scalar("XXX")],
        pd.array(["JFK", "XXX"]),
    ],
    ids=lambda column: type(column).__module__.partition(".")[0],
)
def test_key_columns_may_be_of_any_library(column: Any) -> None:
    with Answering(SOUND) as server:
        by_client(server.url, "flight_delay", {"origin": column, "flight": np.arange(2)})

    assert {"origin": ["JFK", "XXX"], "flight": [0, 1]} == server.requests[0][2]["entities"]


def test_a_missing_key_is_null_whichever_way_it_is_missing() -> None:
    with Answering(SOUND) as server:
        for column in ([None, "JFK"], pd.Series([np.nan, "JFK"]), pl.Series([None, "JFK"]), [pa.scalar(None), "JFK"]):
            by_client(server.url, "flight_delay", {"origin": column})

    assert [[None, "JFK"]] * 4 == [body["entities"]["origin"] for _, _, body in server.requests]


def test_an_answer_is_rows_and_statuses_by_name(lookup: Lookup) -> None:
    with Answering(SOUND) as server:
        result = lookup(server.url)

    assert ("flight_delay", 3, 41, 1_772_366_400_500_000, 1.9, "online") == (
        result.service, result.version, result.revision, result.at, result.spent_ms, result.source,
    )  # fmt: skip
    assert {
        "v.departures": 2,
        "v.delay_mean": 12.0,
        "v.carrier": "B6",
        "v.seen": "2026-03-01T11:00:00Z",
        "v.instants": ["2026-03-01T11:00:00.25Z"],
    } == result.rows[0]
    assert [{"stale", "ok"}, {"not_found"}] == [set(statuses.values()) for statuses in result.statuses]
    assert ("stale", 2, LEAN["features"]) == (result.statuses[0]["v.carrier"], len(result), list(result.features))


def test_an_answer_is_a_table_with_declared_types(lookup: Lookup) -> None:
    with Answering(SOUND) as server:
        table = lookup(server.url).to_pyarrow()

    assert ["origin", "v.departures", "v.departures__status"] == table.schema.names[:3]
    assert ["string", "int64", "double", "string", "timestamp[us, tz=UTC]", "list<item: timestamp[us, tz=UTC]>"] == [
        str(table.schema.field(name).type) for name in LEAN["types"]
    ]
    assert ["JFK", "XXX"] == table.column("origin").to_pylist()
    assert ["stale", "not_found"] == table.column("v.carrier__status").to_pylist()
    assert b"3" == table.schema.metadata[b"version"]


def test_frames_of_pandas_and_polars_and_the_stream_of_arrow_have_the_same_values() -> None:
    with Answering(SOUND) as server:
        result = by_client(server.url)

    values = [2, 0]
    assert values == result.to_pandas()["v.departures"].tolist()
    assert values == result.to_polars()["v.departures"].to_list()
    assert values == pl.DataFrame(result)["v.departures"].to_list()
    assert values == pa.table(result).column("v.departures").to_pylist()
    assert result.to_pyarrow().equals(pa.table(result))


def test_an_answer_without_rows_is_a_table_without_rows(lookup: Lookup) -> None:
    with Answering(http(200, json.dumps(LEAN | {"rows": []}).encode())) as server:
        result = lookup(server.url, "flight_delay", {"origin": []})

    assert ([], [], (0, 11)) == (result.rows, result.statuses, result.to_pyarrow().shape)


def test_a_result_cannot_be_changed() -> None:
    with Answering(SOUND) as server:
        result = by_client(server.url)

    with pytest.raises(AttributeError):
        result.version = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "unauthenticated", AccessDenied),
        (403, "forbidden", AccessDenied),
        (404, "not_found", NotFound),
        (404, "no_such_route", UsageError),
        (408, "body_timeout", Unavailable),
        (413, "body_too_large", InvalidRequest),
        (418, "code_of_the_future", UsageError),
        (422, "invalid_request", InvalidRequest),
        (422, "at_out_of_range", AtOutOfRange),
        (429, "quota_spent", Unavailable),
        (500, "internal", FeatureStoreError),
        (503, "overloaded", Unavailable),
    ],
)
def test_a_problem_is_the_error_it_stands_for_and_keeps_what_it_says(
    lookup: Lookup, status: int, code: str, expected: type[FeatureStoreError]
) -> None:
    told = {"field": "entities.orign", "hint": "expected origin", "near": ["origin"], "instance": "urn:uuid:1"}
    with Answering(problem(status, code, **told)) as server, pytest.raises(expected) as caught:
        lookup(server.url)

    error = caught.value
    assert (code, status, "entities.orign", "urn:uuid:1") == (error.code, error.status, error.field, error.instance)
    assert ("no; did you mean 'origin'?", "expected origin") == (error.message, error.hint)
    assert 1 == len(server.requests)


@pytest.mark.parametrize(
    "answer",
    [
        http(502, b"<html>Bad Gateway</html>"),
        http(200, b"<html>Welcome</html>"),
        http(200, b'{"service": 1}'),
        http(200, json.dumps(LEAN | {"rows": LEAN["rows"][:1]}).encode()),
        http(200, json.dumps(LEAN | {"at": "noon"}).encode()),
        http(200, b"\xff\xff", content_type="application/vnd.apache.arrow.stream"),
        http(301, b"", location="http://127.0.0.1:1/"),
        http(200, b"no gzip", content_encoding="gzip"),
    ],
)
def test_what_is_no_read_api_is_unavailable(lookup: Lookup, answer: bytes) -> None:
    with Answering(answer) as server, pytest.raises(Unavailable):
        lookup(server.url)


@pytest.mark.parametrize("budget_ms", [None, 500])
def test_a_connection_that_is_reset_before_an_answer_is_tried_once_more(lookup: Lookup, budget_ms: int | None) -> None:
    with Answering(RESET, SOUND) as server:
        result = lookup(server.url, budget_ms=budget_ms)

    assert (2, 3) == (len(server.requests), result.version)
    first, second = (body.get("budget_ms") for _, _, body in server.requests)
    assert (second is None) if budget_ms is None else (0 < second < first == 500)


def test_a_second_reset_is_told(lookup: Lookup) -> None:
    with Answering(RESET) as server, pytest.raises(Unavailable, match="does not answer"):
        lookup(server.url)

    assert 2 == len(server.requests)


def test_an_answer_that_breaks_off_is_told_and_not_asked_for_again(lookup: Lookup) -> None:
    def half(peer: socket.socket) -> None:
        peer.sendall(SOUND[:-100])
        peer.shutdown(socket.SHUT_RDWR)

    with Answering(half) as server, pytest.raises(Unavailable, match="broke off its answer"):
        lookup(server.url)

    assert 1 == len(server.requests)


def test_nobody_listening_is_told(lookup: Lookup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port} does not answer") as caught:
        lookup(f"http://127.0.0.1:{port}")

    assert "api" == caught.value.part


def test_silence_is_waited_for_as_long_as_the_budget_and_the_allowance(lookup: Lookup) -> None:
    with Answering(SILENCE) as server:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer within"):
            lookup(server.url, budget_ms=100, said={"allowance_ms": 100})
        spent = time.monotonic() - started

    assert 0.2 <= spent < 1.0
    assert 1 == len(server.requests)


def test_an_answer_that_trickles_is_not_waited_for(lookup: Lookup) -> None:
    def trickle(peer: socket.socket) -> None:
        peer.sendall(SOUND[:-100])
        for byte in SOUND[-100:]:
            time.sleep(0.05)
            peer.sendall(bytes([byte]))

    with Answering(trickle) as server:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer within"):
            lookup(server.url, budget_ms=100, said={"allowance_ms": 100})
        spent = time.monotonic() - started

    assert spent < 1.5


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_api_is_asked_again_where_its_pause_fits_the_budget(lookup: Lookup, status: int) -> None:
    with Answering(problem(status, "overloaded", retry_after="1"), SOUND) as server:
        started = time.monotonic()
        result = lookup(server.url, budget_ms=5000)

    assert (2, 3) == (len(server.requests), result.version)
    assert time.monotonic() - started >= 1.0
    assert server.requests[1][2]["budget_ms"] < 4000


@pytest.mark.parametrize("after", ["1", "soon", "-1", "", "99999999999999999999", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_busy_api_is_told_at_once_where_its_pause_does_not_fit_the_budget(lookup: Lookup, after: str) -> None:
    with Answering(problem(503, "overloaded", retry_after=after), SOUND) as server, pytest.raises(Unavailable):
        lookup(server.url, budget_ms=500)

    assert 1 == len(server.requests)


def test_a_busy_api_is_asked_again_only_once(lookup: Lookup) -> None:
    with Answering(problem(503, "overloaded", retry_after="0")) as server, pytest.raises(Unavailable):
        lookup(server.url, budget_ms=5000)

    assert 2 == len(server.requests)


def test_a_compressed_answer_is_read_where_it_was_asked_for(lookup: Lookup) -> None:
    packed = pa.Codec("gzip").compress(json.dumps(LEAN).encode(), asbytes=True)
    with Answering(http(200, packed, content_encoding="gzip")) as server:
        result = lookup(server.url, said={"compressed": True})

    assert 3 == result.version
    assert "gzip" in server.requests[0][1]["accept-encoding"]


@pytest.mark.parametrize(
    ("entities", "field"),
    [
        ({"origin": "JFK"}, "entities.origin"),
        ({"origin": ["JFK"], "flight": 1}, "entities.flight"),
        ({"origin": ["JFK"] * 1001}, "entities.origin"),
        ({"origin": [object()]}, "entities"),
        ({"origin": [b"JFK"]}, "entities.origin"),
        ({"origin": np.array([b"JFK"])}, "entities.origin"),
        ({"origin": {"JFK": 1}}, "entities.origin"),
        ({"origin": {"JFK"}}, "entities.origin"),
        ({"origin": [pd.NA]}, "entities"),
    ],
)
def test_entities_that_cannot_be_asked_for_name_their_field_and_are_not_sent(
    lookup: Lookup, entities: dict[str, Any], field: str
) -> None:
    with Answering(SOUND) as server, pytest.raises(InvalidRequest) as caught:
        lookup(server.url, "flight_delay", entities)

    assert (field, []) == (caught.value.field, server.requests)


@pytest.mark.parametrize("how", [{"at": "noon"}, {"at": pd.Timestamp("2026-03-01")}, {"at": 10**30}, {"at": 1.5}])
def test_an_instant_that_is_none_names_its_field(lookup: Lookup, how: dict[str, Any]) -> None:
    with Answering(SOUND) as server, pytest.raises(InvalidRequest) as caught:
        lookup(server.url, **how)

    assert "at" == caught.value.field


@pytest.mark.parametrize("budget_ms", [0, -1, float("nan"), float("inf")])
def test_a_budget_is_above_zero(lookup: Lookup, budget_ms: float) -> None:
    with pytest.raises(UsageError, match="budget_ms"):
        lookup("http://127.0.0.1:1", budget_ms=budget_ms)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://api", "http://", "http://:80", "http://\x00", "redis://api:1"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_url_that_is_none_is_refused(kind: type[Client] | type[AsyncClient], url: str) -> None:
    with pytest.raises(UsageError) as caught:
        kind(url)

    assert "url" == caught.value.field


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_secrets_are_in_no_text(kind: type[Client] | type[AsyncClient]) -> None:
    with pytest.raises(UsageError) as in_url:
        kind("http://someone:hush-hush@api")
    with pytest.raises(UsageError) as in_key:
        kind("http://api", api_key=f"{KEY}\n")
    client = kind("http://api:8000", api_key=KEY)

    assert f"<{kind.__name__} of api:8000>" == repr(client)
    assert "hush" not in str(in_url.value)
    assert KEY not in str(in_key.value) + repr(in_key.value) + repr(client) + str(vars(client))


def test_a_key_is_in_no_log(lookup: Lookup, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Answering(RESET, problem(401, "unauthenticated")) as server, pytest.raises(AccessDenied) as caught:
        lookup(server.url, said={"api_key": KEY})

    assert caplog.records
    assert KEY not in caplog.text + str(caught.value) + repr(caught.value)


def test_connections_are_kept_and_bounded() -> None:
    with Answering(SOUND) as server:
        with Client(server.url, connections=2) as client:
            for _ in range(5):
                client.lookup("flight_delay", JFK)
        assert 1 == server.connections


async def test_more_calls_than_connections_wait_for_one_another() -> None:
    with Answering(SOUND) as server:
        async with AsyncClient(server.url, connections=2) as client:
            results = await asyncio.gather(*(client.lookup("flight_delay", JFK) for _ in range(20)))

    assert ({3}, 20) == ({result.version for result in results}, len(server.requests))
    assert server.connections <= 2


async def test_calls_that_time_out_leave_the_pool_as_it_was() -> None:
    with Answering(*[SILENCE] * 8, SOUND) as server:
        async with AsyncClient(server.url, connections=4, allowance_ms=1) as client:
            for _ in range(2):
                calls = (client.lookup("flight_delay", JFK, budget_ms=100) for _ in range(4))
                given_up = await asyncio.gather(*calls, return_exceptions=True)
                assert [Unavailable] * 4 == [type(error) for error in given_up]
            results = await asyncio.gather(*(client.lookup("flight_delay", JFK) for _ in range(8)))

    assert [3] * 8 == [result.version for result in results]
