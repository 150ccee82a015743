"""Arrow answers, on the real engine and a real Redis: the values of the other shapes, with their declared types."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from featurestore.clock import HOUR, MINUTE, ManualClock
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.serving.negotiation import ARROW
from tests.unit.serving import flights, kinds
from tests.unit.serving.api import Api, running

ENTITIES: dict[str, list[Any]] = {"origin": ["JFK", "LGA", None, "JFK"], "flight": [1, 7, 1, None]}
INSTANT = pa.timestamp("us", tz="UTC")
TYPES = {
    "origin": ("string", pa.string()),
    "flight": ("int", pa.int64()),
    "leg_kinds.departures": ("int", pa.int64()),
    "leg_kinds.delay_mean": ("float", pa.float64()),
    "leg_kinds.carrier": ("string", pa.string()),
    "leg_kinds.late": ("bool", pa.bool_()),
    "leg_kinds.departed_at": ("timestamp", INSTANT),
    "leg_kinds.carriers": ("list<string>", pa.list_(pa.string())),
    "leg_kinds.instants": ("list<timestamp>", pa.list_(INSTANT)),
}
FEATURES = [name for name in TYPES if "." in name]


@pytest.fixture
async def api(redis_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Api]:
    """Leg (JFK, 1) has departures of ten hours and of five minutes ago, the latter with a fraction of a second."""
    now = clock.now()
    apply(Registry(str(tmp_path)), kinds.definitions(), now=now)
    table = flights.departures([(now - 10 * HOUR, "JFK", "AA", 1, 4.5), (now - 5 * MINUTE + 123, "JFK", "B6", 1, 40.0)])
    async with running(redis_url, tmp_path, clock, applied=False) as started:
        async with asyncio.timeout(10):
            while (await ask(started, ENTITIES)).status_code != 200:  # noqa: ASYNC110 - polls HTTP
                await asyncio.sleep(0.02)
        await started.write(kinds.view(), flights.stored(kinds.view(), table))
        yield started


async def ask(api: Api, entities: dict[str, list[Any]], query: str = "", **headers: str) -> httpx.Response:
    body = {"service": "leg_kinds", "entities": entities}
    return await api.http.post(f"/v1/lookup{query}", json=body, headers=headers)


async def table_of(api: Api, entities: dict[str, list[Any]]) -> pa.Table:
    response = await ask(api, entities, accept=ARROW)
    assert (200, ARROW) == (response.status_code, response.headers["content-type"])
    return pa.ipc.open_stream(response.content).read_all()


async def test_columns_are_keys_then_each_feature_with_its_status_in_declared_types(api: Api) -> None:
    table = await table_of(api, ENTITIES)
    status = pa.dictionary(pa.int8(), pa.string())
    expected = [
        pair
        for name, (_, kind) in TYPES.items()
        for pair in [(name, kind)] + ([(f"{name}__status", status)] if "." in name else [])
    ]

    assert expected == list(zip(table.schema.names, table.schema.types, strict=True))
    assert 1 == len(table.to_batches())


async def test_values_and_statuses_are_those_of_the_columns_shape(api: Api) -> None:
    table = await table_of(api, ENTITIES)
    answer = (await ask(api, ENTITIES, "?shape=columns")).json()
    found = {name: table.column(name).to_pylist() for name in table.schema.names}
    written = dict(zip(answer["features"], answer["columns"], strict=True))

    assert FEATURES == answer["features"]
    for name in FEATURES:
        values = written[name]["values"]
        if name == "leg_kinds.departed_at":
            values = pa.array(values).cast(INSTANT).to_pylist()
        if name == "leg_kinds.instants":
            values = pa.array(values, pa.list_(pa.string())).cast(pa.list_(INSTANT)).to_pylist()
        statuses = written[name]["status"]
        assert values == found[name]
        assert ([statuses] * 4 if isinstance(statuses, str) else statuses) == found[f"{name}__status"]
    assert ENTITIES == {name: found[name] for name in ENTITIES}


async def test_instants_keep_their_microseconds(api: Api, clock: ManualClock) -> None:
    table = await table_of(api, ENTITIES)

    latest = clock.now() - 5 * MINUTE + 123
    assert [latest, None, None, None] == table.column("leg_kinds.departed_at").cast(pa.int64()).to_pylist()
    assert [latest, clock.now() - 10 * HOUR] == (
        table.column("leg_kinds.instants").combine_chunks().values.cast(pa.int64()).to_pylist()
    )


async def test_the_envelope_is_the_metadata_of_the_schema(api: Api) -> None:
    table = await table_of(api, ENTITIES)
    answer = (await ask(api, ENTITIES)).json()
    metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}

    assert 0 < float(metadata.pop("spent_ms")) < 1000
    assert {n: str(answer[n]) for n in ("service", "version", "revision", "at", "source")} == metadata


async def test_an_answer_without_rows_has_its_columns_and_types(api: Api) -> None:
    table = await table_of(api, {"origin": [], "flight": []})

    assert (0, len(TYPES) + len(FEATURES)) == table.shape
    assert table.schema.equals((await table_of(api, ENTITIES)).schema)


async def test_types_are_told_where_they_are_asked_for(api: Api) -> None:
    told = (await ask(api, ENTITIES, "?types=true")).json()
    plain = (await ask(api, ENTITIES, "?types=false")).json()
    full = (await ask(api, ENTITIES, "?shape=full&types=true")).json()

    assert {name: text for name, (text, _) in TYPES.items()} == told.pop("types")
    assert told.keys() == plain.keys()
    assert ({"rows", "types"}, "entity") == ({"rows", "types"} & full.keys(), next(iter(full["rows"][0])))


async def test_types_that_are_neither_true_nor_false_are_refused(api: Api) -> None:
    problem = (await ask(api, ENTITIES, "?types=yes")).json()

    assert ("invalid_request", "types") == (problem["code"], problem["field"])


@pytest.mark.parametrize("accept", [ARROW, "application/json"])
async def test_large_answers_are_compressed_where_asked_and_say_so(api: Api, accept: str) -> None:
    many: dict[str, list[Any]] = {"origin": ["JFK"] * 500, "flight": [1] * 500}
    plain = await ask(api, many, **{"accept": accept, "accept-encoding": "identity"})
    packed = await ask(api, many, **{"accept": accept, "accept-encoding": "gzip"})

    assert ("gzip", "accept, accept-encoding") == (packed.headers["content-encoding"], packed.headers["vary"])
    assert ("content-encoding" in plain.headers, plain.headers["vary"]) == (False, "accept, accept-encoding")
    assert int(packed.headers["content-length"]) < len(plain.content) / 5
    assert plain.headers["content-type"] == packed.headers["content-type"]
    assert abs(len(plain.content) - len(packed.content)) < 64  # apart from how long it took


async def test_problems_are_json_whatever_is_accepted(api: Api) -> None:
    response = await ask(api, {"orign": ["JFK"]}, accept=ARROW)

    assert (422, "application/problem+json") == (response.status_code, response.headers["content-type"])


async def test_what_cannot_be_met_is_answered_as_json(api: Api) -> None:
    response = await ask(api, ENTITIES, accept="text/html")

    assert (200, "application/json") == (response.status_code, response.headers["content-type"])
