"""A stock Bytewax dataflow beside `stream`: JSON from Kafka, counted and summed by key in windows of five minutes.

    python -m tests.bench.stream_bytewax BOOTSTRAP TOPIC

Prints a summary, with the count of each key over all windows. It keeps no recovery log and writes nowhere.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from tests.bench.stream_process import cpu_seconds, peak_bytes, say

Folded = tuple[int, float]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_counts: Counter[str] = Counter()
_began: list[tuple[float, float]] = []


class _Partition(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[tuple[str, tuple[int, Folded]]]) -> None:
        for key, (_window, (count, _total)) in items:
            _counts[key] += count


class _Sink(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Partition:
        return _Partition()


def _parse(message: Any) -> tuple[str, tuple[datetime, float]]:
    if not _began:
        _began.append((time.monotonic(), cpu_seconds()))
    event = json.loads(message.value)
    return event["user"], (_EPOCH + timedelta(microseconds=event["ts"]), event["amount"])


def _when(event: tuple[datetime, float]) -> datetime:
    return event[0]


def _nothing() -> Folded:
    return 0, 0.0


def _fold(so_far: Folded, event: tuple[datetime, float]) -> Folded:
    return so_far[0] + 1, so_far[1] + event[1]


def _merge(one: Folded, other: Folded) -> Folded:
    return one[0] + other[0], one[1] + other[1]


def flow(bootstrap: str, topic: str) -> Dataflow:
    made = Dataflow("bench")
    messages = op.input("in", made, KafkaSource([bootstrap], [topic], tail=False))
    clock = windowing.EventClock(_when, wait_for_system_duration=timedelta(seconds=10))
    windows = windowing.TumblingWindower(timedelta(minutes=5), align_to=_EPOCH)
    keyed = op.map("parse", messages, _parse)
    folded = windowing.fold_window("fold", keyed, clock, windows, _nothing, _fold, _merge)
    op.output("out", folded.down, _Sink())
    return made


def main(bootstrap: str, topic: str) -> None:
    run: Any = run_main
    run(flow(bootstrap, topic))
    [(started, cpu)] = _began
    say(started=started, ended=time.monotonic(), cpu=cpu_seconds() - cpu, peak=peak_bytes(), counts=_counts)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
