"""The golden law, the lake's part: what an export says, and a lookup in the past, is what the oracle says."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.definitions.compiled import CompiledService
from featurestore.engine.columns import ARROW_TYPES
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.offline.export import build
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.point import lookup_at
from featurestore.offline.spine import read_spine
from featurestore.types import STATUSES
from tests.laws.bridge import table_of
from tests.laws.test_golden_law import COLUMNS, FEATURES, VIEWS, assert_answer
from tests.oracle.meaning import OracleEvent, events_of, status_of
from tests.oracle.streams import Key, Schedule, instants, schedules, streams

KEY_KINDS = {"user": pa.string(), "shop": pa.int64()}


def fill(lake: Lake, schedule: Schedule) -> None:
    """Appends a schedule as intake does: replays and all, each batch with the marks of its partitions."""
    for batch in schedule:
        partitions = np.array([event["partition"] for event in batch])
        offsets = np.array([event["offset"] for event in batch])
        table = table_of(list(batch), COLUMNS).drop_columns(["_partition", "_offset"])
        rows = in_time_order(system_columns(table, partitions, offsets, "event_time", visible_time=0))
        marks = {app_id("events", int(p)): int(offsets[partitions == p].max()) for p in np.unique(partitions)}
        lake.append(events_table("events"), once(rows), marks)


def once(rows: pa.Table) -> pa.Table:
    """A batch of the schedule may hold an event twice; a consumer's batch cannot."""
    seen = dict.fromkeys(zip(rows["_partition"].to_pylist(), rows["_offset"].to_pylist(), strict=True))
    first = {position: row for row, position in reversed(list(enumerate(
        zip(rows["_partition"].to_pylist(), rows["_offset"].to_pylist(), strict=True)
    )))}  # fmt: skip
    return rows.take(pa.array(sorted(first[position] for position in seen)))


def spine_of(rows: list[tuple[Key, int]], columns: tuple[str, ...]) -> pa.Table:
    data: dict[str, Any] = {name: pa.array([key[name] for key, _ in rows], KEY_KINDS[name]) for name in columns}
    data["event_time"] = pa.array([at for _, at in rows], pa.timestamp("us", "UTC"))
    return pa.table(data)


@pytest.mark.parametrize("entity", VIEWS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_an_export_from_the_lake_equals_the_oracle(entity: str, data: st.DataObject) -> None:
    view = VIEWS[entity]
    stream = data.draw(streams(min_events=1))
    columns = tuple(view.keys)
    asked: list[tuple[Key, int]] = [
        (key, data.draw(instants(stream, key=key))) for key in stream.keys(*columns) for _ in range(2)
    ]
    asked.append((dict.fromkeys(columns), 0))
    rows = data.draw(st.permutations(asked))
    with tempfile.TemporaryDirectory() as directory:
        lake = Lake(str(Path(directory) / "lake"))
        fill(lake, data.draw(schedules(stream)))
        spine = read_spine(spine_of(rows, columns), view.keys)
        answered = tuple((view.name, name) for name in view.order)
        service = CompiledService("service", ((view.name, view.version),), answered, fingerprint="")
        made = build(lake, [view], service, spine, status=True)
        past = lookup_at(lake, [view], spine.keys, spine.at)[view.id]

    assert made.num_rows == len(rows)
    for name in view.order:
        dtype, many = view.types[name]
        assert made.schema.field(f"view.{name}").type == (pa.list_(ARROW_TYPES[dtype]) if many else ARROW_TYPES[dtype])
    exported = {name: made[f"view.{name}"].to_pylist() for name in view.order}
    looked_up = {column.name: column.to_list() for column in past}
    for row, (key, at) in enumerate(rows):
        events: list[OracleEvent] = [] if None in key.values() else events_of(stream.events, key)
        for source, values in (("export", exported), ("lookup", looked_up)):
            assert_answer(events, at, {name: column[row] for name, column in values.items()}, f"{source} {key}")
        for f in FEATURES:
            assert made[f"view.{f.name}__status"][row].as_py() == status_of(f, events, at), f.name
    assert {STATUSES[int(code)].value for column in past for code in column.status} <= {
        "ok", "default", "not_found", "expired",
    }  # fmt: skip
