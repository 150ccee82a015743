"""Parts that are away, late or forgetful: the worker waits, says so, and ends with the same values."""

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

from featurestore.online.store import OnlineStore
from streams.folding import Count
from tests.e2e.streaming import VIEWS, Project, assert_oracle, folded, records_of, send, until, until_done
from tests.parts.kafka import KafkaServer
from tests.parts.redis import RedisServer


async def said(project: Project, text: str) -> bool:
    return text in project.workers[-1].log


async def beats(store: OnlineStore) -> bool:
    return bool(await store.beats("intake:clicks"))


async def begun(store: OnlineStore) -> bool:
    return bool((await folded(store, "shop_clicks@1"))[Count.CONSUMED] > 0)


async def test_a_worker_waits_for_redis_then_for_the_topic_and_works_when_they_come(
    project: Project, redis: RedisServer, store: OnlineStore
) -> None:
    catalog, records = project.publish(), records_of(500, seed=11)
    redis.kill()
    project.worker()
    await until(lambda: said(project, "waiting for redis"))
    redis.start()
    await until(lambda: said(project, "waiting for a topic that does not exist yet"))
    await until(lambda: beats(store))
    beat = (await store.beats("intake:clicks"))[0]
    await send(project.bootstrap, records)
    await until_done(store, records, VIEWS)

    assert beat.waiting_for == "topic clicks"
    for view in catalog.views.values():
        assert await assert_oracle(store, view, records) > 10


@pytest.mark.kafka
async def test_a_worker_waits_for_kafka_and_outlives_its_restart(
    redis: RedisServer, store: OnlineStore, tmp_path: Path
) -> None:
    kafka = KafkaServer()
    project = Project(kafka.bootstrap, redis.url, tmp_path)
    try:
        catalog, records = project.publish(), records_of(2000, seed=12)
        project.worker()
        await until(lambda: said(project, "waiting for kafka"))
        kafka.start()
        kafka.create_topic("clicks")
        await send(project.bootstrap, records[:1000])
        await until(lambda: begun(store))
        kafka.restart()
        await send(project.bootstrap, records[1000:])
        await until_done(store, records, VIEWS)

        for view in catalog.views.values():
            assert await assert_oracle(store, view, records) > 10
    finally:
        project.stop()
        kafka.stop()


async def test_redis_killed_in_the_middle_loses_and_doubles_nothing(
    project: Project, redis: RedisServer, store: OnlineStore
) -> None:
    catalog, records = project.publish(), records_of(3000, seed=13)
    worker = project.worker()
    await send(project.bootstrap, records[:1000])
    await until(lambda: begun(store))
    redis.kill()
    await send(project.bootstrap, records[1000:])
    await until(lambda: said(project, "waiting for redis"))
    redis.start()
    await until_done(store, records, VIEWS)

    assert worker.alive()
    for view in catalog.views.values():
        assert await assert_oracle(store, view, records) > 10


async def test_a_redis_that_forgot_everything_is_filled_again_from_the_log(
    project: Project, redis: RedisServer, store: OnlineStore
) -> None:
    catalog, records = project.publish(), records_of(1500, seed=14)
    project.worker()
    await send(project.bootstrap, records)
    await until_done(store, records, VIEWS)
    redis.flush()
    await until_done(store, records, VIEWS)

    for view in catalog.views.values():
        assert await assert_oracle(store, view, records) > 10


async def test_features_stay_fresh_while_the_lake_is_away_and_it_gets_every_event_later(
    project: Project, store: OnlineStore
) -> None:
    catalog, records = project.publish(), records_of(1500, seed=15)
    events = Path(project.lake) / "events"
    project.worker()
    await send(project.bootstrap, records[:500])
    await until_done(store, records[:500], VIEWS)
    shutil.move(events, events.with_name("gone"))
    events.write_text("not a directory")
    await send(project.bootstrap, records[500:])
    fresh = sum(record.event is not None for record in records)
    await until(lambda: reached(store, fresh))
    held_back = sum(mark.offset + 1 for mark in (await store.intake_marks("clicks")).values())
    events.unlink()
    shutil.move(events.with_name("gone"), events)
    await until_done(store, records, VIEWS)

    assert held_back == 500
    for view in catalog.views.values():
        assert await assert_oracle(store, view, records) > 10


async def reached(store: OnlineStore, rows: int) -> bool:
    return bool((await folded(store, "shop_clicks@1"))[Count.CONSUMED] >= rows)


async def test_sigterm_drains_and_exits_with_0(project: Project, store: OnlineStore) -> None:
    project.publish()
    await send(project.bootstrap, records_of(2000, seed=16))
    worker = project.worker()
    await until(lambda: begun(store))

    assert await asyncio.to_thread(worker.terminate) == 0
    assert "worker stopped" in worker.log


async def test_a_second_sigterm_does_not_wait_for_the_first(
    project: Project, redis: RedisServer, store: OnlineStore
) -> None:
    project.publish()
    worker = project.worker()
    records = records_of(1000, seed=17)
    await send(project.bootstrap, records[:500])
    await until_done(store, records[:500], VIEWS)
    redis.freeze()
    await send(project.bootstrap, records[500:])
    worker.signal(signal.SIGTERM)
    await until(lambda: said(project, "the running batches are finished first"))

    assert worker.alive()
    # Ended by its own handler, or by the signal itself where Python is already on its way out.
    assert await asyncio.to_thread(worker.terminate, 2) in (143, -signal.SIGTERM)
    redis.thaw()


async def test_a_redis_that_evicts_is_refused_with_what_to_do(project: Project, redis: RedisServer) -> None:
    project.publish()
    redis.command("CONFIG SET maxmemory-policy allkeys-lru")
    worker = project.worker()
    await until(lambda: said(project, "the worker cannot run"))

    assert await asyncio.to_thread(worker.wait) == 1
    assert "noeviction" in worker.log


async def test_a_redis_that_is_told_to_evict_gets_nothing_more_until_it_is_not(
    project: Project, redis: RedisServer, store: OnlineStore
) -> None:
    catalog, records = project.publish(), records_of(600, seed=19)
    worker = project.worker()
    await send(project.bootstrap, records[:300])
    await until_done(store, records[:300], VIEWS)
    redis.command("CONFIG SET maxmemory-policy allkeys-lru")
    await until(lambda: said(project, "nothing is written"))
    before = await folded(store, "shop_clicks@1")
    await send(project.bootstrap, records[300:])
    await until(lambda: said(project, "waiting for redis"))
    beats_say = {beat.waiting_for for beat in (await store.beats("fold:shop_clicks@1")).values()}
    held = await folded(store, "shop_clicks@1")
    redis.command("CONFIG SET maxmemory-policy noeviction")
    await until_done(store, records, VIEWS)

    assert worker.alive()
    assert beats_say <= {"", "redis"}
    assert before.tolist() == held.tolist()
    assert "the online store is safe again" in worker.log
    for view in catalog.views.values():
        assert await assert_oracle(store, view, records) > 10
