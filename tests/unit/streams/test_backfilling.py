"""A backfill puts whole values in the place of those that are served, however often it is killed, or leaves these."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from featurestore.clock import HOUR, MINUTE, SECOND, ManualClock
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.packing import headers
from featurestore.engine.read import ViewReader
from featurestore.engine.sections import GENERATION, NOBODY, OFFSET, PARTITION
from featurestore.errors import LogTooShort, RebuildConflict, Unavailable
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.offline.loading import Loader, Terms
from featurestore.online.fences import REBUILD_LEASE, Beat, Fence, Stage
from featurestore.online.keys import staged
from featurestore.online.store import OnlineStore
from featurestore.types import STATUS_CODES, Status
from streams import backfilling
from streams.backfilling import RESUMED_WITHIN, Backfiller
from streams.folding import NOTHING
from streams.regenerating import Kept
from streams.topics import shuffle_topic
from streams.wiring import Parts
from tests.unit.streams.test_rebuilding import (
    KINDS,
    NOW,
    PARTITIONS,
    SOURCE,
    USERS,
    Dies,
    Mortal,
    Streamed,
    bodies,
    events,
    rebuilder,
    store_in_lake,
    values_of,
)

VIEWS = (USERS, KINDS)


@pytest.fixture
async def ready(parts: Parts) -> Parts:
    """With topics, and a clock that stands."""
    await parts.topics.ensure({SOURCE.topic: PARTITIONS, shuffle_topic("fs", KINDS): PARTITIONS})
    return replace(parts, clock=ManualClock(NOW))


def backfiller(parts: Parts, *views: CompiledView, by: str = "one", **options: Any) -> Backfiller:
    made = rebuilder(parts, *(views or VIEWS), by=by, **{"kind": Backfiller} | options)
    assert isinstance(made, Backfiller)
    return made


async def put_streamed(
    store: OnlineStore, view: CompiledView, table: pa.Table, streamed: Streamed | None = None
) -> dict[int, Fence]:
    """What workers would have left in the store."""
    streamed = streamed or Streamed(view, table)
    await store.write(view.id, list(streamed.values), list(streamed.values.values()))
    fences = {p: fold.fence for p, fold in streamed.folds.items()}
    for p, fence in fences.items():
        if fence.offset != NOTHING:
            await store.put_fence(view.id, p, fence)
    return fences


def history(count: int) -> pa.Table:
    n = np.arange(count)
    return pa.table(
        {
            "at": pa.array(NOW - 400 * HOUR + n * MINUTE, pa.timestamp("us", "UTC")),
            "user": pa.array([f"u{i % 90}" for i in n.tolist()]),  # of which thirty are not in the stream
            "amount": pa.array(n * 0.25),
            "amount_kind": pa.array([f"k{i % 40}" for i in n.tolist()]),
        }
    )


def load(parts: Parts, path: Path, count: int) -> pa.Table:
    table = history(count)
    pq.write_table(table, path)
    terms = Terms(NOW - 300 * HOUR, "", path.parent, 0.5, "a test")
    found = Loader(parts.lake, SOURCE, terms, ManualClock(NOW), lambda _: None).load(path)
    assert found.loaded == count
    return table


async def counts_of(store: OnlineStore, view: CompiledView) -> int:
    """Events in lifetime counts or, where a view has none, entities."""
    values = await values_of(store, view)
    reading = ViewReader(view).read(list(values.values()), np.full(len(values), NOW + HOUR), 0)
    return sum(sum(column.to_list()) for column in reading.columns if column.name == "n_all")


@pytest.mark.parametrize("view", VIEWS, ids=["aligned", "shuffled"])
async def test_without_a_load_values_are_those_of_the_log_at_a_new_generation(ready: Parts, view: CompiledView) -> None:
    table = events(1500, seed=1)
    store_in_lake(ready, table)
    fences = await put_streamed(ready.store, view, table)
    before = await values_of(ready.store, view)
    [done] = await backfiller(ready).run([view.id])

    after, new = await values_of(ready.store, view), await ready.store.fences(view.id)
    assert bodies(before) == bodies(after)
    assert {done.generation} == set(headers(list(after.values()))[:, GENERATION].tolist())
    assert {p: (f.offset, f.vector) for p, f in fences.items()} == {p: (f.offset, f.vector) for p, f in new.items()}
    assert ({}, {}) == (await ready.store.rebuilds(), await values_of(ready.store, replace_id(view)))


def replace_id(view: CompiledView) -> CompiledView:
    name, _, version = staged(view.id).partition("@")
    made = replace(view, name=name)
    object.__setattr__(made, "version", version)
    assert made.id == staged(view.id)
    return made


async def test_each_partition_of_a_shuffle_goes_on_from_its_own_fence(ready: Parts) -> None:
    """The lake has more than the log's readers had: what is behind their fences is left to the log."""
    table = events(900, seed=2)
    store_in_lake(ready, table)
    await put_streamed(ready.store, KINDS, table.slice(0, 500))
    before = await values_of(ready.store, KINDS)
    await backfiller(ready).run([KINDS.id])

    assert bodies(before) == bodies(await values_of(ready.store, KINDS))


async def test_a_new_version_begins_where_another_view_of_its_lane_is(ready: Parts) -> None:
    table = events(900, seed=3)
    store_in_lake(ready, table)
    fences = await put_streamed(ready.store, KINDS, table)
    newer = replace(KINDS, version=2)
    await backfiller(ready, KINDS, newer).run([newer.id])

    assert bodies(await values_of(ready.store, KINDS)) == bodies(await values_of(ready.store, newer))
    assert {p: f.offset for p, f in fences.items()} == {
        p: f.offset for p, f in (await ready.store.fences(newer.id)).items()
    }


@pytest.mark.parametrize("view", VIEWS, ids=["aligned", "shuffled"])
async def test_what_was_loaded_is_in_the_values_and_entities_of_files_belong_to_nobody(
    ready: Parts, tmp_path: Path, view: CompiledView
) -> None:
    table = events(900, seed=4)
    store_in_lake(ready, table)
    await put_streamed(ready.store, view, table)
    before = await counts_of(ready.store, view)
    loaded = load(ready, tmp_path / "h.parquet", 700)
    [done] = await backfiller(ready, view).run()  # what lacks it, without being named

    assert [] == await backfiller(ready, view).run()
    values = await values_of(ready.store, view)
    assert done.entities == len(values)
    if view.aligned:
        assert before + loaded.num_rows == await counts_of(ready.store, view)
        head = headers(list(values.values()))
        nobody = {key for key, p in zip(values, head[:, PARTITION].tolist(), strict=True) if p == NOBODY}
        assert {f"u{n}" for n in range(60, 90)} == nobody
        assert {NOTHING} == set(head[head[:, PARTITION] == NOBODY, OFFSET].tolist())
    else:  # windows only: entities of long ago have nothing in them
        assert {} == {key: value for key, value in values.items() if key in {f"k{n}" for n in range(30, 40)}}
    assert {1} == {fence.loads for fence in (await ready.store.fences(view.id)).values()}


class Whole(Backfiller):
    """Its topics have every record: nobody need ask the broker, which takes longer than all the rest."""

    async def _topic(self, topic: str) -> Kept:
        return Kept(topic, dict.fromkeys(range(PARTITIONS), 0))


async def test_a_backfill_that_is_killed_anywhere_is_completed_by_the_next(ready: Parts, tmp_path: Path) -> None:
    table = events(500, seed=5)
    store_in_lake(ready, table)
    load(ready, tmp_path / "h.parquet", 300)

    streamed = {view.id: Streamed(view, table) for view in VIEWS}

    async def put_all() -> None:
        await ready.store._client.flushall()
        for view in VIEWS:
            await put_streamed(ready.store, view, table, streamed[view.id])

    await put_all()
    await backfiller(ready, kind=Whole).run()
    whole = {view.id: bodies(await values_of(ready.store, view)) for view in VIEWS}
    survived = killed = 0
    for writes in range(1000):
        await put_all()
        old = {view.id: bodies(await values_of(ready.store, view)) for view in VIEWS}
        async with Mortal.connect(ready.settings.redis) as mortal:
            Mortal.left = writes
            try:
                await backfiller(ready, store=mortal, kind=Whole).run()
                survived += 1
            except Dies:
                killed += 1
        marks = await ready.store.rebuilds()
        for view in VIEWS:
            if marks.get(view.id) is not None and marks[view.id].stage is Stage.FILLING:
                assert old[view.id] == bodies(await values_of(ready.store, view))  # nothing was touched yet
        assert isinstance(ready.clock, ManualClock)
        ready.clock.advance(REBUILD_LEASE)
        while await backfiller(ready, by="two", kind=Whole).run():
            pass
        assert {} == await ready.store.rebuilds()
        for view in VIEWS:
            assert whole[view.id] == bodies(await values_of(ready.store, view))
            assert {} == await values_of(ready.store, replace_id(view))
        if survived:
            break
    assert killed > 15


async def test_what_waited_too_long_is_begun_anew(ready: Parts) -> None:
    table = events(500, seed=6)
    store_in_lake(ready, table)
    await put_streamed(ready.store, USERS, table)
    async with Mortal.connect(ready.settings.redis) as mortal:
        Mortal.left = 4
        with pytest.raises(Dies):
            await backfiller(ready, store=mortal).run([USERS.id])
    first = (await ready.store.rebuilds())[USERS.id]
    assert first.done
    assert isinstance(ready.clock, ManualClock)
    ready.clock.advance(RESUMED_WITHIN)
    [done] = await backfiller(ready).run()

    assert not done.resumed
    assert done.generation > first.generation


async def test_values_that_the_store_lost_meanwhile_are_noticed_and_nothing_is_replaced(ready: Parts) -> None:
    table = events(500, seed=7)
    store_in_lake(ready, table)
    await put_streamed(ready.store, USERS, table)
    before = await values_of(ready.store, USERS)

    class Loses(OnlineStore):
        async def swap_rebuild(self, view_id: str, mark: Any, *, over: bytes) -> bytes | None:
            if mark is not None and len(mark.done) == 3:
                keys = [key async for key in ready.store.scan_view(staged(view_id))]
                await ready.store.forget(staged(view_id), keys[:5])
            return await super().swap_rebuild(view_id, mark, over=over)

    async with Loses.connect(ready.settings.redis) as store:
        with pytest.raises(RebuildConflict, match="nothing was replaced"):
            await backfiller(ready, store=store).run([USERS.id])
    assert before == await values_of(ready.store, USERS)
    [done] = await backfiller(ready).run([USERS.id])
    assert done.entities == len(before)


async def test_a_rebuild_that_was_left_unfinished_comes_first(ready: Parts) -> None:
    store_in_lake(ready, events(300, seed=8))
    async with Mortal.connect(ready.settings.redis) as mortal:
        Mortal.left = 3
        with pytest.raises(Dies):
            await rebuilder(ready, USERS, store=mortal).run()
    assert isinstance(ready.clock, ManualClock)
    ready.clock.advance(REBUILD_LEASE)

    with pytest.raises(RebuildConflict, match="a rebuild of by_user@1 was left unfinished by one"):
        await backfiller(ready).run([USERS.id])


async def test_a_rebuild_takes_the_place_of_a_backfill_that_was_left_unfinished(ready: Parts) -> None:
    table = events(300, seed=9)
    store_in_lake(ready, table)
    await put_streamed(ready.store, USERS, table)
    async with Mortal.connect(ready.settings.redis) as mortal:
        Mortal.left = 4
        with pytest.raises(Dies):
            await backfiller(ready, store=mortal).run([USERS.id])
    assert isinstance(ready.clock, ManualClock)
    ready.clock.advance(REBUILD_LEASE)
    [done] = await rebuilder(ready, USERS).run([USERS.id])

    assert not done.resumed
    assert {} == await ready.store.rebuilds()
    assert bodies(Streamed(USERS, table).values) == bodies(await values_of(ready.store, USERS))


async def test_a_second_backfill_of_a_view_is_refused_while_the_first_lives(ready: Parts) -> None:
    store_in_lake(ready, events(300, seed=10))
    async with Mortal.connect(ready.settings.redis) as mortal:
        Mortal.left = 3
        with pytest.raises(Dies):
            await backfiller(ready, store=mortal, by="process 7").run([USERS.id])

    with pytest.raises(RebuildConflict, match="process 7, since"):
        await backfiller(ready).run([USERS.id])


async def test_events_that_are_online_and_not_in_the_lake_are_waited_for(
    ready: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfilling, "LAKE_SECONDS", 0.3)
    table = events(300, seed=11)
    store_in_lake(ready, table.slice(0, 200))
    await put_streamed(ready.store, KINDS, table)

    with pytest.raises(Unavailable, match="are in online values, and not in the lake"):
        await backfiller(ready).run([KINDS.id])
    assert {} == await ready.store.rebuilds()


async def test_a_log_that_does_not_reach_back_to_the_values_is_refused(ready: Parts) -> None:
    table = events(300, seed=12)
    vector = store_in_lake(ready, table)

    class Trimmed(Backfiller):
        async def _topic(self, topic: str) -> Kept:
            return Kept(topic, {p: vector[p] + 2 for p in range(PARTITIONS)})

    with pytest.raises(LogTooShort, match="by_user@1 cannot be computed without a hole"):
        await rebuilder(ready, USERS, kind=Trimmed).run([USERS.id])  # type: ignore[arg-type]
    assert {} == await ready.store.rebuilds()


async def test_what_readers_see_meanwhile(ready: Parts, tmp_path: Path) -> None:
    """As they were until all are there, stale while they are replaced and until workers go on from them."""
    table = events(300, seed=13)
    store_in_lake(ready, table)
    await put_streamed(ready.store, USERS, table)
    board = FreshnessBoard(ready.store, ready.clock, lake=ready.lake)
    board.watch([USERS])
    seen: dict[Stage, set[str]] = {}

    async def beat(generation: int) -> None:
        beats = {p: Beat(ready.clock.now(), 9, 9, 0.0, generation=generation) for p in range(PARTITIONS)}
        await ready.store.put_beats(f"intake:{SOURCE.name}", beats)
        await ready.store.put_beats(f"fold:{USERS.id}", beats)

    async def status() -> str:
        await board.look_for_loads()
        await board.refresh()
        codes: Mapping[int, Status] = {STATUS_CODES[status]: status for status in Status}
        uniform = board.of(USERS.id).uniform
        assert uniform is not None
        return str(codes[uniform])

    class Watched(OnlineStore):
        async def write(self, *given: Any, **more: Any) -> Any:
            seen.setdefault(Stage.FILLING, set()).add(await status())
            return await super().write(*given, **more)

        async def promote(self, *given: Any, **more: Any) -> int:
            seen.setdefault(Stage.PROMOTING, set()).add(await status())
            return await super().promote(*given, **more)

    await beat(0)
    assert "ok" == await status()
    async with Watched.connect(ready.settings.redis) as store:
        await backfiller(ready, store=store).run([USERS.id])
    assert {Stage.FILLING: {"ok"}, Stage.PROMOTING: {"stale"}} == seen
    assert "stale" == await status()
    await beat(NOW // SECOND)
    assert "ok" == await status()

    load(ready, tmp_path / "h.parquet", 100)
    assert "stale" == await status()
    assert board.report()[USERS.id][0].incomplete == "1 loaded files; run: featurestore backfill by_user@1"
    assert isinstance(ready.clock, ManualClock)
    [done] = await backfiller(ready, USERS).run()
    await beat(done.generation)
    assert "ok" == await status()


@pytest.mark.parametrize("view", VIEWS, ids=["aligned", "shuffled"])
async def test_values_that_began_on_a_trimmed_topic_say_so_until_they_are_backfilled(
    ready: Parts, view: CompiledView
) -> None:
    table = events(1500, seed=14)
    store_in_lake(ready, table)
    await put_streamed(ready.store, view, table.filter(pc.greater_equal(table["_offset"], 500)))
    board = FreshnessBoard(ready.store, ready.clock, lake=ready.lake)
    board.watch([view])

    async def status(generation: int) -> tuple[set[int], Mapping[str, str]]:
        beats = {p: Beat(ready.clock.now(), 9, 9, 0.0, generation=generation) for p in range(PARTITIONS)}
        await ready.store.put_beats(f"intake:{SOURCE.name}", beats)
        await ready.store.put_beats(f"fold:{view.id}", beats)
        await board.refresh()
        return set(board.of(view.id).codes.tolist()), board.incomplete()

    stale, ok = {STATUS_CODES[Status.STALE]}, {STATUS_CODES[Status.OK]}
    said = "perhaps events of before its values began: the lake is being asked"
    assert (stale, {view.id: said}) == await status(0)
    await board.look_for_loads()
    said = f"events that the topic no longer had when its values began; run: featurestore backfill {view.id}"
    assert (stale, {view.id: said}) == await status(0)

    [done] = await backfiller(ready, view).run()  # finds it by itself
    assert view.id == done.view
    await board.look_for_loads()
    assert (ok, {}) == await status(done.generation)
    whole = Streamed(view, table)
    assert whole.values.keys() == (await values_of(ready.store, view)).keys()
    assert [] == await backfiller(ready, view).run()


@pytest.mark.parametrize("view", VIEWS, ids=["aligned", "shuffled"])
async def test_values_that_began_where_the_lake_does_lack_nothing(ready: Parts, view: CompiledView) -> None:
    """A topic that was trimmed before there was a store, or whose first records became dead letters."""
    table = events(600, seed=15)
    kept = table.filter(pc.greater_equal(table["_offset"], 40))
    store_in_lake(ready, kept)
    await put_streamed(ready.store, view, kept)
    assert [] == await backfiller(ready, view).run()


def fence_of(first: int, begins: dict[int, int]) -> Fence:
    return Fence(0, first + 99, dict.fromkeys(begins, 99), {}, NOW, NOW, NOW, begins=begins, first=first)


async def test_the_partition_that_has_the_first_events_may_tell_of_itself_last(ready: Parts) -> None:
    store_in_lake(ready, events(600, seed=16))
    board = FreshnessBoard(ready.store, ready.clock, lake=ready.lake)
    board.watch([KINDS])
    lacks = []
    for partition, begins in ((1, {0: 200}), (3, {0: 0})):
        await ready.store.put_fence(KINDS.id, partition, fence_of(0, begins))
        await board.refresh()
        await board.look_for_loads()
        lacks.append([*board.incomplete()])

    assert [[KINDS.id], []] == lacks
    assert [] == await backfiller(ready, KINDS).run()


async def test_one_partition_of_a_shuffle_may_have_been_trimmed_alone(ready: Parts) -> None:
    """Others hold the first events of the source; of its own entities the values lack some all the same."""
    table = events(600, seed=17)
    store_in_lake(ready, table)
    fences = await put_streamed(ready.store, KINDS, table)
    board = FreshnessBoard(ready.store, ready.clock, lake=ready.lake)
    board.watch([KINDS])
    await board.refresh()
    await board.look_for_loads()
    assert {} == board.incomplete()

    late = msgspec.structs.replace(fences[2], begins={0: 200}, first=9, offset=fences[2].offset + 1)
    await ready.store.put_fence(KINDS.id, 2, late)
    await board.refresh()
    await board.look_for_loads()
    assert [KINDS.id] == [*board.incomplete()]
    [done] = await backfiller(ready, KINDS).run()
    assert KINDS.id == done.view
