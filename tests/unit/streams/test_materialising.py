"""Which entities get a row, and with what: a change is noted once, and handed over again where it was put back."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from featurestore.engine.columns import EventBatch, event_batch
from featurestore.offline.materialised import features_table
from streams import materialising
from streams.materialising import Changes, FeatureRows
from streams.wiring import Parts
from tests.unit.serving import flights
from tests.unit.streams.clicks import compiled


def events(users: list[str | None]) -> EventBatch:
    keys = pa.array(users, pa.string())
    n = len(users)
    return EventBatch(keys=keys, time=np.arange(n), seq=np.arange(n), columns={"user": keys, "at": pa.array(range(n))})


@pytest.fixture
def changes() -> Changes:
    return Changes(compiled())


def test_an_entity_that_changed_twice_is_taken_once_with_its_key_columns(changes: Changes) -> None:
    changes.note(events(["a", None, "b"]), ["a", "b"], 3)
    changes.note(events(["b", "c", "d"]), ["c", "b"], 9)
    taken = changes.take()

    assert taken is not None
    entities, offset = taken
    assert offset == 9
    assert sorted(zip(*entities.to_pydict().values(), strict=True)) == [("a", "a"), ("b", "b"), ("c", "c")]
    assert changes.take() is None


def test_what_was_put_back_is_taken_again_with_what_came_meanwhile(changes: Changes) -> None:
    changes.note(events(["a", "b"]), ["a", "b"], 3)
    taken = changes.take()
    assert taken is not None
    changes.note(events(["b", "c"]), ["b", "c"], 5)
    changes.put_back(taken[0])
    again = changes.take()

    assert again is not None
    assert (sorted(again[0].column(0).to_pylist()), again[1]) == (["a", "b", "c"], 5)


def test_while_the_lake_is_away_only_the_entities_are_kept(changes: Changes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialising, "COMPACT_ROWS", 10)
    for offset in range(20):
        changes.note(events(["a", "b", "c"]), ["a", "c"], offset)

    assert sum(table.num_rows for table in changes._events) <= 13
    taken = changes.take()
    assert taken is not None
    assert sorted(taken[0].column(0).to_pylist()) == ["a", "c"]


async def test_a_row_never_claims_an_offset_that_was_not_noted(parts: Parts) -> None:
    """The stored value may be of a later batch already, which then gets a row of its own."""
    view, now = flights.view("airport_delay"), parts.clock.now()
    departures = flights.departures([(now - 1000, "JFK", "AA", 1, 5.0), (now - 500, "LGA", "DL", 2, 1.0)])
    stored = flights.stored(view, departures, offset=12)
    await parts.store.write(view.id, list(stored), list(stored.values()))
    batch = event_batch(view.source, tuple(view.keys), departures)
    rows = FeatureRows(parts)
    changes = rows.open(view, 0)
    try:
        for touched, offset in ((["JFK", "LGA"], 9), (["JFK"], 12)):
            changes.note(batch, touched, offset)
            await rows.flush()
    finally:
        rows.stop()

    found = pl.read_delta(f"{parts.lake.url}/{features_table(view)}").sort("_offset", "_key")
    assert found.select("_key", "origin", "_offset").rows() == [
        ("JFK", "JFK", 9),
        ("LGA", "LGA", 9),
        ("JFK", "JFK", 12),
    ]
    assert found["delay_max_24h"].to_list() == [5.0, 1.0, 5.0]
