"""A rebuild gives the same values and counts however the events are divided, and whoever is killed when."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Entity, agg, col, feature_view
from featurestore.clock import HOUR, SECOND, ManualClock
from featurestore.definitions.compile import compile_view
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import event_batch
from featurestore.engine.packing import headers
from featurestore.engine.placement import partitions_of
from featurestore.engine.sections import GENERATION, OFFSET, PARTITION
from featurestore.engine.state import ViewState
from featurestore.errors import LogTooShort, NotFound, RebuildConflict
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.offline.lake import app_id
from featurestore.online.fences import REBUILD_LEASE, IntakeMark, Put, Rebuild
from featurestore.online.keys import MAX_KEY_BYTES
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from streams.folding import Count, Delivery, Piece, ViewFold, totals
from streams.rebuilding import Kept, Rebuilder
from streams.topics import shuffle_topic
from streams.wiring import Parts
from tests.unit.streams import clicks
from tests.unit.streams.states import assert_same_state

NOW = 1_772_366_400 * SECOND
PARTITIONS = 4
PIECE = 300
"""Rows of one append."""
Kind = Entity("kind", keys={"amount_kind": str})

SCHEMA: dict[str, Any] = {
    **clicks.SCHEMA,
    "fields": [*clicks.SCHEMA["fields"], {"name": "amount_kind", "type": ["null", "string"], "default": None}],
}


@feature_view(entity=clicks.User, source=clicks.Clicks, version=1, owner="o@example.com")
class ByUser:
    n_all = agg.count()
    last_kind = agg.last(col("amount_kind"))
    total_1h = agg.sum(col("amount"), window="1h")


@feature_view(entity=Kind, source=clicks.Clicks, version=1, owner="o@example.com")
class ByKind:
    n_1h = agg.count(window="1h")
    users = agg.approx_distinct(col("user"), window="1h")
    largest = agg.max(col("amount"), where=col("amount") < 50, window="1h")


@feature_view(entity=clicks.User, source=clicks.Clicks, version=1, owner="o@example.com", where=col("amount") < 9)
class SmallByUser:
    n_1h = agg.count(window="1h")


def _compiled(view: Any) -> CompiledView:
    found, faults = compile_view(view, clicks.contract(SCHEMA))
    assert found is not None, faults
    return found


USERS, KINDS, SMALL = _compiled(ByUser), _compiled(ByKind), _compiled(SmallByUser)
SOURCE = USERS.source


def catalog(*views: CompiledView) -> Catalog:
    return Catalog(
        revision=1, digest="", created_at=0, views={(view.name, view.version): view for view in views},
        services={}, aliases={}, sources={SOURCE.name: SOURCE}, contracts={},
    )  # fmt: skip


def events(count: int, seed: int) -> pa.Table:
    """Rows as they came, of four partitions: disorder, late ones, nulls, and a user that a producer sends astray."""
    rng = random.Random(seed)
    offsets = [0] * PARTITIONS
    rows = []
    for i in range(count):
        user = rng.choice([None, *(f"u{n}" for n in range(60))])
        partition = rng.randrange(PARTITIONS) if user in (None, "u7") else sum(user.encode()) % PARTITIONS
        at = NOW - 5 * HOUR + i * 5 * HOUR // count - rng.choice([0, 0, 0, 60 * SECOND, 3 * HOUR])
        kind = rng.choice([None, "a|b", "é", *(f"k{n}" for n in range(30))])
        rows.append((at, user, rng.choice([None, 0.1, rng.uniform(0, 99)]), kind, partition, offsets[partition], i))
        offsets[partition] += rng.choice([1, 1, 1, 3])  # what is left out became dead letters
    # What came within one batch of the lake came by partition: more than that the lake does not tell.
    rows.sort(key=lambda row: (row[6] // PIECE, row[4], row[5]))
    names = ("at", "user", "amount", "amount_kind", "_partition", "_offset", "came")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    return table.set_column(0, "at", table["at"].cast(pa.timestamp("us", "UTC")))


def store_in_lake(parts: Parts, table: pa.Table) -> dict[int, int]:
    """Appends in the order of coming, in pieces; returns the last offset of each partition."""
    marks: dict[int, int] = {}
    for start in range(0, table.num_rows, PIECE):
        piece = table.slice(start, PIECE)
        partition, offset = piece["_partition"].to_numpy(), piece["_offset"].to_numpy()
        for p in np.unique(partition).tolist():
            marks[p] = int(offset[partition == p].max())
        rows = in_time_order(
            system_columns(piece.select(SOURCE.contract.names), partition, offset, SOURCE.event_time, NOW + start)
        )
        parts.lake.append(events_table(SOURCE.name), rows, {app_id(SOURCE.name, p): o for p, o in marks.items()})
    return marks


class Streamed:
    """A view folded from the logs that workers would have read, of which one has `first` come before the others."""

    def __init__(self, view: CompiledView, table: pa.Table) -> None:
        self.view, self.values = view, dict[str, bytes]()
        self.folds = {p: ViewFold(view, p, ViewState(view), None) for p in range(PARTITIONS)}
        origin = table["_partition"].to_numpy()
        home = origin
        if not view.aligned:
            keys = event_batch(SOURCE, tuple(view.keys), table).keys
            home = partitions_of(keys, PARTITIONS, -1)
            home = np.where(home < 0, origin % PARTITIONS, home)
        for row in range(table.num_rows):
            self._take(self.folds[int(home[row])], int(origin[row]), table.slice(row, 1))

    def _take(self, fold: ViewFold, origin: int, row: pa.Table) -> None:
        source_offset = row["_offset"].to_numpy()
        log = source_offset if self.view.aligned else np.array([fold.resume])
        given = Delivery(
            pieces=(Piece(origin, source_offset, log),),
            events=event_batch(SOURCE, tuple(self.view.keys), row),
            appended=np.zeros(1, np.int64),
            first=fold.resume,  # what lies between became dead letters
            last=int(log[0]),
        )
        accepted = fold.accept(given)
        assert accepted is not None
        missing = fold.missing(accepted)
        effects = fold.apply(fold.load(accepted, missing, [self.values.get(key) for key in missing]))
        self.values.update(zip(effects.keys, effects.values, strict=True))
        fold.confirm(effects)

    @property
    def ledger(self) -> list[int]:
        return sum((totals(fold.fence.ledger) for fold in self.folds.values()), start=totals({})).tolist()  # type: ignore[no-any-return]


class Dies(BaseException):
    """kill -9, as far as Redis can tell."""


class Mortal(OnlineStore):
    """Its process is killed before the n-th command that writes."""

    left = 10**9

    def _spend(self) -> None:
        type(self).left -= 1
        if type(self).left < 0:
            raise Dies

    async def write(self, *given: Any, **more: Any) -> Any:
        self._spend()
        return await super().write(*given, **more)

    async def put_fence(self, *given: Any, **more: Any) -> Put:
        self._spend()
        return await super().put_fence(*given, **more)

    async def put_intake_mark(self, *given: Any, **more: Any) -> Put:
        self._spend()
        return await super().put_intake_mark(*given, **more)

    async def promote(self, *given: Any, **more: Any) -> int:
        self._spend()
        return await super().promote(*given, **more)

    async def forget(self, *given: Any, **more: Any) -> None:
        self._spend()
        await super().forget(*given, **more)

    async def swap_rebuild(self, *given: Any, **more: Any) -> bytes | None:
        self._spend()
        return await super().swap_rebuild(*given, **more)


@pytest.fixture
async def ready(parts: Parts) -> Parts:
    """With topics, and a clock that stands."""
    await parts.topics.ensure({SOURCE.topic: PARTITIONS, shuffle_topic("fs", KINDS): PARTITIONS})
    return replace(parts, clock=ManualClock(NOW))


def rebuilder(
    parts: Parts, *views: CompiledView, by: str = "one", kind: type[Rebuilder] = Rebuilder, **options: Any
) -> Rebuilder:
    given: dict[str, Any] = {
        "bootstrap": parts.bootstrap, "project": "fs", "store": parts.store, "lake": parts.lake,
        "catalog": catalog(*(views or (USERS, KINDS))), "clock": parts.clock, "by": by, "tell": lambda _: None,
        "bucket_rows": 200, "notice_seconds": 0.0,
    }  # fmt: skip
    return kind(**given | options)


async def values_of(store: OnlineStore, view: CompiledView) -> dict[str, bytes]:
    keys = sorted([key async for key in store.scan_view(view.id)])
    return {key: value or b"" for key, value in zip(keys, await store.read(view.id, keys), strict=True)}


def bodies(values: dict[str, bytes]) -> dict[str, tuple[bytes, bytes]]:
    """Without generation and offset, which tell where a value comes from and not what it is."""
    return {key: (value[:16], value[32:]) for key, value in values.items()}


async def ledger_of(store: OnlineStore, view: CompiledView) -> list[int]:
    fences = await store.fences(view.id)
    return sum((totals(fence.ledger) for fence in fences.values()), start=totals({})).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("bucket_rows", [10**6, 90])
@pytest.mark.parametrize("view", [USERS, KINDS], ids=["aligned", "shuffled"])
async def test_values_and_counts_are_those_of_the_log(ready: Parts, view: CompiledView, bucket_rows: int) -> None:
    table = events(1500, seed=1)
    vector = store_in_lake(ready, table)
    [done] = await rebuilder(ready, view, bucket_rows=bucket_rows).run()

    expected, values = Streamed(view, table), await values_of(ready.store, view)
    assert_same_state(view, expected.values, values)
    assert expected.ledger == await ledger_of(ready.store, view)
    assert expected.ledger[Count.LATE] > 0
    assert (expected.ledger[Count.DEAD_LETTERED] > 0) is view.aligned
    assert (done.entities, done.events) == (len(values), 1500)
    fences = await ready.store.fences(view.id)
    assert {p: vector[p] if view.aligned else -1 for p in range(PARTITIONS)} == {p: f.offset for p, f in fences.items()}
    heads = headers(list(values.values()))
    assert {done.generation} == set(heads[:, GENERATION].tolist()) == {f.generation for f in fences.values()}
    assert [fences[p].offset for p in heads[:, PARTITION].tolist()] == heads[:, OFFSET].tolist()
    assert [f.event_time for f in fences.values()] == [expected.folds[p].fence.event_time for p in fences]


async def test_a_rebuild_that_is_killed_anywhere_is_completed_by_the_next(ready: Parts) -> None:
    table = events(600, seed=2)
    store_in_lake(ready, table)
    await rebuilder(ready).run()
    whole = {view.id: await values_of(ready.store, view) for view in (USERS, KINDS)}
    ledgers = {view.id: await ledger_of(ready.store, view) for view in (USERS, KINDS)}

    survived = killed = 0
    for writes in range(1000):
        await ready.store._client.flushall()
        async with Mortal.connect(ready.settings.redis) as mortal:
            Mortal.left = writes
            try:
                await rebuilder(ready, store=mortal).run()
                survived += 1
            except Dies:
                killed += 1
        if killed > writes:
            assert isinstance(ready.clock, ManualClock)
            ready.clock.advance(REBUILD_LEASE)
            await rebuilder(ready, by="two").run()
        assert {} == await ready.store.rebuilds()
        for view in (USERS, KINDS):
            assert bodies(whole[view.id]) == bodies(await values_of(ready.store, view))
            assert ledgers[view.id] == await ledger_of(ready.store, view)
        if survived:
            break
    assert killed > 15


async def test_a_second_rebuild_is_refused_and_names_the_first_until_that_is_silent(ready: Parts) -> None:
    store_in_lake(ready, events(300, seed=3))
    assert isinstance(ready.clock, ManualClock)
    async with Mortal.connect(ready.settings.redis) as mortal:
        Mortal.left = 4
        with pytest.raises(Dies):
            await rebuilder(ready, USERS, by="process 7", store=mortal).run()
    ready.clock.advance(REBUILD_LEASE - 1)

    with pytest.raises(RebuildConflict, match="by_user@1 is being rebuilt by process 7, since 2026-03-01T12:00:00Z"):
        await rebuilder(ready, by="two").run()
    assert ["by_user@1"] == list(await ready.store.rebuilds())

    ready.clock.advance(1)
    [done] = await rebuilder(ready, by="two").run()
    assert (done.view, done.resumed) == ("by_user@1", True)


async def test_whoever_was_taken_over_from_stops_at_its_next_word(ready: Parts) -> None:
    store_in_lake(ready, events(300, seed=4))
    assert isinstance(ready.clock, ManualClock)

    class Freezes(OnlineStore):
        """In the middle of its work, for so long that another process completes it."""

        async def write(self, *given: Any, **more: Any) -> Any:
            assert isinstance(ready.clock, ManualClock)
            ready.clock.advance(REBUILD_LEASE)
            await rebuilder(ready, by="two").run()
            return await super().write(*given, **more)

    async with Freezes.connect(ready.settings.redis) as frozen:
        with pytest.raises(RebuildConflict, match="changed or removed by somebody else"):
            await rebuilder(ready, USERS, store=frozen).run()
    assert {} == await ready.store.rebuilds()


async def test_a_generation_is_above_all_that_was(ready: Parts) -> None:
    store_in_lake(ready, events(100, seed=5))
    [first] = await rebuilder(ready, USERS).run()
    [second] = await rebuilder(ready, USERS).run()

    assert (NOW // SECOND, NOW // SECOND + 1) == (first.generation, second.generation)


async def test_events_after_the_pinned_ones_are_left_to_the_log(ready: Parts) -> None:
    """The lake grows while a rebuild was killed: it is completed as it began."""
    table = events(600, seed=6)
    vector = store_in_lake(ready, table.slice(0, 300))
    assert isinstance(ready.clock, ManualClock)
    async with Mortal.connect(ready.settings.redis) as mortal:
        Mortal.left = 3
        with pytest.raises(Dies):
            await rebuilder(ready, USERS, store=mortal).run()
    store_in_lake(ready, table)
    ready.clock.advance(REBUILD_LEASE)
    await rebuilder(ready, USERS).run()

    assert_same_state(USERS, Streamed(USERS, table.slice(0, 300)).values, await values_of(ready.store, USERS))
    assert vector == {p: fence.offset for p, fence in (await ready.store.fences(USERS.id)).items()}


async def test_intake_goes_on_from_the_lake_where_its_marks_are_lost(ready: Parts) -> None:
    table = events(400, seed=7)
    vector = store_in_lake(ready, table)
    kept = IntakeMark(lanes={}, offset=vector[2] + 9, ledger={}, written_at=1)
    await ready.store.put_intake_mark(SOURCE.name, 2, kept)
    await rebuilder(ready).run()

    marks = await ready.store.intake_marks(SOURCE.name)
    assert kept == marks.pop(2)
    assert {p: vector[p] for p in (0, 1, 3)} == {p: mark.offset for p, mark in marks.items()}
    assert {p: {KINDS.lane: vector[p]} for p in (0, 1, 3)} == {p: mark.lanes for p, mark in marks.items()}
    rows = np.bincount(table["_partition"].to_numpy()).tolist()
    assert {p: rows[p] for p in (0, 1, 3)} == {p: mark.ledger["forwarded"] for p, mark in marks.items()}


async def test_a_lane_with_a_view_that_was_not_rebuilt_is_delivered_again(ready: Parts) -> None:
    vector = store_in_lake(ready, events(200, seed=8))
    await rebuilder(ready).run([USERS.id])

    marks = await ready.store.intake_marks(SOURCE.name)
    assert vector == {p: mark.offset for p, mark in marks.items()}
    assert [{}] * PARTITIONS == [mark.lanes for mark in marks.values()]


async def test_keys_that_are_too_long_have_no_value_and_are_counted(ready: Parts) -> None:
    table = events(300, seed=9)
    long = f"{'x' * MAX_KEY_BYTES}y"
    users = [long if user == "u7" else user for user in table["user"].to_pylist()]
    table = table.set_column(1, "user", pa.array(users))
    store_in_lake(ready, table)
    await rebuilder(ready, USERS).run()

    expected = Streamed(USERS, table)
    assert expected.ledger[Count.DEAD_LETTERED] == users.count(long) > 0
    assert expected.ledger == await ledger_of(ready.store, USERS)
    assert_same_state(USERS, expected.values, await values_of(ready.store, USERS))


async def test_an_event_that_the_view_filters_claims_no_entity_for_its_partition(ready: Parts) -> None:
    table = events(1500, seed=4)
    store_in_lake(ready, table)
    await rebuilder(ready, SMALL).run()

    expected, ledger = Streamed(SMALL, table), await ledger_of(ready.store, SMALL)
    assert_same_state(SMALL, expected.values, await values_of(ready.store, SMALL))
    # Which of the others were refused and which filtered depends on what the worker's cache held.
    assert expected.ledger[: Count.DEAD_LETTERED] == ledger[: Count.DEAD_LETTERED]


async def test_entities_that_had_left_the_store_by_themselves_do_not_come_back(ready: Parts) -> None:
    table = events(600, seed=9)
    old, fresh = table.slice(0, 580), table.slice(580)
    marks: dict[str, int] = {}
    for rows, came in ((old, NOW - 48 * HOUR), (fresh, NOW)):
        partition, offset = rows["_partition"].to_numpy(), rows["_offset"].to_numpy()
        marks |= {app_id(SOURCE.name, p): int(offset[partition == p].max()) for p in np.unique(partition).tolist()}
        columns = rows.select(SOURCE.contract.names)
        stored = in_time_order(system_columns(columns, partition, offset, SOURCE.event_time, came))
        ready.lake.append(events_table(SOURCE.name), stored, marks)
    await rebuilder(ready).run()

    kept = Streamed(KINDS, fresh).values.keys()
    assert kept == (await values_of(ready.store, KINDS)).keys()
    assert kept < Streamed(KINDS, table).values.keys()
    assert 600 == (await ledger_of(ready.store, KINDS))[Count.CONSUMED]
    assert Streamed(USERS, table).values.keys() == (await values_of(ready.store, USERS)).keys()


async def test_a_view_that_is_not_published_is_not_found(ready: Parts) -> None:
    with pytest.raises(NotFound, match="by_users@1"):
        await rebuilder(ready).run(["by_users@1"])


async def test_a_rebuild_that_cannot_begin_leaves_no_view_marked(ready: Parts) -> None:
    store_in_lake(ready, events(100, seed=10))
    whole = rebuilder(ready)
    await ready.store.swap_rebuild(KINDS.id, (await whole._new(KINDS, [], NOW)), over=b"")
    [stored] = [await ready.store.rebuild_mark(KINDS.id)]

    class Overtaken(OnlineStore):
        """Another process begins between the look and the mark."""

        async def rebuilds(self) -> dict[str, Rebuild]:
            return {}

    async with Overtaken.connect(ready.settings.redis) as store:
        with pytest.raises(RebuildConflict):
            await rebuilder(ready, store=store).run([USERS.id, KINDS.id])
    assert [KINDS.id] == list(await ready.store.rebuilds())
    assert stored == await ready.store.rebuild_mark(KINDS.id)


class Trimmed(Rebuilder):
    """As where a topic's retention took its first records."""

    begins: Mapping[str, int]

    async def _topic(self, topic: str) -> Kept:
        kept = await super()._topic(topic)
        return replace(kept, begins={**kept.begins, 1: self.begins.get(topic, 0)})


@pytest.mark.parametrize(
    ("view", "topic", "behind", "message"),
    [
        (USERS, SOURCE.topic, 2, r"clicks begins at offset \d+ in partition 1, and the lake has it up to \d+"),
        (KINDS, shuffle_topic("fs", KINDS), 0, "begins at offset [0-9]+ in partition 1"),
    ],
    ids=["aligned", "shuffled"],
)
async def test_a_rebuild_that_would_leave_a_hole_is_refused_and_changes_nothing(
    ready: Parts, view: CompiledView, topic: str, behind: int, message: str
) -> None:
    vector = store_in_lake(ready, events(200, seed=11))
    trimmed = rebuilder(ready, view, kind=Trimmed)
    assert isinstance(trimmed, Trimmed)
    trimmed.begins = {topic: vector[1] + behind}

    with pytest.raises(LogTooShort, match=message):
        await trimmed.run()
    assert ({}, {}, {}) == (
        await ready.store.rebuilds(), await ready.store.fences(view.id), await values_of(ready.store, view)
    )  # fmt: skip


async def test_an_aligned_topic_that_begins_where_the_lake_ends_has_no_hole(ready: Parts) -> None:
    vector = store_in_lake(ready, events(200, seed=11))
    trimmed = rebuilder(ready, USERS, kind=Trimmed)
    assert isinstance(trimmed, Trimmed)
    trimmed.begins = {SOURCE.topic: vector[1] + 1}

    [done] = await trimmed.run()
    assert done.events == 200


@pytest.mark.parametrize("view", [USERS, KINDS], ids=["aligned", "shuffled"])
async def test_without_events_in_the_lake_all_is_left_to_the_log(ready: Parts, view: CompiledView) -> None:
    [done] = await rebuilder(ready, view).run()

    fences = await ready.store.fences(view.id)
    assert {p: (done.generation, -1, {}) for p in range(PARTITIONS)} == {
        p: (fence.generation, fence.offset, fence.vector) for p, fence in fences.items()
    }
    assert (0, 0) == (done.entities, done.events)
