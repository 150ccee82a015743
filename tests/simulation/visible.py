"""The record of when events became readable, held to when their values reached the store.

An event's instant is read here row by row, as ADR 10 says it; what exports read it with must say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.definitions.compiled import CompiledView
from featurestore.engine.columns import SEQ_BITS, EventBatch
from featurestore.offline.events import VISIBLE_TIME
from featurestore.offline.files import OFFSET, PARTITION
from featurestore.offline.visibility import AFTER, PARTITIONS, SOURCE_PARTITION, UP_TO, Visibility, visible_table
from featurestore.online.keys import Keyspace
from streams.shuffle import decode
from tests.e2e.streaming import KEYS, Sent
from tests.simulation.events import SHUFFLE
from tests.simulation.store import PROJECT
from tests.simulation.worker import Site
from tests.simulation.world import Violation

Event = tuple[int, int]
"""Source partition and offset."""
Row = dict[str, Any]
INTAKE = 7
"""Stands for the instant of intake (µs), which is before every other of a schedule."""


@dataclass(frozen=True)
class Place:
    """Where fold reads an event."""

    home: int
    log: int
    """Offset, of the first delivery where there are several."""
    entity: str
    """Its canonical key."""


def unrecorded(site: Site, view: CompiledView, records: Sequence[Sent]) -> list[Event]:
    """Events that concern the view and of which no row says that they were readable."""
    reached: dict[tuple[int, int], int] = {}
    for row in _rows(site, view):
        pair = row[PARTITION], row[SOURCE_PARTITION]
        reached[pair] = max(reached.get(pair, -1), row[UP_TO])
    places = _places(site, view, records)
    return [event for event, place in places.items() if reached.get((place.home, event[0]), -1) < event[1]]


def check_visible(site: Site, view: CompiledView, records: Sequence[Sent], *, refilled: bool) -> None:
    """Raises Violation. `refilled`: a generation may have begun with events of which nothing was recorded, and whose
    instants are those of intake."""
    if lacking := unrecorded(site, view, records):
        raise Violation(f"{view.id}: no row says when {lacking} became readable")
    rows, places = _rows(site, view), _places(site, view, records)
    vectors = _vectors(site, view)
    for row in rows:
        _check_row(view, row, vectors)
    instants = _as_exported(site, view, places)
    for event, place in places.items():
        told = min(row[VISIBLE_TIME] for row in rows if _says(row, place, event))
        read = instants[event]
        if read != told and not (refilled and read == INTAKE):
            raise Violation(f"{view.id}: exports have {event} readable at {read}, and the record says {told}")
        [name] = Keyspace(PROJECT).values(view.id, [place.entity])
        first = min((at for offset, at in site.redis.readable[name] if offset >= place.log), default=None)
        if first is None or told < first:
            raise Violation(f"{view.id}: {event} is said to be readable at {told}, and was from {first} on")


def _says(row: Row, place: Place, event: Event) -> bool:
    """An event was readable at the earliest instant of the rows at or beyond its offset."""
    source, offset = event
    return bool(row[PARTITION] == place.home and row[SOURCE_PARTITION] == source and row[UP_TO] >= offset)


def _check_row(view: CompiledView, row: Row, vectors: Mapping[int, Sequence[Mapping[int, int]]]) -> None:
    """It says what the log says up to its place, so that no two can contradict each other."""
    if row[PARTITIONS] != (0 if view.aligned else len(vectors)):
        raise Violation(f"{view.id}: {row} is of another number of entity partitions")
    log, source = vectors[row[PARTITION]], row[SOURCE_PARTITION]
    if view.aligned:
        held = source == row[PARTITION] and -1 <= row[AFTER] <= row[UP_TO] <= row[OFFSET] < len(log)
    else:
        reached = {vector.get(source, -1) for vector in log[: row[OFFSET] + 1]} | {-1}
        held = row[OFFSET] < len(log) and {row[AFTER], row[UP_TO]} <= reached and row[AFTER] <= row[UP_TO]
    if not held:
        raise Violation(f"{view.id}: {row} says more than the log has up to there")


def _rows(site: Site, view: CompiledView) -> list[Row]:
    tables = [table for table in site.lake.tables[visible_table(view)] if table.num_rows]
    if not tables:
        return []
    together = pa.concat_tables(tables)
    instants = together[VISIBLE_TIME].cast(pa.int64())
    rows: list[Row] = together.set_column(together.column_names.index(VISIBLE_TIME), VISIBLE_TIME, instants).to_pylist()
    return rows


def _places(site: Site, view: CompiledView, records: Sequence[Sent]) -> dict[Event, Place]:
    """Of the events that concern the view: by the topics, and by the keys as they were sent."""
    [key] = KEYS[view.id]
    sent = [record for record in records if record.event is not None and record.event[key] is not None]
    texts = {(r.partition, r.offset): str((r.event or {})[key]).replace("\\", "\\\\").replace("|", "\\|") for r in sent}
    if view.aligned:
        return {event: Place(event[0], event[1], text) for event, text in texts.items()}
    found: dict[Event, Place] = {}
    for home, log in enumerate(_delivered(site, view)):
        for at, events in enumerate(log):
            for event in events:
                if event in texts:
                    found.setdefault(event, Place(home, at, texts[event]))
    if lost := texts.keys() - found.keys():
        raise Violation(f"{view.id}: {sorted(lost)} are not in the shuffle")
    return found


def _delivered(site: Site, view: CompiledView) -> list[list[list[Event]]]:
    """By entity partition and place in the shuffle topic, the events of the record there."""
    contract = view.source.contract
    logs = []
    for log in site.log.topics[SHUFFLE]:
        decoded = [decode(record.value or b"", contract) for record in log]
        logs.append([[(d.origin.partition, offset) for offset in d.offsets.tolist()] for d in decoded])
    return logs


def _vectors(site: Site, view: CompiledView) -> dict[int, list[dict[int, int]]]:
    """By entity partition and place in the log, the highest offset of each source partition up to there."""
    if view.aligned:
        return {p: [{p: at} for at in range(len(log))] for p, log in enumerate(site.log.topics[view.source.topic])}
    vectors: dict[int, list[dict[int, int]]] = {}
    for home, log in enumerate(_delivered(site, view)):
        highest: dict[int, int] = {}
        vectors[home] = []
        for events in log:
            for source, offset in events:
                highest[source] = max(highest.get(source, -1), offset)
            vectors[home].append(dict(highest))
    return vectors


def _as_exported(site: Site, view: CompiledView, places: Mapping[Event, Place]) -> dict[Event, int]:
    record = Visibility(pa.concat_tables(site.lake.tables[visible_table(view)]))
    keys = pa.array([place.entity for place in places.values()], pa.string())
    seq = np.array([source << SEQ_BITS | offset for source, offset in places], np.int64)
    taken = pa.array(np.full(len(places), INTAKE)).cast(pa.timestamp("us", "UTC"))
    instants, _ = record.of(EventBatch(keys, seq, seq, {VISIBLE_TIME: taken}))
    return dict(zip(places, instants.tolist(), strict=True))
