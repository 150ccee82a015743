"""`featurestore rebuild`: what Redis lost is computed from the lake, is what it was, and goes on from there."""

import asyncio
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from featurestore.clock import SystemClock
from featurestore.definitions.compiled import CompiledView
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from featurestore.types import STATUS_CODES, Status
from streams.folding import Count
from tests.e2e.streaming import (
    MORE_DEFINITIONS,
    PARTITIONS,
    TOPIC,
    VIEWS,
    Project,
    Sent,
    assert_oracle,
    folded,
    records_of,
    send,
    until,
    until_done,
)
from tests.parts.kafka import KafkaServer
from tests.parts.redis import RedisServer
from tests.unit.streams.states import assert_same_state


@pytest.fixture
def broker(either_broker: str) -> str:
    return either_broker


async def values_of(store: OnlineStore, view: CompiledView) -> dict[str, bytes]:
    keys = sorted([key async for key in store.scan_view(view.id)])
    return {key: value for key, value in zip(keys, await store.read(view.id, keys), strict=True) if value is not None}


def told(view: CompiledView, ledger: np.ndarray) -> list[int]:
    """What the lake tells of a ledger. Which of two partitions' events came to an entity first, it does not: of a view
    whose events are shuffled, some are late then that were not, or the other way round."""
    counts: list[int] = ledger.tolist()
    if not view.aligned:
        counts[Count.APPLIED] += counts[Count.LATE]
        counts[Count.LATE] = 0
    return counts


async def assert_everything(store: OnlineStore, catalog: Catalog, records: list[Sent]) -> None:
    events = sum(record.event is not None for record in records)
    for view in catalog.views.values():
        assert await assert_oracle(store, view, records) > 10
        ledger = await folded(store, view.id)
        assert events == ledger[Count.CONSUMED] - ledger[Count.DUPLICATE]
        assert ledger[Count.CONSUMED] == ledger[1:].sum()


async def test_values_after_a_total_loss_are_what_they_were_and_go_on(
    project: Project, store: OnlineStore, redis: RedisServer
) -> None:
    catalog, records = project.publish(MORE_DEFINITIONS), records_of(4000, seed=21)
    views = [view.id for view in catalog.views.values()]
    await send(project.bootstrap, records[:3000])
    worker = project.worker()
    await until_done(store, records[:3000], views)
    assert worker.terminate() == 0
    before = {view.id: await values_of(store, view) for view in catalog.views.values()}
    ledgers = {view: await folded(store, view) for view in views}
    redis.flush()

    code, answer, talk = await project.fs("rebuild")

    assert code == 0, talk
    assert sorted(views) == sorted(done["view"] for done in answer["views"])
    for view in catalog.views.values():
        assert_same_state(view, before[view.id], await values_of(store, view))
        assert told(view, ledgers[view.id]) == told(view, await folded(store, view.id))
    assert {} == await store.rebuilds()

    project.worker()
    await send(project.bootstrap, records[3000:])
    await until_done(store, records, views)
    await assert_everything(store, catalog, records)


async def test_workers_go_on_while_a_rebuild_is_killed_refused_and_completed(
    project: Project, store: OnlineStore, redis: RedisServer
) -> None:
    catalog, records = project.publish(), records_of(6000, seed=22)
    await send(project.bootstrap, records[:2000])
    worker = project.worker()
    await until_done(store, records[:2000], VIEWS)
    board = FreshnessBoard(store, SystemClock())
    board.watch(catalog.views.values())
    traffic = asyncio.create_task(trickle(project, records[2000:]))
    redis.flush()

    first = project.start("streams.commands", "rebuild")
    await until(lambda: marked(store, len(VIEWS)))
    first.send_signal(signal.SIGSTOP)
    await board.refresh()
    assert [True, True] == [board.of(view).unavailable for view in VIEWS]
    code, _, talk = await project.fs("rebuild")
    assert code == 1
    assert f"is being rebuilt by {(await store.rebuilds())[VIEWS[0]].by}, since" in talk
    first.kill()
    first.communicate()
    await forget_the_signs_of_life(store)
    code, answer, talk = await project.fs("rebuild")
    assert code == 0, talk
    done = answer["views"]
    assert sorted(VIEWS) == sorted(view["view"] for view in done)
    assert [True, True] == [view["generation"] > 10**9 for view in done]

    await traffic
    await until_done(store, records, VIEWS)
    await assert_everything(store, catalog, records)
    assert worker.alive()
    await until(lambda: fresh(board))
    for view in VIEWS:
        assert {fence.generation for fence in (await store.fences(view)).values()} == {
            beat.generation for beat in (await store.beats(f"fold:{view}")).values()
        }


async def trickle(project: Project, records: list[Sent]) -> None:
    for start in range(0, len(records), 200):
        await send(project.bootstrap, records[start : start + 200])
        await asyncio.sleep(0.3)


async def marked(store: OnlineStore, views: int) -> bool:
    return len(await store.rebuilds()) == views


async def fresh(board: FreshnessBoard) -> bool:
    await board.refresh()
    return all(board.of(view).uniform == STATUS_CODES[Status.OK] for view in VIEWS)


async def forget_the_signs_of_life(store: OnlineStore) -> None:
    """As half a minute without one would."""
    for view, mark in (await store.rebuilds()).items():
        stored = await store.rebuild_mark(view)
        assert await store.swap_rebuild(view, msgspec.structs.replace(mark, at=0), over=stored)


@pytest.mark.kafka
async def test_a_partition_that_no_log_can_restore_stops_until_it_is_rebuilt(
    store: OnlineStore, redis: RedisServer, tmp_path: Path
) -> None:
    with KafkaServer() as kafka:
        kafka.create_topic(TOPIC, partitions=PARTITIONS)
        project = Project(kafka.bootstrap, redis.url, tmp_path)
        try:
            catalog, records = project.publish(), records_of(3000, seed=23)
            await send(project.bootstrap, records[:2000])
            project.worker(instance="one")
            await until_done(store, records[:2000], VIEWS)
            await trim(project.bootstrap, dict.fromkeys(range(PARTITIONS), 100))
            redis.flush()

            await until(lambda: all_say(store, "lost: "))
            said = {beat.stopped for beat in (await store.beats("fold:user_clicks@1")).values()}
            assert all("topic now begins at 100; run `featurestore rebuild`" in text for text in said)
            code, _, talk = await project.fs("rebuild")
            assert code == 0, talk

            await send(project.bootstrap, records[2000:])
            await until_done(store, records, VIEWS)
            await assert_everything(store, catalog, records)
        finally:
            project.stop()


async def trim(bootstrap: str, first: dict[int, int]) -> None:
    """Deletes records before these offsets, as a topic's retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(TOPIC, p): RecordsToDelete(offset) for p, offset in first.items()})
    finally:
        await admin.close()


async def all_say(store: OnlineStore, text: str) -> bool:
    beats = await store.beats("fold:user_clicks@1")
    return len(beats) == PARTITIONS and all(beat.stopped.startswith(text) for beat in beats.values())


async def test_a_rebuild_that_is_ended_before_its_first_value_leaves_no_mark(
    project: Project, store: OnlineStore
) -> None:
    project.publish()
    records = records_of(300, seed=24)
    await send(project.bootstrap, records)
    worker = project.worker()
    await until_done(store, records, VIEWS)
    assert worker.terminate() == 0
    ended = project.start("streams.commands", "rebuild")
    await until(lambda: marked(store, len(VIEWS)))
    ended.terminate()
    ended.communicate()

    assert {} == await store.rebuilds()
