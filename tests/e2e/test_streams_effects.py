"""Events through both stages: exactly once in every view and in the lake, whatever happens to the workers."""

import json
from collections import Counter

import polars as pl
import pytest

from featurestore.engine.read import ViewReader
from featurestore.offline.lake import Lake
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from streams.folding import Count
from tests.e2e.streaming import (
    MORE_DEFINITIONS,
    TOPIC,
    VIEWS,
    Project,
    Sent,
    assert_oracle,
    dead_letters,
    folded,
    records_of,
    send,
    until,
    until_done,
)


@pytest.fixture
def broker(either_broker: str) -> str:
    return either_broker


async def assert_everything(project: Project, store: OnlineStore, catalog: Catalog, records: list[Sent]) -> None:
    events = sum(record.event is not None for record in records)
    for view in catalog.views.values():
        assert await assert_oracle(store, view, records) > 10
        ledger = await folded(store, view.id)
        assert events == ledger[Count.CONSUMED] - ledger[Count.DUPLICATE]
        assert ledger[Count.CONSUMED] == ledger[1:].sum()
    rows = Lake(project.lake).snapshot(f"events/{TOPIC}")
    assert rows is not None
    assert events == sum(rows.files["num_records"].to_pylist())


async def grown_beyond(store: OnlineStore, rows: int) -> bool:
    return bool((await folded(store, "shop_clicks@1"))[Count.CONSUMED] > rows)


async def any_stopped(store: OnlineStore) -> bool:
    return any(beat.stopped for beat in (await store.beats(f"intake:{TOPIC}")).values())


async def test_one_worker_gives_the_oracles_values(project: Project, store: OnlineStore) -> None:
    catalog, records = project.publish(), records_of(3000, seed=1)
    await send(project.bootstrap, records)
    worker = project.worker()
    await until_done(store, records, VIEWS)

    await assert_everything(project, store, catalog, records)
    ledger = await folded(store, "shop_clicks@1")
    assert ledger[Count.DUPLICATE] == 0
    assert ledger[Count.LATE] > 0
    assert ledger[Count.FILTERED] == sum(r.event is not None and r.event["shop"] is None for r in records)
    assert worker.terminate() == 0


async def test_every_bad_record_is_one_dead_letter_as_it_was(project: Project, store: OnlineStore) -> None:
    project.publish()
    records = records_of(2000, seed=2)
    await send(project.bootstrap, records)
    project.worker()
    await until_done(store, records, VIEWS)

    letters = await dead_letters(project.bootstrap)
    bad = {(str(r.partition), str(r.offset)): r for r in records if r.event is None}
    assert Counter(bad.keys()) == Counter((h["fs.partition"], h["fs.offset"]) for h, _, _ in letters)
    for headers, key, value in letters:
        sent = bad[headers["fs.partition"], headers["fs.offset"]]
        assert (sent.key, sent.value) == (key, value)
        assert {
            "trace": "t1",
            "fs.topic": TOPIC,
            "fs.contract": "clicks/v1",
            "fs.revision": "1",
        }.items() <= headers.items()
        assert headers["fs.error"]
    reasons = Counter(headers["fs.reason"] for headers, _, _ in letters)
    assert reasons["future_event"] > 0
    marks = await store.intake_marks(TOPIC)
    counted: Counter[str] = Counter()
    for mark in marks.values():
        counted.update(mark.ledger)
    assert reasons == {reason: counted[reason] for reason in reasons}
    assert counted["consumed"] == len(records) == counted["forwarded"] + counted["dead_lettered"]


async def test_the_last_feature_row_of_every_entity_is_what_can_be_read_online(
    project: Project, store: OnlineStore
) -> None:
    catalog, records = project.publish(), records_of(2000, seed=8)
    worker = project.worker()
    await send(project.bootstrap, records[:1000])
    await until_done(store, records[:1000], VIEWS)
    await send(project.bootstrap, records[1000:])
    await until_done(store, records, VIEWS)
    assert worker.terminate() == 0

    for view in catalog.views.values():
        rows = pl.read_delta(f"{project.lake}/features/{view.id}").sort("_key", "_offset")
        last = rows.unique("_key", keep="last", maintain_order=True)
        keys = last["_key"].to_list()
        assert sorted(keys) == sorted([key async for key in store.scan_view(view.id)])
        latest = last["event_time"].dt.timestamp("us").to_numpy()
        reading = ViewReader(view).read(await store.read(view.id, keys), latest, 0)
        assert latest.tolist() == reading.latest.tolist()
        for column in reading.columns:
            assert last[column.name].to_list() == column.to_list()


async def test_a_worker_killed_again_and_again_ends_with_the_same_values(project: Project, store: OnlineStore) -> None:
    catalog, records = project.publish(), records_of(6000, seed=3)
    worker = project.worker(instance="one")
    for start in range(0, len(records), 1500):
        await send(project.bootstrap, records[start : start + 1500])
        before = await folded(store, "shop_clicks@1")
        await until(lambda least=before[Count.CONSUMED] + 50: grown_beyond(store, least))  # type: ignore[misc]
        worker.kill()
        worker = project.worker(instance="one")
    await until_done(store, records, VIEWS)

    await assert_everything(project, store, catalog, records)


async def test_two_workers_share_the_partitions_and_one_takes_over(project: Project, store: OnlineStore) -> None:
    catalog, records = project.publish(), records_of(4000, seed=4)
    await send(project.bootstrap, records[:2000])
    first, second = project.worker(), project.worker()
    await until_done(store, records[:2000], VIEWS)
    assert first.terminate() == 0
    await send(project.bootstrap, records[2000:])
    await until_done(store, records, VIEWS)

    assert second.alive()
    await assert_everything(project, store, catalog, records)


async def test_new_views_and_lanes_are_folded_from_the_beginning_without_a_restart(
    project: Project, store: OnlineStore
) -> None:
    project.publish()
    records = records_of(2000, seed=5)
    await send(project.bootstrap, records[:1000])
    worker = project.worker()
    await until_done(store, records[:1000], VIEWS)
    catalog = project.publish(MORE_DEFINITIONS)
    views = [view.id for view in catalog.views.values()]
    await until_done(store, records[:1000], views)
    await send(project.bootstrap, records[1000:])
    await until_done(store, records, views)

    await assert_everything(project, store, catalog, records)
    assert worker.terminate() == 0


async def test_a_bad_deploy_stops_the_partition_and_is_not_dead_lettered(project: Project, store: OnlineStore) -> None:
    project.publish()
    good = [r for r in records_of(600, seed=6) if r.event is not None and r.partition == 0]
    bad = [Sent(0, None, b'{"at": "yesterday"}', None) for _ in range(400)]
    await send(project.bootstrap, [*good, *bad])
    project.worker()
    await until(lambda: any_stopped(store))
    await until_done(store, good, VIEWS)

    beat = (await store.beats(f"intake:{TOPIC}"))[0]
    assert beat.stopped.startswith("rejects: from offset")
    assert "fs.error" in beat.stopped
    mark = (await store.intake_marks(TOPIC))[0]
    assert len(good) <= mark.offset + 1 < len(good) + 150
    assert json.dumps(beat.stopped) in (worker_log := project.workers[0].log), worker_log[-2000:]
