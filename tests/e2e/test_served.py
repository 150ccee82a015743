"""What was answered over HTTP is what `served/<service>` says, row by row, and the lake may be away meanwhile."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from featurestore import telemetry
from featurestore.clock import HOUR, MINUTE, ManualClock, format_instant, parse_instant
from featurestore.config import load_settings
from featurestore.contracts.contract import parse_contract
from featurestore.definitions.aggregates import agg
from featurestore.definitions.compile import Definitions, check
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.expressions import col, feature, request
from featurestore.definitions.model import Entity, FeatureService, Source, feature_view
from featurestore.online.fences import Beat, Fence
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.serving.negotiation import ARROW
from tests.parts.redis import RedisServer
from tests.unit.serving import flights
from tests.unit.serving.api import Api, running
from tests.unit.serving.process import ApiProcess

CONTRACT = parse_contract(
    "gates.departures/v1",
    json.dumps(
        {
            "type": "record",
            "name": "Departure",
            "fields": [
                {"name": "departed_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
                {"name": "origin", "type": "string"},
                {"name": "gate", "type": "long"},
                {"name": "abroad", "type": "boolean"},
                {"name": "carrier", "type": ["null", "string"], "default": None},
                {"name": "delay", "type": ["null", "double"], "default": None},
            ],
        }
    ),
)
Gate = Entity("gate", keys={"origin": str, "gate": int, "abroad": bool})
Departures = Source("departures", "gates.departures", "gates.departures/v1", "departed_at")


@feature_view(entity=Gate, source=Departures, version=1)
class GateUse:
    """Each type that a feature can have, and lists."""

    departures = agg.count()
    delay_mean = agg.mean(col("delay"), window="24h", default=0.0)
    carrier = agg.last(col("carrier"))
    late = feature("delay_mean") > 15
    departed_at = agg.last(col("departed_at"))
    carriers = agg.last_n(col("carrier"), n=3)
    delays = agg.last_n(col("delay"), n=2)


_use: Any = GateUse
FEATURES = [
    f"gate_use.{n}" for n in ("departures", "delay_mean", "carrier", "late", "departed_at", "carriers", "delays")
]
few = FeatureService("gates", views=[_use.pick("departures", "carriers")])
more = FeatureService("gates", views=[_use.pick("departures", "carriers", "delay_mean")])
gates = FeatureService("gates", views=[_use])
asking = FeatureService(
    "asking",
    views=[_use.pick("departures")],
    features={"share": feature("gate_use.departures") / request("seats", int), "name": request("name", str)},
)

KEYS: dict[str, list[Any]] = {
    "origin": ["JFK", "JFK", "LGA", None],
    "gate": [7, 7, 9, 7],
    "abroad": [True, False, True, True],
}


def definitions(*services: FeatureService) -> Definitions:
    return check([_use], list(services), {CONTRACT.id: CONTRACT})


def view() -> CompiledView:
    [found] = definitions(gates).views
    return found


def departures(now: int) -> pa.Table:
    """Two of gate 7 abroad, the later one without carrier and delay: nulls, which aggregates skip."""
    times = pa.array([now - 10 * HOUR, now - 5 * MINUTE], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            "departed_at": times,
            "origin": ["JFK"] * 2,
            "gate": pa.array([7, 7], pa.int64()),
            "abroad": [True, True],
            "carrier": pa.array(["AA", None], pa.string()),
            "delay": pa.array([40.0, None], pa.float64()),
            "_partition": pa.array([0, 0], pa.int32()),
            "_offset": pa.array([0, 1], pa.int64()),
        }
    )


async def started(api: Api, clock: ManualClock) -> None:
    """Two departures are applied, a worker vouches for them, and the API has heard of both."""
    await api.write(view(), flights.stored(view(), departures(clock.now())))
    now = clock.now()
    beat = Beat(at=now, position=2, end=2, behind_seconds=0.0)
    for name in ("intake:departures", f"fold:{view().id}"):
        await api.store.put_beats(name, {0: beat})
    await api.store.put_fence(view().id, 0, Fence(0, 1, {0: 1}, {}, now, now, now))


def recorded(api: Api, service: str = "gates") -> list[dict[str, Any]]:
    """In the order in which they were answered; instants as text."""
    table = DeltaTable(f"{api.lake}/served/{service}").to_pyarrow_table()
    rows = table.sort_by([("_answered_at", "ascending"), ("_request", "ascending"), ("_row", "ascending")]).to_pylist()
    return [{name: format_instant_of(value) for name, value in row.items()} for row in rows]


def format_instant_of(value: Any) -> Any:
    return format_instant(parse_instant(value.isoformat())) if hasattr(value, "isoformat") else value


async def answered(api: Api, entities: dict[str, list[Any]], service: str = "gates", **fields: Any) -> dict[str, Any]:
    response = await api.lookup({"service": service, "entities": entities, **fields}, "?shape=columns")
    assert 200 == response.status_code, response.text
    found: dict[str, Any] = response.json()
    return found


async def until(seen: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not seen():  # noqa: ASYNC110 - what is waited for is in a file or a metric
            await asyncio.sleep(0.02)


def as_rows(answer: dict[str, Any], entities: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """What an answer in columns says, as the lake should say it."""
    rows = len(next(iter(entities.values())))
    facts = {"_version": answer["version"], "_revision": answer["revision"], "_at": settled(answer["at"])}
    found: list[dict[str, Any]] = [
        facts | {"_source": answer["source"], "_row": row} | {key: values[row] for key, values in entities.items()}
        for row in range(rows)
    ]
    for name, column in zip(answer["features"], answer["columns"], strict=True):
        statuses = column["status"] if isinstance(column["status"], list) else [column["status"]] * rows
        for row, (value, status) in enumerate(zip(column["values"], statuses, strict=True)):
            found[row] |= {name: settled(value) if name.endswith("departed_at") else value, f"{name}__status": status}
    return found


def settled(text: str | None) -> str | None:
    return None if text is None else format_instant(parse_instant(text))


@asynccontextmanager
async def gates_api(
    redis_url: str, lake: Path, clock: ManualClock, *services: FeatureService, **settings: Any
) -> AsyncIterator[Api]:
    """Records every answer, unless `settings` say otherwise; `ok` is what JFK's gate 7 abroad is answered as."""
    apply(Registry(str(lake)), definitions(*services), now=clock.now())
    async with running(redis_url, lake, clock, applied=False, **{"served_share": 1, **settings}) as api:
        await started(api, clock)
        probe: dict[str, Any] = {"service": services[0].name, "entities": {name: v[:1] for name, v in KEYS.items()}}
        if services[0].features:
            probe["request"] = {"seats": 1, "name": "probe"}
        async with asyncio.timeout(10):
            while (found := await api.lookup(probe)).status_code != 200 or "stale" in found.text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield api


def last_request(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Without what another writer would have chosen: the probes of `gates_api` came before."""
    return [{n: v for n, v in row.items() if n not in ("_request", "_answered_at", "_month")} for row in rows[-count:]]


async def test_the_table_says_what_was_answered(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with gates_api(redis_url, tmp_path, clock, gates) as api:
        clock.advance(1)
        answer = await answered(api, KEYS)
    rows = recorded(api)[-4:]

    assert as_rows(answer, KEYS) == last_request(rows, 4)
    assert ["ok", "not_found", "not_found", "not_found"] == [row["gate_use.departures__status"] for row in rows]
    assert (2, 40.0, "AA", True, ["AA"], [40.0]) == tuple(
        rows[0][f"gate_use.{name}"] for name in ("departures", "delay_mean", "carrier", "late", "carriers", "delays")
    )
    assert {(format_instant(clock.now()), "2026-03")} == {(row["_answered_at"], row["_month"]) for row in rows}
    assert 1 == len({row["_request"] for row in rows})


async def test_rows_that_could_not_be_read_are_recorded_as_that(tmp_path: Path, clock: ManualClock) -> None:
    with RedisServer() as redis:
        async with gates_api(redis.url, tmp_path, clock, gates) as api:
            redis.kill()
            clock.advance(1)
            answer = await answered(api, KEYS)
    rows = recorded(api)

    assert as_rows(answer, KEYS) == last_request(rows, 4)
    assert ["unavailable"] * 4 == [row["gate_use.delay_mean__status"] for row in rows[-4:]]
    assert [(0.0, None)] * 4 == [(row["gate_use.delay_mean"], row["gate_use.departures"]) for row in rows[-4:]]


async def test_every_shape_leaves_the_same_rows(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with gates_api(redis_url, tmp_path, clock, gates) as api:
        body = {"service": "gates", "entities": KEYS}
        for shape in ("lean", "columns", "full"):
            clock.advance(1)
            await api.lookup(body, f"?shape={shape}")
        clock.advance(1)
        arrow = await api.http.post("/v1/lookup", json=body, headers={"accept": ARROW})
    assert ARROW == arrow.headers["content-type"]
    rows = [{name: value for name, value in row.items() if name != "_at"} for row in last_request(recorded(api), 16)]

    assert rows[:4] == rows[4:8] == rows[8:12] == rows[12:]


async def test_fields_of_the_request_are_recorded_with_what_was_computed_from_them(
    redis_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    two = {name: values[:2] for name, values in KEYS.items()}
    async with gates_api(redis_url, tmp_path, clock, asking) as api:
        clock.advance(1)
        await answered(api, two, "asking", request={"seats": [4, None], "name": "x"})
    rows = recorded(api, "asking")

    assert {(1, "probe")} == {(row["seats"], row["name"]) for row in rows[:-2]}
    assert [(4, "x", 0.5, "x"), (None, "x", None, "x")] == [
        (row["seats"], row["name"], row["asking.share"], row["asking.name"]) for row in rows[-2:]
    ]


async def test_versions_with_other_features_share_the_table(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    first = {name: values[:1] for name, values in KEYS.items()}
    async with gates_api(redis_url, tmp_path, clock, few, served_interval_seconds=0.05) as api:
        await until(lambda: DeltaTable.is_deltatable(f"{api.lake}/served/gates"))
        apply(Registry(str(tmp_path)), definitions(more), now=clock.now(), promote=True)
        async with asyncio.timeout(10):
            while (await answered(api, first, "gates"))["version"] == 1:
                clock.advance(1)
                await asyncio.sleep(0.05)
        clock.advance(1)
        await answered(api, first, "gates@1")
    rows = recorded(api)

    assert [2, 1] == [row["_version"] for row in rows[-2:]]
    assert [1, 1] == [int(row["_revision"] == 2) for row in rows[-2:]]
    assert [(2, "ok", 40.0, "ok"), (2, "ok", None, None)] == [
        tuple(
            row[f"gate_use.{name}"] for name in ("departures", "departures__status", "delay_mean", "delay_mean__status")
        )
        for row in rows[-2:]
    ]


async def test_a_lake_that_is_away_stops_no_lookup_and_gets_the_answers_when_it_is_back(
    redis_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    lake, aside = tmp_path / "lake", tmp_path / "aside"
    waiting = telemetry.WAITING_FOR.labels("lake")
    async with gates_api(redis_url, lake, clock, gates, served_interval_seconds=0.05) as api:
        await until((lake / "served" / "gates").exists)
        lake.rename(aside)
        lake.write_text("no lake")
        clock.advance(1)
        during = await answered(api, KEYS)
        await until(lambda: waiting._value.get() == 1)
        again = await answered(api, KEYS)
        lake.unlink()
        aside.rename(lake)
        await until(lambda: waiting._value.get() == 0)
    rows = recorded(api)[-8:]

    assert ["ok"] == list({during["columns"][0]["status"][0], again["columns"][0]["status"][0]})
    assert [as_rows(during, KEYS)] * 2 == [last_request(rows[:4], 4), last_request(rows[4:], 4)]


def ask(api: ApiProcess, times: int) -> None:
    with httpx.Client(base_url=api.url, timeout=20) as http:
        for i in range(times):
            keys = {name: [KEYS[name][0]] * 3 for name in ("origin", "abroad")} | {"gate": [i, i + 1, i + 2]}
            assert 200 == http.post("/v1/lookup", json={"service": "gates", "entities": keys}).status_code


def test_processes_record_into_one_table_and_lose_nothing_when_they_are_stopped(
    redis_url: str, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(Registry(str(tmp_path)), definitions(gates), now=clock.now())
    monkeypatch.setenv("FS_SERVED_SHARE", "1")
    monkeypatch.setenv("FS_SERVED_INTERVAL_SECONDS", "0.05")
    with ApiProcess(redis_url, tmp_path) as one, ApiProcess(redis_url, tmp_path) as two:
        for api in (one, two):
            api.until_ready()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ask, (one, two), (60, 60)))
        for api in (one, two):
            os.kill(api.pid, signal.SIGTERM)
        assert [0, 0] == [api.exit_code(20) for api in (one, two)]
    table = DeltaTable(str(tmp_path / "served" / "gates")).to_pyarrow_table()

    assert 120 == len(set(table["_request"].to_pylist()))
    assert sorted([g for i in range(60) for g in (i, i + 1, i + 2)] * 2) == sorted(table["gate"].to_pylist())


async def test_nothing_is_recorded_unless_it_is_asked_for(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    assert 0 == load_settings().served_share
    async with gates_api(redis_url, tmp_path, clock, gates, served_share=0) as api:
        await answered(api, KEYS)
    assert not (tmp_path / "served").exists()
