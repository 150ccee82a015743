"""Lookups at instants before what the online state answers exactly: they go to the lake, say so, or are refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.clock import HOUR, MINUTE, ManualClock, format_instant
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.offline.lake import Lake
from featurestore.offline.marks import app_id
from featurestore.online.fences import Fence
from tests.unit.serving import flights
from tests.unit.serving.api import Api, running

VIEW = flights.view("airport_delay")


@pytest.fixture
def events(clock: ManualClock) -> pa.Table:
    """JFK ten, three and one hours ago, LGA ten hours ago; offsets 0 to 3 of partition 0."""
    now = clock.now()
    return flights.departures(
        [
            (now - 10 * HOUR, "JFK", "AA", 1, 50.0),
            (now - 10 * HOUR, "LGA", "DL", 7, -4.0),
            (now - 3 * HOUR, "JFK", "B6", 3, 20.0),
            (now - 1 * HOUR, "JFK", "UA", 1, 10.0),
        ]
    )


@pytest.fixture
async def api(redis_url: str, tmp_path: Path, clock: ManualClock, events: pa.Table) -> AsyncIterator[Api]:
    """The events are applied online, and the fence says so; the lake is still without them."""
    async with running(redis_url, tmp_path, clock) as started:
        await started.write(VIEW, flights.stored(VIEW, events))
        await started.beat(partitions=1)
        applied = Fence(0, 10, {0: events.num_rows - 1}, {}, clock.now(), clock.now(), clock.now())
        await started.store.put_fence(VIEW.id, 0, applied)
        await started.status_becomes({"origin": ["JFK"]}, "ok")
        yield started


def append(lake: Path, events: pa.Table, rows: int) -> None:
    """The first `rows` events, as intake would."""
    part = events.slice(0, rows)
    table = in_time_order(
        system_columns(part.drop_columns(["_partition", "_offset"]), 0, np.arange(rows), "departed_at", 0)
    )
    Lake(str(lake)).append(events_table("departures"), table, {app_id("departures", 0): rows - 1})


async def ask(api: Api, origins: list[str], ago: int, **fields: Any) -> Any:
    at = format_instant(api.clock.now() - ago)
    body = {"service": "flight_delay", "entities": {"origin": origins}, "at": at, **fields}
    return (await api.lookup(body)).json()


async def test_an_instant_before_the_latest_event_is_answered_from_the_lake(api: Api, events: pa.Table) -> None:
    append(api.lake, events, 4)
    answer = await ask(api, ["JFK"], 2 * HOUR)

    assert (answer["source"], answer["at"]) == ("lake", format_instant(api.clock.now() - 2 * HOUR))
    # The one-hour window takes in the tile that its start falls into, where the second departure is.
    assert answer["rows"] == [{"values": [1, 2, 20.0, 20.0, 35.0, 50.0, 20.0, 1, 1.0, "B6"], "status": "ok"}]


async def test_each_row_is_answered_where_it_can_be(api: Api, events: pa.Table) -> None:
    append(api.lake, events, 4)
    answer = await ask(api, ["LGA", "JFK", "XXX"], 2 * HOUR)

    assert answer["source"] == "mixed"
    assert [row["values"][1] for row in answer["rows"]] == [1, 2, 0]
    assert answer["rows"][2]["status"] == "not_found"


async def test_an_instant_at_or_after_the_latest_event_needs_no_lake(api: Api) -> None:
    answer = await ask(api, ["JFK", "LGA"], 1 * HOUR)

    assert answer["source"] == "online"
    assert [row["values"][:2] for row in answer["rows"]] == [[1, 3], [0, 1]]


async def test_before_its_first_event_an_entity_was_not_seen(api: Api, events: pa.Table) -> None:
    append(api.lake, events, 4)
    answer = await ask(api, ["JFK"], 20 * HOUR)

    assert answer["rows"] == [
        {"values": [0, 0, None, 0.0, None, None, None, 0, None, None], "status": "not_found"},
    ]


async def test_a_lake_that_lacks_applied_events_is_not_asked(api: Api, events: pa.Table) -> None:
    append(api.lake, events, 3)
    problem = await ask(api, ["JFK"], 2 * HOUR, budget_ms=500)

    assert (problem["status"], problem["code"], problem["field"]) == (422, "at_out_of_range", "at")
    assert "lake" in problem["detail"]


async def test_a_lookup_waits_for_the_lake_within_its_budget(api: Api, events: pa.Table) -> None:
    asking = asyncio.ensure_future(ask(api, ["JFK"], 2 * HOUR, budget_ms=8_000))
    await asyncio.sleep(0.3)
    assert not asking.done()
    append(api.lake, events, 4)

    assert (await asking)["rows"][0]["values"][1] == 2


async def test_the_full_shape_has_the_ages_at_the_instant_asked_for(api: Api, events: pa.Table) -> None:
    append(api.lake, events, 4)
    at = format_instant(api.clock.now() - 3 * HOUR + MINUTE)
    body = {"service": "flight_delay", "entities": {"origin": ["JFK"]}, "at": at}
    [row] = (await api.lookup(body, "?shape=full")).json()["rows"]

    assert row["features"]["airport_delay.last_carrier"] == {
        "value": "B6",
        "status": "ok",
        "as_of": format_instant(api.clock.now() - 3 * HOUR),
        "age_seconds": 60.0,
    }


async def test_a_lake_that_cannot_be_read_makes_the_rows_unavailable(api: Api, events: pa.Table) -> None:
    append(api.lake, events, 4)
    for file in (api.lake / "events" / "departures").rglob("*.parquet"):
        file.write_bytes(b"gone")
    answer = await ask(api, ["JFK", "LGA"], 2 * HOUR)

    assert [row["status"] if isinstance(row["status"], str) else "ok" for row in answer["rows"]] == [
        "unavailable",
        "ok",
    ]


async def test_more_lookups_than_the_lake_is_asked_for_at_a_time_are_refused(api: Api, events: pa.Table) -> None:
    append(api.lake, events, 4)
    answers = await asyncio.gather(*(ask(api, ["JFK"], 2 * HOUR) for _ in range(60)))

    refused = [answer for answer in answers if answer.get("code") == "overloaded"]
    assert refused
    assert all(answer["rows"][0]["values"][1] == 2 for answer in answers if "rows" in answer)
    assert len(refused) < 60


async def test_the_lake_must_hold_what_was_applied_the_moment_before(api: Api, events: pa.Table) -> None:
    """Freshness is looked at now and then; what the lake must hold is known at each lookup anew."""
    append(api.lake, events, 4)
    now = api.clock.now()
    await api.store.put_fence(VIEW.id, 0, Fence(0, 11, {0: events.num_rows}, {}, now, now, now))
    problem = await ask(api, ["JFK"], 2 * HOUR, budget_ms=500)

    assert (problem["status"], problem["code"]) == (422, "at_out_of_range")


async def test_a_value_that_is_ahead_of_its_fence_is_waited_for(api: Api, events: pa.Table) -> None:
    """Values are written before the fence that says which events of the source they hold."""
    append(api.lake, events, 4)
    await api.write(VIEW, flights.stored(VIEW, events, offset=12))
    problem = await ask(api, ["JFK"], 2 * HOUR, budget_ms=500)
    assert (problem["status"], problem["code"]) == (422, "at_out_of_range")

    now = api.clock.now()
    await api.store.put_fence(VIEW.id, 0, Fence(0, 12, {0: events.num_rows - 1}, {}, now, now, now))
    assert (await ask(api, ["JFK"], 2 * HOUR))["rows"][0]["values"][1] == 2
