"""Records of a source topic, read by its contract: what is an event, what is a dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.clock import format_instant
from featurestore.contracts.arrow import ARROW_TYPES
from featurestore.contracts.decode import decode
from featurestore.contracts.reasons import FUTURE_EVENT
from featurestore.definitions.compiled import CompiledSource
from featurestore.types import Dtype, format_duration
from streams.deadletters import Letter
from streams.shuffle import with_positions

_LOG_APPEND_TIME = 1
_VALUE, _OFFSET, _TIMESTAMP = attrgetter("value"), attrgetter("offset"), attrgetter("timestamp")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """n records of one partition. Every one is an event or a letter."""

    partition: int
    first: int
    """The offset that it was read from: the first record's, unless the log has none at some offsets."""
    last: int
    events: pa.RecordBatch
    """Valid rows in offset order: the contract's columns, `_offset` and `_appended`."""
    offsets: np.ndarray
    """`int64[m]`, of the events."""
    event_time: np.ndarray
    """`int64[m]` µs, of the events."""
    rows: np.ndarray
    """`int64[m]`: the place in `records` of each event."""
    records: Sequence[Any]
    letters: tuple[Letter, ...]
    refused: np.ndarray
    """`bool[n]`"""

    def letter(self, event: int, reason: str, error: str) -> Letter:
        """A letter of an event after all."""
        return _letter(self.partition, self.records[int(self.rows[event])], reason, error)


def read(source: CompiledSource, partition: int, records: Sequence[Any], start: int, now: int) -> Batch:
    """Decodes n records, at least one, of ascending offsets from `start` on.

    `now` (µs) judges the event times of a topic whose timestamps are not the broker's.
    """
    decoded = decode(source.contract, list(map(_VALUE, records)))
    offsets = np.fromiter(map(_OFFSET, records), np.int64, len(records))
    appended = np.fromiter(map(_TIMESTAMP, records), np.int64, len(records)) * 1000
    event_time = _instants(decoded.columns.column(source.event_time))
    rows, columns = decoded.rows, decoded.columns
    clock = appended[rows] if records[0].timestamp_type == _LOG_APPEND_TIME else np.full(len(rows), now)
    ahead = event_time > clock + source.max_future_skew
    letters = [_letter(partition, records[r.row], r.reason, r.error) for r in decoded.rejects]
    if ahead.any():
        for row, at in zip(rows[ahead].tolist(), event_time[ahead].tolist(), strict=True):
            letters.append(_letter(partition, records[row], FUTURE_EVENT, _too_new(source, at)))
        letters.sort(key=lambda letter: letter.offset)
        keep = ~ahead
        rows, event_time, columns = rows[keep], event_time[keep], columns.filter(pa.array(keep))
    refused = np.ones(len(records), np.bool_)
    refused[rows] = False
    return Batch(
        partition=partition,
        first=start,
        last=int(offsets[-1]),
        events=with_positions(columns, offsets[rows], appended[rows]),
        offsets=offsets[rows],
        event_time=event_time,
        rows=rows,
        records=records,
        letters=tuple(letters),
        refused=refused,
    )


def _instants(column: pa.Array) -> np.ndarray:
    micros: np.ndarray = column.cast(ARROW_TYPES[Dtype.TIMESTAMP]).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return micros


def _letter(partition: int, record: Any, reason: str, error: str) -> Letter:
    return Letter(partition, record.offset, record.key, record.value, tuple(record.headers), str(reason), error)


def _too_new(source: CompiledSource, at: int) -> str:
    return (
        f"{source.event_time} is {format_instant(at)}, further ahead of the broker's clock "
        f"than max_future_skew={format_duration(source.max_future_skew)}"
    )
