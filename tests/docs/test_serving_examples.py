"""The requests of docs/serving.md, sent to a running API: the documented answers are the true ones."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any, get_args

import httpx
import pytest

from featurestore.cli.parts import Stack
from featurestore.client import call, http
from featurestore.definitions.services import MAX_FEATURES
from featurestore.offline import served
from featurestore.online.keys import MAX_KEY_BYTES
from featurestore.serving import arrival, lookup, negotiation, past, problems, protocol, requests
from featurestore.serving.schema import StatusText
from tests.docs.reading import ROOT, Block, blocks, section

PAGE = ROOT / "docs" / "serving.md"
VOLATILE = {"at", "as_of", "spent_ms", "age_seconds", "instance"}
"""Members whose values are another's each time; their types stay."""

ADDRESS = "localhost:8000"


def examples() -> list[tuple[str, dict[str, Any]]]:
    """Each curl command with the document that is shown below it."""
    found = blocks(PAGE, "console", "json")
    shown = [block for block in found if block.language == "json" or block.text.startswith("$ curl")]
    pairs = zip(shown[::2], shown[1::2], strict=True)
    return [(one_command(console), json.loads(answer.text)) for console, answer in pairs]


def one_command(block: Block) -> str:
    [command] = block.commands
    return command


def curl(command: str, base: str) -> httpx.Response:
    """What curl would send: `-d` makes it a POST."""
    program, silent, *words = shlex.split(command)
    assert (program, silent) == ("curl", "-s")
    url = words[0].replace(ADDRESS, base)
    if len(words) == 1:
        return httpx.get(url, timeout=20)
    assert words[1] == "-d"
    form = {"content-type": "application/x-www-form-urlencoded"}
    return httpx.post(url, content=words[2], headers=form, timeout=20)


def settled(value: Any, name: str = "") -> Any:
    """The value with what is volatile replaced by its type."""
    if name in VOLATILE:
        return type(value).__name__
    if isinstance(value, dict):
        return {key: settled(member, key) for key, member in value.items()}
    return [settled(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("command", "documented"), examples())
def test_a_documented_request_has_the_documented_answer(
    flights: Stack, command: str, documented: dict[str, Any]
) -> None:
    assert settled(documented) == settled(curl(command, flights.url).json())


def rows_of(title: str) -> list[list[str]]:
    lines = [line for line in section(PAGE, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_status_is_explained() -> None:
    assert sorted(get_args(StatusText)) == sorted(row[0].strip("`") for row in rows_of("What each status means"))


def test_every_error_code_is_explained() -> None:
    assert sorted(problems.TITLES) == sorted(row[0].strip("`") for row in rows_of("Errors"))


def test_every_route_is_listed_and_answers(flights: Stack) -> None:
    routes = [route for row in rows_of("Other routes") for route in re.findall(r"GET (/[\w./]+)", row[0])]
    served = set(httpx.get(f"{flights.url}/openapi.json", timeout=20).json()["paths"])

    assert served - {"/v1/lookup"} == set(routes) - {"/docs", "/openapi.json"}
    answered = {route: httpx.get(flights.url + route, timeout=20).status_code for route in routes}
    assert dict.fromkeys(routes, 200) == answered


def test_every_column_of_recorded_answers_is_explained() -> None:
    told = {name for row in rows_of("What was answered") for cell in row for name in re.findall(r"`(_[a-z_]+)`", cell)}

    assert told == served.SYSTEM


def test_the_documented_limits_are_the_ones_in_force() -> None:
    limits = dict(rows_of("Limits"))

    assert f"{requests.MAX_ROWS:,}" == limits["entities in a request"]
    assert f"{requests.MAX_BODY >> 20} MiB, nesting {requests.MAX_DEPTH} deep" == limits["body"]
    assert f"{MAX_FEATURES}" == limits["features of a service"]
    assert f"{protocol.MAX_HEAD >> 10} KiB" == limits["headers"]
    seconds = f"{protocol.HEAD_SECONDS:g}, {arrival.BODY_SECONDS:g} seconds"
    assert seconds == limits["time for the headers, for the body"]
    assert f"{MAX_KEY_BYTES:,} bytes of UTF-8 in its canonical form" == limits["entity key"]
    most = f"{lookup.MAX_BUDGET_MS:,.0f}"
    assert f"above 0; more than {most} counts as {most}" == limits["`budget_ms`"]
    assert f"{past.QUEUE} per process" == limits["lookups that may wait for the lake"]
    assert f"{past.LAKE_SECONDS:.0f} seconds" == limits["a lookup in the lake, without a budget"]
    assert f"{negotiation.MIN_COMPRESSED >> 10} KiB" == limits["the smallest answer that is compressed"]


def test_the_documented_figures_of_the_client_are_the_ones_in_force() -> None:
    told = " ".join(section(PAGE, "From Python").split())

    assert f"{http.CONNECTIONS} at most" in told
    assert f"{http.ALLOWANCE_MS:g} ms longer" in told
    assert f"it waits {call.UNBUDGETED_SECONDS:g} seconds" in told
    assert f"More than {call.MAX_ENTITIES:,} are refused" in told
    assert f"From {call.ARROW_ENTITIES} entities on" in told
