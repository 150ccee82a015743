"""What the runbook tells people to do, done: partitions that were stopped go on."""

from pathlib import Path

from featurestore.online.store import OnlineStore
from tests.e2e.streaming import TOPIC, VIEWS, Project, Sent, assert_oracle, records_of, send, until, until_done
from tests.parts.redis import RedisServer


async def stopped(store: OnlineStore) -> bool:
    return any(beat.stopped for beat in (await store.beats(f"intake:{TOPIC}")).values())


async def test_bad_records_that_stopped_a_partition_are_given_up_with_a_share_of_1(
    project: Project, store: OnlineStore
) -> None:
    catalog = project.publish()
    good = [record for record in records_of(800, seed=31) if record.event is not None and record.partition == 0]
    bad = [Sent(0, None, b'{"at": "yesterday"}', None) for _ in range(300)]
    records = [*good[: len(good) // 2], *bad, *good[len(good) // 2 :]]
    await send(project.bootstrap, records)
    worker = project.worker(instance="one")
    await until(lambda: stopped(store))
    assert worker.terminate() == 0

    project.worker(instance="one", FS_STOP_SHARE="1")
    await until_done(store, records, VIEWS)

    for view in catalog.views.values():
        assert await assert_oracle(store, view, records) > 5
    assert (await store.intake_marks(TOPIC))[0].ledger["bad_timestamp"] == len(bad)


async def test_a_new_project_and_lake_fold_everything_again(
    project: Project, redis: RedisServer, tmp_path: Path
) -> None:
    project.publish()
    records = records_of(800, seed=32)
    await send(project.bootstrap, records)
    async with OnlineStore.connect(redis.url) as store:
        worker = project.worker()
        await until_done(store, records, VIEWS)
        assert worker.terminate() == 0

    again = Project(project.bootstrap, redis.url, tmp_path / "second")
    again.directory.mkdir()
    catalog = again.publish()
    async with OnlineStore.connect(redis.url, project="again") as store:
        again.worker(FS_PROJECT="again")
        await until_done(store, records, VIEWS)
        for view in catalog.views.values():
            assert await assert_oracle(store, view, records) > 10
    again.stop()
