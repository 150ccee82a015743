"""What a comparison calls equal, what it calls different, and the cause that it gives."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.clock import HOUR, MINUTE, ManualClock
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import canonical_keys, event_batch
from featurestore.engine.state import ViewState
from featurestore.errors import UsageError
from featurestore.monitor import comparing
from featurestore.monitor.comparing import Cause, Comparison, compare_versions, compare_with_lake
from featurestore.offline.lake import Lake
from featurestore.offline.loading import Loader, Terms
from featurestore.online.store import OnlineStore
from tests.unit.streams.test_backfilling import put_streamed
from tests.unit.streams.test_rebuilding import KINDS, NOW, SOURCE, USERS, events, store_in_lake

CLOCK = ManualClock(NOW)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[OnlineStore]:
    async with OnlineStore.connect(redis_url) as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "STILL_SECONDS", 0.3)


def stored(lake: Lake, table: pa.Table) -> None:
    parts: Any = SimpleNamespace(lake=lake)
    store_in_lake(parts, table)


async def with_lake(store: OnlineStore, lake: Lake, view: CompiledView, sample: int = 1000) -> Comparison:
    return await compare_with_lake(store, lake, SOURCE, view, sample=sample, clock=CLOCK)


def second(view: CompiledView, **changes: Any) -> CompiledView:
    return replace(view, version=2, **changes)


@pytest.mark.parametrize("view", [USERS, KINDS], ids=["aligned", "shuffled"])
async def test_online_values_are_those_of_the_lake_up_to_their_fences(
    store: OnlineStore, lake: Lake, view: CompiledView
) -> None:
    table = events(900, seed=1)
    stored(lake, table)
    await put_streamed(store, view, table.slice(0, 500))  # the lake is ahead
    found = await with_lake(store, lake, view)

    assert found.compared == found.sampled > 20
    assert 0 == found.unexplained == found.moving
    assert set(view.order) == {feature.feature for feature in found.features}
    assert {1.0} == {feature.equal / feature.compared for feature in found.features}


async def test_a_value_that_is_wrong_is_found_and_the_worst_comes_first(store: OnlineStore, lake: Lake) -> None:
    table = events(900, seed=2)
    stored(lake, table)
    await put_streamed(store, USERS, table)
    [key], [other] = await written(store, table.slice(0, 1)), await written(store, table.slice(1, 1))
    found = await with_lake(store, lake, USERS)

    assert {"n_all", "total_1h"} <= {f.feature for f in found.features if f.equal < f.compared}
    [counts] = [feature for feature in found.features if feature.feature == "n_all"]
    assert {Cause.UNKNOWN: 2} == counts.causes
    assert {key, other} == {difference.entity for difference in counts.worst}
    distances = [difference.distance for difference in counts.worst]
    assert sorted(distances, key=lambda d: -(d or 0)) == distances
    assert found.unexplained > 0


async def written(store: OnlineStore, rows: pa.Table) -> list[str]:
    """Values of these events only, at the fences, in the place of what was there."""
    batch, state = event_batch(SOURCE, ("user",), rows), ViewState(USERS)
    state.load(batch.entities.names, [None] * len(batch.entities.names), 0)
    folded = state.fold(batch, np.arange(len(batch)))
    fences = await store.fences(USERS.id)
    p = int(rows["_partition"][0].as_py())
    await store.forget(USERS.id, folded.keys)
    values = state.encode(folded.slots, generation=0, partition=p, offset=fences[p].offset)
    await store.write(USERS.id, folded.keys, values)
    return folded.keys


async def test_history_that_was_loaded_and_not_backfilled_is_the_cause(
    store: OnlineStore, lake: Lake, tmp_path: Path
) -> None:
    table = events(300, seed=3)
    stored(lake, table)
    await put_streamed(store, USERS, table)
    history = pa.table(
        {
            "at": pa.array([NOW - 300 * HOUR + i * MINUTE for i in range(60)], pa.timestamp("us", "UTC")),
            "user": [f"u{i}" for i in range(60)],
        }
    )
    pq.write_table(history, tmp_path / "h.parquet")
    terms = Terms(NOW - 200 * HOUR, "", tmp_path, 0.5, "a test")
    Loader(lake, SOURCE, terms, CLOCK, lambda _: None).load(tmp_path / "h.parquet")
    found = await with_lake(store, lake, USERS)

    causes = {feature.feature: dict(feature.causes) for feature in found.features}
    assert {"n_all": {"history": found.compared}, "last_kind": {}, "total_1h": {}} == causes


async def test_events_that_the_lake_lacks_are_the_cause(store: OnlineStore, lake: Lake) -> None:
    table = events(300, seed=4)
    stored(lake, table.slice(0, 250))
    await put_streamed(store, USERS, table)
    found = await with_lake(store, lake, USERS)

    assert {Cause.PROGRESS} == {cause for feature in found.features for cause in feature.causes}


async def test_two_versions_of_one_meaning_are_equal_and_a_changed_feature_is_explained(store: OnlineStore) -> None:
    table = events(900, seed=5)
    changed = second(
        USERS,
        aggregates=tuple(replace(a, window=2 * HOUR) if a.name == "total_1h" else a for a in USERS.aggregates),
        fingerprint="ab" * 32,
    )
    for view in (USERS, changed):
        await put_streamed(store, view, table)
    found = await compare_versions(store, USERS, changed, sample=1000, clock=CLOCK)

    by_name = {feature.feature: feature for feature in found.features}
    assert 0 == found.unexplained
    assert by_name["n_all"].equal == by_name["n_all"].compared == found.compared > 20
    assert {Cause.DEFINITION} == set(by_name["total_1h"].causes)


async def test_what_one_version_has_not_had_yet_is_the_cause_and_entities_of_one_are_named(store: OnlineStore) -> None:
    table = events(900, seed=6)
    newer = second(USERS)
    await put_streamed(store, USERS, table)
    await put_streamed(store, newer, table.slice(0, 60))
    found = await compare_versions(store, USERS, newer, sample=1000, clock=CLOCK)

    assert {Cause.PROGRESS} == {cause for feature in found.features for cause in feature.causes}
    assert found.only_left
    assert [] == found.only_right
    assert found.sampled == found.compared + len(found.only_left)


async def test_features_that_only_one_has_are_named(store: OnlineStore) -> None:
    table = events(100, seed=7)
    fewer = second(
        USERS,
        aggregates=tuple(a for a in USERS.aggregates if a.name != "n_all"),
        order=tuple(name for name in USERS.order if name != "n_all"),
    )
    for view in (USERS, fewer):
        await put_streamed(store, view, table)
    found = await compare_versions(store, USERS, fewer, sample=10, clock=CLOCK)

    assert (["n_all"], 10) == (found.unmatched, found.sampled)


async def test_values_that_no_fence_vouches_for_are_left_out(store: OnlineStore, lake: Lake) -> None:
    table = events(300, seed=8)
    stored(lake, table)
    streamed = await put_streamed(store, USERS, table)
    await store._client.hdel("fs:fence:by_user@1", str(max(streamed)))
    found = await with_lake(store, lake, USERS)

    assert found.moving > 0
    assert found.compared == found.sampled - found.moving
    assert found.unexplained == 0


async def test_views_of_other_entities_cannot_be_compared(store: OnlineStore) -> None:
    with pytest.raises(UsageError, match="by_user@1 is by user, and by_kind@1 by amount_kind"):
        await compare_versions(store, USERS, KINDS, sample=10, clock=CLOCK)


def test_keys_are_taken_apart_as_they_were_put_together() -> None:
    texts = ["a|b", "\\", "", "é|\\|", "x"]
    joined = canonical_keys([pa.array(texts), pa.array(list(reversed(texts)))]).to_pylist()

    assert [comparing._split(key) for key in joined] == [list(p) for p in zip(texts, reversed(texts), strict=True)]
