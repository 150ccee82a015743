"""The pump's own rules: where to read from, and one batch at a time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from streams.consumer import check_range
from streams.fold import hole_in
from streams.lane import Lane
from streams.stopping import PartitionStopped, StopReason
from tests.unit.streams.clicks import records

TP = TopicPartition("t", 0)


@pytest.mark.parametrize(("wanted", "at"), [(None, 3), (3, 3), (5, 5), (9, 9)])
def test_reading_begins_where_the_stage_says_or_at_the_beginning(wanted: int | None, at: int) -> None:
    assert check_range(wanted, 3, 9) == at


@pytest.mark.parametrize(("wanted", "reason"), [(0, StopReason.LOST), (2, StopReason.GAP), (10, StopReason.REWOUND)])
def test_an_offset_that_is_not_there_stops_the_partition(wanted: int, reason: StopReason) -> None:
    with pytest.raises(PartitionStopped) as stopped:
        check_range(wanted, 3, 9)
    assert stopped.value.reason is reason


def test_what_was_lost_is_read_again_where_the_topic_still_has_it() -> None:
    assert check_range(0, 0, 9) == 0


def test_the_first_missing_offset_is_found() -> None:
    held = records([b"x"] * 5, first=10)

    assert hole_in(held, 10) is None
    assert hole_in(held, 9) == 9
    assert hole_in([*held[:2], *held[3:]], 10) == 12


def lane(process: Any, *, limit: int = 100) -> tuple[Lane, list[Exception]]:
    ended: list[Exception] = []
    return Lane(TP, 10, process, lambda _, error: ended.append(error), asyncio.Event(), limit), ended


async def test_what_arrives_while_a_batch_runs_becomes_the_next_batch_and_overlaps_are_cut_off() -> None:
    batches: list[tuple[list[int], int]] = []
    go = asyncio.Event()

    async def process(_: TopicPartition, held: Any, start: int) -> None:
        batches.append(([r.offset for r in held], start))
        await go.wait()

    subject, _ = lane(process)
    subject.offer(records([b""] * 2, first=10))
    await asyncio.sleep(0)
    subject.offer(records([b""] * 3, first=11))
    subject.offer(records([b""] * 2, first=13))
    go.set()
    await asyncio.sleep(0.01)
    await subject.drain(1)

    assert batches == [([10, 11], 10), ([12, 13, 14], 12)]
    assert subject.next == 15


async def test_a_lane_that_raised_takes_nothing_more_and_stays_where_it_was() -> None:
    async def process(_: TopicPartition, held: Any, start: int) -> None:
        raise ValueError("no")

    subject, ended = lane(process)
    subject.offer(records([b""] * 2, first=10))
    await asyncio.sleep(0.01)

    assert [ValueError] == [type(error) for error in ended]
    assert not subject.has_room
    assert subject.next == 10


async def test_draining_waits_for_the_running_batch_and_drops_what_waits() -> None:
    done: list[int] = []

    async def process(_: TopicPartition, held: Any, start: int) -> None:
        await asyncio.sleep(0.05)
        done.append(start)

    subject, _ = lane(process)
    subject.offer(records([b""], first=10))
    await asyncio.sleep(0)
    subject.offer(records([b""], first=11))
    await subject.drain(1)

    assert done == [10]
    assert subject.next == 11


async def test_draining_cuts_off_a_batch_that_takes_too_long() -> None:
    async def process(_: TopicPartition, held: Any, start: int) -> None:
        await asyncio.sleep(60)

    subject, _ = lane(process)
    subject.offer([SimpleNamespace(offset=10, timestamp=1, value=b"")])
    await asyncio.sleep(0)
    await asyncio.wait_for(subject.drain(0.05), 1)

    assert subject.next == 10


async def test_a_lane_has_room_until_its_limit_waits() -> None:
    never = asyncio.Event()

    async def process(_: TopicPartition, held: Any, start: int) -> None:
        await never.wait()

    subject, _ = lane(process, limit=3)
    subject.offer(records([b""], first=10))
    await asyncio.sleep(0)
    subject.offer(records([b""] * 2, first=11))
    assert subject.has_room
    subject.offer(records([b""] * 2, first=13))
    assert not subject.has_room
    await subject.drain(0.01)
