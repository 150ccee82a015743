"""Values, statuses and shapes of lookups, on the real engine and a real Redis."""

import asyncio
import gc
from collections import Counter
from typing import Any

import numpy as np
import pytest

from featurestore.clock import HOUR, MINUTE, SECOND, ManualClock, format_instant
from featurestore.engine.sections import HEADER_WORDS
from featurestore.online.fences import Beat, Rebuild
from featurestore.serving.answers import Block
from featurestore.serving.batches import Group, Waiting
from tests.unit.serving import flights
from tests.unit.serving.api import Api

AIRPORT, LEG = flights.view("airport_delay"), flights.view("leg_delay")


@pytest.fixture
async def filled(api: Api, clock: ManualClock) -> Api:
    """JFK: three departures in the last hour, one 20 h ago. LGA: one 10 h ago. Leg (JFK, 1): 5 min and 7 h ago."""
    now = clock.now()
    table = flights.departures(
        [
            (now - 20 * HOUR, "JFK", "AA", 1, 50.0),
            (now - 10 * HOUR, "LGA", "DL", 7, -4.0),
            (now - 7 * HOUR, "JFK", "AA", 2, 3.0),
            (now - 40 * MINUTE, "JFK", "B6", 3, 20.0),
            (now - 30 * MINUTE, "JFK", None, 4, None),
            (now - 5 * MINUTE, "JFK", "UA", 1, 10.0),
        ]
    )
    for view in (AIRPORT, LEG):
        await api.write(view, flights.stored(view, table))
    await api.beat()
    await api.status_becomes({"origin": ["JFK"]}, "ok")
    return api


async def test_a_lean_answer_has_names_once_and_a_row_for_each_entity(filled: Api, clock: ManualClock) -> None:
    response = await filled.lookup({"service": "flight_delay", "entities": {"origin": ["JFK", "LGA"]}})

    answer = response.json()
    assert {k: answer[k] for k in ("service", "version", "revision", "at", "source")} == {
        "service": "flight_delay",
        "version": 1,
        "revision": 1,
        "at": format_instant(clock.now()),
        "source": "online",
    }
    assert answer["features"][:2] == ["airport_delay.departures_1h", "airport_delay.departures_24h"]
    assert answer["rows"] == [
        {"values": [3, 5, 30.0, 15.0, 20.75, 50.0, 3.0, 1, 1 / 3, "UA"], "status": "ok"},
        {
            "values": [0, 1, None, 0.0, -4.0, -4.0, -4.0, 0, None, "DL"],
            "status": ["ok", "ok", "ok", "default", "ok", "ok", "ok", "ok", "ok", "ok"],
        },
    ]


async def test_lookups_leave_nothing_behind_for_the_garbage_collector(filled: Api) -> None:
    """What each batch made would stay until then, in every process that answers thousands a second."""
    gc.collect()
    gc.disable()
    try:
        for keys in (["JFK"], ["JFK", "LGA", "XXX"], ["JFK"] * 300):
            await filled.rows("flight_delay", {"origin": keys})
            await filled.rows("leg_delay", {"origin": keys, "flight": [1] * len(keys)}, budget_ms=5_000)
        await asyncio.sleep(0)
        left = Counter(type(found).__name__ for found in gc.get_objects() if isinstance(found, Group | Waiting | Block))
    finally:
        gc.enable()

    assert Counter() == left


async def test_an_entity_never_seen_has_the_values_of_empty_windows(filled: Api) -> None:
    [row] = await filled.rows("flight_delay", {"origin": ["XXX"]})

    assert row == {"values": [0, 0, None, 0.0, None, None, None, 0, None, None], "status": "not_found"}


async def test_a_null_key_is_answered_as_not_found_and_the_rows_keep_their_places(filled: Api) -> None:
    rows = await filled.rows("flight_delay", {"origin": [None, "JFK", None]})

    assert [row["status"] for row in rows] == ["not_found", "ok", "not_found"]


async def test_no_rows_are_answered_with_no_rows(filled: Api) -> None:
    assert await filled.rows("flight_delay", {"origin": []}) == []
    for shape in ("?shape=full", "?shape=columns"):
        assert (await filled.lookup({"service": "flight_delay", "entities": {"origin": []}}, shape)).status_code == 200


async def test_a_service_over_two_entities_reads_each_view_by_its_own_key(filled: Api) -> None:
    rows = await filled.rows("leg_delay", {"origin": ["JFK", "JFK", "LGA"], "flight": [1, 2, None]})

    assert rows == [
        {"values": [1, 10.0, 3, "UA"], "status": "ok"},
        {"values": [0, None, 3, "UA"], "status": ["ok", "expired", "ok", "ok"]},
        {"values": [0, None, 0, "DL"], "status": ["not_found", "not_found", "ok", "ok"]},
    ]


async def test_the_full_shape_says_for_each_value_what_it_stands_on(filled: Api, clock: ManualClock) -> None:
    body = {"service": "leg_delay", "entities": {"origin": ["JFK"], "flight": [2]}}
    response = await filled.lookup(body, "?shape=full")

    [row] = response.json()["rows"]
    assert row["entity"] == {"origin": "JFK", "flight": 2}
    assert row["features"]["airport_delay.last_carrier"] == {
        "value": "UA",
        "status": "ok",
        "as_of": format_instant(clock.now() - 5 * MINUTE),
        "age_seconds": 300.0,
    }
    assert row["features"]["leg_delay.last_delay"]["status"] == "expired"


async def test_the_full_shape_has_no_age_where_there_is_no_event(filled: Api) -> None:
    response = await filled.lookup({"service": "flight_delay", "entities": {"origin": ["XXX"]}}, "?shape=full")

    values = response.json()["rows"][0]["features"].values()
    assert {(v["as_of"], v["age_seconds"], v["status"]) for v in values} == {(None, None, "not_found")}


async def test_the_columns_shape_is_the_lean_one_turned(filled: Api) -> None:
    body = {"service": "flight_delay", "entities": {"origin": ["JFK", "XXX", "LGA"]}}
    lean = (await filled.lookup(body)).json()
    columns = (await filled.lookup(body, "?shape=columns")).json()["columns"]

    assert [list(values) for values in zip(*(c["values"] for c in columns), strict=True)] == [
        row["values"] for row in lean["rows"]
    ]
    assert columns[0]["status"] == ["ok", "not_found", "ok"]


async def test_a_window_decays_when_nothing_happens(filled: Api, clock: ManualClock) -> None:
    clock.advance(5 * HOUR)

    [row] = await filled.rows("flight_delay", {"origin": ["JFK"]})
    assert row["values"][:2] == [0, 4]


async def test_an_instant_ahead_is_evaluated_there(filled: Api, clock: ManualClock) -> None:
    ahead = format_instant(clock.now() + 5 * HOUR)
    response = await filled.lookup({"service": "flight_delay", "entities": {"origin": ["JFK"]}, "at": ahead})

    assert response.json()["at"] == ahead
    assert response.json()["rows"][0]["values"][:2] == [0, 4]


async def test_an_event_ahead_of_the_clock_is_not_left_out(filled: Api, clock: ManualClock) -> None:
    event = [(clock.now() + 3 * SECOND, "EWR", "UA", 9, 1.0)]
    await filled.write(AIRPORT, flights.stored(AIRPORT, flights.departures(event)))

    [row] = await filled.rows("flight_delay", {"origin": ["EWR"]})
    assert row["values"][:2] == [1, 1]


async def test_a_pipeline_that_is_behind_makes_its_values_late(filled: Api) -> None:
    await filled.beat(behind_seconds=31.0)
    await filled.status_becomes({"origin": ["JFK"]}, "late_pipeline")

    rows = await filled.rows("flight_delay", {"origin": ["XXX", "JFK", None]})
    assert [row["status"] for row in rows] == ["late_pipeline", "late_pipeline", "not_found"]
    assert rows[1]["values"][0] == 3


async def test_a_partition_that_stopped_makes_its_values_stale(filled: Api) -> None:
    await filled.beat(stopped="gap in the log")
    await filled.status_becomes({"origin": ["JFK"]}, "stale")

    [row] = await filled.rows("flight_delay", {"origin": ["JFK"]})
    assert row["values"][0] == 3


async def test_damaged_bytes_spoil_their_own_row_only(filled: Api) -> None:
    stored = await filled.store.read(AIRPORT.id, ["JFK"])
    assert stored[0] is not None
    newer = np.frombuffer(stored[0], "<i8").copy()
    newer[3] = 1_000  # a greater offset, so that it may replace the value
    newer[HEADER_WORDS] = -5
    await filled.write(AIRPORT, {"JFK": newer.tobytes()})

    rows = await filled.rows("flight_delay", {"origin": ["LGA", "JFK", "XXX"]})
    assert [row["status"] if isinstance(row["status"], str) else row["status"][0] for row in rows] == [
        "ok",
        "unavailable",
        "not_found",
    ]


async def test_requests_of_one_turn_are_answered_together_and_each_gets_its_own_rows(filled: Api) -> None:
    async def one(i: int) -> Any:
        at = None if i % 3 else format_instant(filled.clock.now() + HOUR)
        body = {"service": "flight_delay", "entities": {"origin": ["JFK", "LGA", f"X{i}"][i % 2 : 3]}, "at": at}
        other = {"service": "leg_delay", "entities": {"origin": ["JFK"], "flight": [1]}}
        return (await filled.lookup(other if i % 5 == 4 else body)).json()

    answers = await asyncio.gather(*(one(i) for i in range(60)))
    for i, answer in enumerate(answers):
        departures_24h = [row["values"][1] for row in answer["rows"]]
        assert departures_24h == ([10.0] if i % 5 == 4 else [5, 1, 0][i % 2 :])


async def test_a_spent_budget_is_answered_with_status_deadline(filled: Api) -> None:
    body = {"service": "flight_delay", "entities": {"origin": ["JFK"]}, "budget_ms": 0.000001}
    [row] = (await filled.lookup(body)).json()["rows"]

    assert row == {"values": [None, None, None, 0.0, None, None, None, None, None, None], "status": "deadline"}


async def test_a_budget_without_bounds_is_no_error(filled: Api) -> None:
    [row] = await filled.rows("flight_delay", {"origin": ["JFK"]}, budget_ms=1e300)

    assert row["status"] == "ok"


async def test_a_key_too_long_for_the_store_spoils_no_other_request(filled: Api) -> None:
    long, sound = await asyncio.gather(
        filled.lookup({"service": "flight_delay", "entities": {"origin": ["x" * 2_000]}}),
        filled.lookup({"service": "flight_delay", "entities": {"origin": ["JFK"]}}),
    )

    assert (long.status_code, long.json()["field"]) == (422, "entities")
    assert sound.json()["rows"][0]["status"] == "ok"


@pytest.mark.parametrize("key", ["a|b", "a\\b", "a\\|b", "|", "ä ö", "{x}", "*", ""])
async def test_keys_of_any_text_are_found_again(filled: Api, clock: ManualClock, key: str) -> None:
    table = flights.departures([(clock.now(), key, "UA", 9, 1.0)])
    for view in (AIRPORT, LEG):
        await filled.write(view, flights.stored(view, table))

    [row] = await filled.rows("leg_delay", {"origin": [key], "flight": [9]})
    assert row == {"values": [1, 1.0, 1, "UA"], "status": "ok"}


async def test_no_stored_value_of_a_view_that_is_being_rebuilt_is_shown(filled: Api, clock: ManualClock) -> None:
    mark = Rebuild(
        generation=5, lake_version=3, vector={}, offsets={}, buckets=4, done=[0], tallies={}, entities=9, events=11,
        started_at=clock.now(), together=[], at=clock.now(), by="process 1 of ops",
    )  # fmt: skip
    await filled.store.swap_rebuild(AIRPORT.id, mark, over=b"")
    await filled.status_becomes({"origin": ["JFK"]}, "unavailable")

    [row] = await filled.rows("flight_delay", {"origin": ["JFK"]})
    assert row["values"] == [0, 0, None, 0.0, None, None, None, 0, None, None]
    [row] = await filled.rows("leg_delay", {"origin": ["JFK"], "flight": [1]})
    assert row == {"values": [1, 10.0, 0, None], "status": ["ok", "ok", "unavailable", "unavailable"]}


async def test_a_quiet_entity_is_ok_however_long(filled: Api, clock: ManualClock) -> None:
    clock.advance(300 * HOUR)
    await filled.beat()
    entities: dict[str, list[Any]] = {"origin": ["JFK"], "flight": [None]}
    await filled.status_becomes(entities, ["not_found", "not_found", "ok", "ok"], "leg_delay")

    [row] = await filled.rows("leg_delay", entities)
    assert row["values"][2:] == [0, "UA"]


async def test_only_entities_of_the_partition_that_is_behind_are_late(filled: Api, clock: ManualClock) -> None:
    table = flights.departures([(clock.now() - MINUTE, "EWR", "UA", 1, 5.0)])
    await filled.write(AIRPORT, flights.stored(AIRPORT, table, partition=2))
    behind = Beat(at=clock.now(), position=3, end=90, behind_seconds=31.0)
    await filled.store.put_beats(f"fold:{AIRPORT.id}", {2: behind})
    await filled.status_becomes({"origin": ["EWR"]}, "late_pipeline")

    rows = await filled.rows("flight_delay", {"origin": ["EWR", "JFK"]})
    assert [row["status"] for row in rows] == ["late_pipeline", "ok"]


async def test_requests_that_are_evaluated_in_steps_get_their_own_rows(filled: Api) -> None:
    rows = [f"X{i}" for i in range(900)] + ["JFK"] + [f"Y{i}" for i in range(99)]
    large, small = await asyncio.gather(
        filled.rows("flight_delay", {"origin": rows}), filled.rows("flight_delay", {"origin": ["LGA"]})
    )

    assert [i for i, row in enumerate(large) if row["status"] != "not_found"] == [900]
    assert large[900]["values"][:2] == [3, 5]
    assert small[0]["values"][:2] == [0, 1]
