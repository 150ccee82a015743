"""Intake on real parts, one partition, driven by hand: what it counts, sends and stores."""

import asyncio
from typing import Any

import msgspec
import pytest
import redis
from aiokafka import AIOKafkaConsumer, TopicPartition

from featurestore.online.fences import IntakeMark
from streams.intake import IntakeStage
from streams.materialising import FeatureRows
from streams.wiring import LanePlan, Parts, Work
from tests.unit.streams.clicks import compiled, records, source

CLICKS = TopicPartition("clicks", 0)
VALUES = [b'{"at": 1, "user": "a"}', b"{", b'{"at": 2, "user": "b"}', b"", b'{"at": 3, "user": null}']
LEDGER = {"consumed": 5, "forwarded": 3, "dead_lettered": 2, "not_json": 1, "empty": 1}


async def take(parts: Parts, values: list[bytes], first: int) -> int | None:
    """A worker's life: opens the partition, takes the records two at a time, and closes it. Returns where it
    wanted to begin."""
    view = compiled()
    rows = FeatureRows(parts)
    stage = IntakeStage(parts, rows)
    stage.plan(Work(1, (LanePlan(view.lane, source(), tuple(view.keys), True, "clicks", (view,)),)), {})
    try:
        wanted = (await stage.open([CLICKS]))[CLICKS]
        for start in range(0, len(values), 2):
            await stage.process(CLICKS, records(values[start : start + 2], first=first + start), first + start)
        await stage.close([CLICKS])
        await rows.flush()
    finally:
        stage.stop()
        rows.stop()
        await asyncio.sleep(0)
    return wanted


async def letters(parts: Parts) -> int:
    async with AIOKafkaConsumer(bootstrap_servers=parts.bootstrap) as consumer:
        topic = TopicPartition("clicks.dlq", 0)
        consumer.assign([topic])
        ends: dict[Any, int] = await consumer.end_offsets([topic])
        return ends[topic]


def stored_events(parts: Parts) -> int:
    snapshot = parts.lake.snapshot("events/clicks")
    assert snapshot is not None
    return sum(snapshot.files["num_records"].to_pylist())


def forget(parts: Parts, mark: IntakeMark | None) -> None:
    """Redis as it was before the last mark was put: with `mark`, or without any."""
    with redis.Redis.from_url(parts.settings.redis) as client:
        [name] = client.keys("*intake*")
        client.delete(name)
        if mark is not None:
            client.hset(name, "0", msgspec.json.encode(mark))


async def test_every_record_is_counted_once(parts: Parts) -> None:
    await take(parts, VALUES, 0)

    mark = (await parts.store.intake_marks("clicks"))[0]
    assert (mark.offset, mark.ledger) == (4, LEDGER)
    assert (await letters(parts), stored_events(parts)) == (2, 3)


@pytest.mark.parametrize("marked", [0, 2])
async def test_a_crash_between_the_lakes_append_and_the_mark_changes_no_count(parts: Parts, marked: int) -> None:
    """`marked` records have their mark; the lake has all of them."""
    before = None
    if marked:
        await take(parts, VALUES[:marked], 0)
        before = (await parts.store.intake_marks("clicks"))[0]
    await take(parts, VALUES[marked:], marked)
    forget(parts, before)

    assert (await take(parts, VALUES[marked:], marked) or 0) == marked
    mark = (await parts.store.intake_marks("clicks"))[0]
    assert (mark.offset, mark.ledger) == (4, LEDGER)
    assert (await letters(parts), stored_events(parts)) == (2, 3)


async def test_what_waits_for_the_lake_when_definitions_change_is_stored_once(parts: Parts) -> None:
    view = compiled()
    rows = FeatureRows(parts)
    stage = IntakeStage(parts, rows)
    stage.plan(Work(1, (LanePlan(view.lane, source(), tuple(view.keys), True, "clicks", (view,)),)), {})
    try:
        for _ in range(2):  # opened again, and not closed between
            assert (await stage.open([CLICKS]))[CLICKS] is None
            await stage.process(CLICKS, records(VALUES), 0)
        await stage.close([CLICKS])
        await rows.flush()
    finally:
        stage.stop()
        rows.stop()
        await asyncio.sleep(0)

    mark = (await parts.store.intake_marks("clicks"))[0]
    assert (mark.offset, mark.ledger) == (4, LEDGER)
    assert stored_events(parts) == 3
