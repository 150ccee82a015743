"""Every bad request to a served API: a problem document that names the field, and nothing else."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.parts.redis import RedisServer
from tests.unit.serving import flights
from tests.unit.serving.process import ApiProcess

SOUND = {"service": "flight_delay", "entities": {"origin": ["JFK"]}}


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    lake = tmp_path_factory.mktemp("lake")
    apply(Registry(str(lake)), flights.definitions(), now=0)
    with ApiProcess(redis_server.url, lake) as process:
        process.until_ready()
        yield process


@pytest.fixture
def http(server: ApiProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"] == f"urn:featurestore:problem:{document['code']}"
    return document


def test_a_sound_lookup_is_answered(http: httpx.Client) -> None:
    assert http.post("/v1/lookup", json=SOUND).json()["rows"][0]["values"][0] == 0


def test_an_unknown_service_is_told_with_near_matches(http: httpx.Client) -> None:
    document = problem(http.post("/v1/lookup", json=SOUND | {"service": "flight_dely"}), 404)

    assert (document["code"], document["field"], document["near"][0]) == ("not_found", "service", "flight_delay")


@pytest.mark.parametrize("service", ["flight_delay@prd", "flight_delay@2", "", "@", "flight_delay@", "\x00"])
def test_a_version_or_alias_that_is_not_there_is_told(http: httpx.Client, service: str) -> None:
    assert http.post("/v1/lookup", json=SOUND | {"service": service}).status_code in (404, 200)
    if service != "flight_delay@":
        problem(http.post("/v1/lookup", json=SOUND | {"service": service}), 404)


@pytest.mark.parametrize(
    ("changed", "field", "near"),
    [
        ({"entities": {"orign": ["JFK"]}}, "entities.orign", ["origin"]),
        ({"entities": {}}, "entities.origin", None),
        ({"entities": {"origin": ["JFK"], "carrier": ["B6"]}}, "entities.carrier", None),
        ({"entity": {}}, "entity", ["entities"]),
        ({"at": "noon"}, "at", None),
        ({"at": 5}, "at", None),
        ({"at": "2013-07-04T12:00:00"}, "at", None),
        ({"entities": {"origin": ["JFK"] * 10_000}}, "entities.origin", None),
        ({"entities": {"origin": [1]}}, "entities.origin[0]", None),
        ({"budget_ms": 0}, "budget_ms", None),
        ({"request": {"amount": 1}}, "request", None),
    ],
)
def test_a_body_that_cannot_be_answered_names_the_field(
    http: httpx.Client, changed: dict[str, Any], field: str, near: list[str] | None
) -> None:
    document = problem(http.post("/v1/lookup", json=SOUND | changed), 422)

    assert document["field"] == field
    assert document.get("near") == near


def test_a_missing_field_is_named(http: httpx.Client) -> None:
    assert problem(http.post("/v1/lookup", json={"service": "flight_delay"}), 422)["field"] == "entities"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"NaN", json.dumps(SOUND).encode() + b"}"])
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, body: bytes) -> None:
    problem(http.post("/v1/lookup", content=body), 422)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_the_content_type_does_not_matter(http: httpx.Client, content_type: str) -> None:
    response = http.post("/v1/lookup", content=json.dumps(SOUND), headers={"content-type": content_type})

    assert response.status_code == 200


def test_a_body_of_ten_megabytes_is_refused_and_the_server_goes_on(http: httpx.Client) -> None:
    document = problem(http.post("/v1/lookup", content=b'{"service": "' + b"x" * 10_000_000 + b'"}'), 413)

    assert document["code"] == "body_too_large"
    assert http.post("/v1/lookup", json=SOUND).status_code == 200


def test_a_large_body_without_a_length_is_refused_too(http: httpx.Client) -> None:
    problem(http.post("/v1/lookup", content=iter([b" " * 100_000] * 100)), 413)


def test_a_compressed_body_is_refused(http: httpx.Client) -> None:
    response = http.post("/v1/lookup", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})

    assert problem(response, 415)["field"] == "Content-Encoding"


def test_an_unknown_shape_is_told_with_near_matches(http: httpx.Client) -> None:
    assert problem(http.post("/v1/lookup?shape=colums", json=SOUND), 422)["near"] == ["columns"]


def test_an_unknown_route_is_a_problem(http: httpx.Client) -> None:
    assert problem(http.get("/v1/servces"), 404)["near"][0] == "/v1/services"


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/lookup"), ("PUT", "/v1/lookup"), ("DELETE", "/healthz")])
def test_a_wrong_method_is_a_problem_that_tells_the_right_one(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path)

    assert problem(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] in ("POST", "GET")


def test_bytes_that_are_no_http_do_not_stop_the_server(server: ApiProcess, http: httpx.Client) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        peer.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in peer.recv(1000)

    assert http.get("/healthz").json() == {"status": "ok"}


def test_metrics_count_by_service_and_outcome_and_never_by_what_clients_wrote(http: httpx.Client) -> None:
    http.post("/v1/lookup", json=SOUND)
    http.post("/v1/lookup", json=SOUND | {"service": "made-up-name"})
    text = http.get("/metrics").text

    assert 'fs_lookup_duration_seconds_count{service="flight_delay"}' in text
    assert 'fs_lookups_total{outcome="not_found",service=""}' in text
    assert "made-up-name" not in text


def test_the_catalog_is_listed(http: httpx.Client) -> None:
    services = {s["name"]: s for s in http.get("/v1/services").json()["services"]}
    views = {v["name"]: v for v in http.get("/v1/views").json()["views"]}

    assert services["leg_delay"]["entities"] == [
        {"name": "origin", "type": "string"},
        {"name": "flight", "type": "int"},
    ]
    assert services["flight_delay"]["aliases"] == {"prod": 1}
    assert views["leg_delay"]["ttl_seconds"] == 6 * 3600
    assert views["airport_delay"]["features"][0] == {"name": "departures_1h", "type": "int", "many": False}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_in_order_when_asked(redis_url: str, tmp_path: Path, workers: int, number: int) -> None:
    with ApiProcess(redis_url, tmp_path, workers=workers) as process:
        os.kill(process.pid, number)

        assert process.exit_code(10) == 0
        assert "Traceback" not in process.tail()


def test_the_processes_of_a_server_that_was_killed_end_too(redis_url: str, tmp_path: Path) -> None:
    with ApiProcess(redis_url, tmp_path, workers=2) as process:
        url = process.url
        process.kill()
        deadline = time.monotonic() + 30
        while reachable(url):
            assert time.monotonic() < deadline, process.tail()
            time.sleep(0.1)


def reachable(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=1)
    except httpx.ConnectError:
        return False
    except httpx.HTTPError:  # of one that ends in the middle of an answer
        return True
    return True
