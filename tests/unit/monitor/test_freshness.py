"""What the board says of partitions, from heartbeats and fences in a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from featurestore.clock import SECOND, ManualClock
from featurestore.monitor.freshness import FreshnessBoard, ViewFreshness, partition_of
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.materialised import features_table
from featurestore.online.fences import Beat, Fence, Rebuild
from featurestore.online.store import OnlineStore
from featurestore.types import STATUSES, Status
from tests.parts.redis import RedisServer
from tests.unit.serving import flights

VIEW = flights.view("airport_delay")


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[OnlineStore]:
    async with OnlineStore.connect(redis_url) as opened:
        yield opened


@pytest.fixture
def board(store: OnlineStore, clock: ManualClock) -> FreshnessBoard:
    made = FreshnessBoard(store, clock)
    made.watch([VIEW])
    return made


def beat(clock: ManualClock, *, behind: float = 0.0, stopped: str = "", age: int = 0) -> Beat:
    return Beat(clock.now() - age * SECOND, position=7, end=7, behind_seconds=behind, stopped=stopped)


def fence(clock: ManualClock, offset: int, generation: int = 0) -> Fence:
    return Fence(generation, offset, {}, {}, clock.now(), clock.now(), clock.now())


async def beats(store: OnlineStore, intake: dict[int, Beat], fold: dict[int, Beat]) -> None:
    await store.put_beats("intake:departures", intake)
    await store.put_beats(f"fold:{VIEW.id}", fold)


def codes(of: ViewFreshness, *partitions: int) -> list[str]:
    """Statuses of entities that were found in these partitions."""
    found = of.of(["?"] * len(partitions), np.array(partitions), np.ones(len(partitions), np.bool_))
    return [str(STATUSES[code]) for code in found.tolist()]


async def test_a_view_without_any_heartbeat_is_stale(board: FreshnessBoard, clock: ManualClock) -> None:
    await board.refresh()

    assert codes(board.of(VIEW.id), 0, 3) == ["stale", "stale"]


async def test_partitions_that_keep_up_are_ok(board: FreshnessBoard, store: OnlineStore, clock: ManualClock) -> None:
    await beats(store, {0: beat(clock)}, {0: beat(clock), 1: beat(clock, behind=29.0)})
    await board.refresh()

    assert codes(board.of(VIEW.id), 0, 1) == ["ok", "ok"]


async def test_only_the_partition_that_is_behind_is_late(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    await beats(store, {0: beat(clock)}, {0: beat(clock), 1: beat(clock, behind=31.0)})
    await board.refresh()

    assert codes(board.of(VIEW.id), 0, 1) == ["ok", "late_pipeline"]


async def test_an_entity_never_seen_is_judged_by_the_partition_its_key_hashes_to(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    await beats(store, {0: beat(clock)}, {p: beat(clock, behind=31.0 * (p == 2)) for p in range(4)})
    await board.refresh()
    keys = [f"k{i}" for i in range(40)]
    expected = ["late_pipeline" if partition_of(key, 4) == 2 else "ok" for key in keys]

    nowhere = np.full(40, -1)
    found = board.of(VIEW.id).of(keys, nowhere, np.zeros(40, np.bool_))
    assert [str(STATUSES[code]) for code in found.tolist()] == expected
    assert set(expected) == {"ok", "late_pipeline"}


async def test_an_intake_that_is_behind_makes_every_entity_late(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    await beats(store, {0: beat(clock), 1: beat(clock, behind=60.0)}, {0: beat(clock), 1: beat(clock)})
    await board.refresh()

    assert codes(board.of(VIEW.id), 0, 1) == ["late_pipeline", "late_pipeline"]


@pytest.mark.parametrize(("age", "status"), [(5, "ok"), (6, "stale")])
async def test_a_heartbeat_vouches_for_five_seconds_and_a_poll(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock, age: int, status: str
) -> None:
    await beats(store, {0: beat(clock)}, {0: beat(clock, age=age)})
    await board.refresh()

    assert codes(board.of(VIEW.id), 0) == [status]


async def test_a_stopped_partition_is_stale_though_its_heart_beats(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    await beats(store, {0: beat(clock)}, {0: beat(clock, stopped="gap"), 1: beat(clock)})
    await board.refresh()

    assert codes(board.of(VIEW.id), 0, 1) == ["stale", "ok"]


async def test_a_partition_between_others_that_never_beat_is_stale(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    await beats(store, {0: beat(clock)}, {0: beat(clock), 2: beat(clock)})
    await board.refresh()

    assert codes(board.of(VIEW.id), 0, 1, 2) == ["ok", "stale", "ok"]


async def test_a_store_that_lost_writes_is_stale_until_it_has_them_again(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock, redis_server: RedisServer
) -> None:
    seen = []
    for offset in (100, 40, 99, 100):
        redis_server.flush()
        await beats(store, {0: beat(clock)}, {0: beat(clock)})
        await store.put_fence(VIEW.id, 0, fence(clock, offset))
        await board.refresh()
        seen += codes(board.of(VIEW.id), 0)

    assert seen == ["ok", "stale", "stale", "ok"]


async def test_a_view_without_a_freshness_objective_is_never_late(store: OnlineStore, clock: ManualClock) -> None:
    relaxed = flights.view("airport_total")
    board = FreshnessBoard(store, clock)
    board.watch([relaxed])
    await store.put_beats("intake:departures", {0: beat(clock, behind=9e9)})
    await store.put_beats(f"fold:{relaxed.id}", {0: beat(clock, behind=9e9)})
    await board.refresh()

    assert codes(board.of(relaxed.id), 0) == ["ok"]


async def test_without_a_fresh_look_nothing_is_vouched_for(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    await beats(store, {0: beat(clock)}, {0: beat(clock)})
    await board.refresh()
    clock.advance(6 * SECOND)

    assert codes(board.of(VIEW.id), 0) == ["stale"]


async def test_the_report_names_each_partition(board: FreshnessBoard, store: OnlineStore, clock: ManualClock) -> None:
    await beats(store, {0: beat(clock)}, {0: beat(clock), 1: beat(clock, behind=31.0, age=2)})
    await board.refresh()

    report = board.report()[VIEW.id]
    assert {p: str(seen.status) for p, seen in report.items()} == {0: "ok", 1: "late_pipeline"}
    assert (report[1].behind_seconds, report[1].beat_age_seconds, report[1].end) == (31.0, 2.0, 7)


def rebuild_mark(clock: ManualClock, generation: int = 5) -> Rebuild:
    return Rebuild(
        generation, lake_version=3, vector={0: 7}, offsets={0: 7}, buckets=4, done=[0], tallies={}, entities=9,
        events=11, started_at=clock.now(), together=[VIEW.id], at=clock.now(), by="process 1 of ops",
    )  # fmt: skip


async def test_a_view_that_is_being_rebuilt_is_unavailable_and_says_by_whom(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    await beats(store, {0: beat(clock)}, {0: beat(clock), 1: beat(clock)})
    stored = await store.swap_rebuild(VIEW.id, rebuild_mark(clock), over=b"")
    await board.refresh()

    assert board.of(VIEW.id).unavailable
    assert codes(board.of(VIEW.id), 0, 1, 9) == ["unavailable"] * 3
    assert [str(seen.status) for seen in board.report()[VIEW.id].values()] == ["unavailable"] * 2
    assert board.report()[VIEW.id][0].rebuilding == "process 1 of ops, since 2026-03-01T12:00:00Z"

    await store.swap_rebuild(VIEW.id, None, over=stored or b"")
    await board.refresh()
    assert codes(board.of(VIEW.id), 0, 1) == ["ok", "ok"]


async def test_a_view_that_is_being_rebuilt_without_a_worker_is_unavailable_all_the_same(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    await store.swap_rebuild(VIEW.id, rebuild_mark(clock), over=b"")
    await board.refresh()

    assert codes(board.of(VIEW.id), 0) == ["unavailable"]


async def test_a_new_generation_is_stale_until_a_worker_goes_on_from_it(
    board: FreshnessBoard, store: OnlineStore, clock: ManualClock
) -> None:
    """What the worker says of its own progress is of the values before."""
    await beats(store, {0: beat(clock)}, {0: beat(clock), 1: beat(clock)})
    await store.put_fence(VIEW.id, 1, fence(clock, 4, generation=5))
    await board.refresh()
    assert codes(board.of(VIEW.id), 0, 1) == ["ok", "stale"]

    await beats(store, {}, {1: msgspec.structs.replace(beat(clock), generation=5)})
    await board.refresh()
    assert codes(board.of(VIEW.id), 0, 1) == ["ok", "ok"]


@pytest.mark.parametrize(("known", "status"), [(4, "ok"), (5, "stale")])
async def test_a_board_that_starts_after_a_loss_knows_from_the_lake_how_far_the_store_was(
    store: OnlineStore, clock: ManualClock, tmp_path: Path, known: int, status: str
) -> None:
    lake = Lake(str(tmp_path))
    rows = pa.table({"_partition": pa.array([1], pa.int32()), "_offset": pa.array([known], pa.int64())})
    lake.append(features_table(VIEW), rows, {app_id(VIEW.id, 1): known})
    await beats(store, {0: beat(clock)}, {0: beat(clock), 1: beat(clock)})
    await store.put_fence(VIEW.id, 1, fence(clock, 4))
    board = FreshnessBoard(store, clock, lake=lake)
    board.watch([VIEW])
    await board.refresh()
    await board.recall()
    await board.refresh()

    assert codes(board.of(VIEW.id), 0, 1) == ["ok", status]


async def test_a_board_asks_the_lake_by_itself_and_within_a_second(
    store: OnlineStore, clock: ManualClock, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path))
    rows = pa.table({"_partition": pa.array([0], pa.int32()), "_offset": pa.array([9], pa.int64())})
    lake.append(features_table(VIEW), rows, {app_id(VIEW.id, 0): 9})
    await beats(store, {0: beat(clock)}, {0: beat(clock)})
    board = FreshnessBoard(store, clock, lake=lake, poll_seconds=0.02)
    board.watch([VIEW])
    running = asyncio.create_task(board.run())
    try:
        async with asyncio.timeout(5):
            while not [seen for seen in board.report()[VIEW.id].values() if seen.status is Status.STALE]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        running.cancel()


async def test_who_is_not_found_where_keys_were_evicted_may_have_been_there(clock: ManualClock) -> None:
    options = {"maxmemory": "2mb", "maxmemory-policy": "allkeys-random"}
    with RedisServer(options=options) as server:
        async with OnlineStore.connect(server.url) as store:
            board = FreshnessBoard(store, clock)
            board.watch([VIEW])
            for i in range(60):
                assert server.command(f"SET ballast:{i} {'x' * 60_000}").startswith(b"+OK")
            assert await store.evicted() > 0
            assert server.command("CONFIG SET maxmemory 0").startswith(b"+OK")  # or it may take the heartbeats next
            await beats(store, {0: beat(clock)}, {0: beat(clock)})
            await board.refresh()

            fresh = board.of(VIEW.id)
            seen = fresh.of(["JFK", "LGA", None], np.array([0, -1, -1]), np.array([True, False, False]))
            assert [str(STATUSES[code]) for code in seen.tolist()[:2]] == ["ok", "stale"]
