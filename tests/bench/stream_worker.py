"""`python -m streams.worker`, which also notes when it fetched its first records and how long events took.

    BENCH_NOTES=FILE FS_…=… python -m tests.bench.stream_worker

The file gets a line at the first records, with the instant and the processor time spent until then, and one at the
end with the delay of every batch (seconds): of its oldest event, from the broker's timestamp until it can be read.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer

from streams import consumer, viewlane
from streams.worker import main
from tests.bench.stream_process import cpu_seconds

_NOTES = Path(os.environ["BENCH_NOTES"])


def _note(**facts: Any) -> None:
    with _NOTES.open("a") as file:
        file.write(json.dumps(facts) + "\n")


class _Consumer(AIOKafkaConsumer):
    _noted = False

    async def getmany(self, *partitions: Any, **options: Any) -> Any:
        found = await super().getmany(*partitions, **options)
        if found and not _Consumer._noted:
            _Consumer._noted = True
            _note(started=time.monotonic(), cpu=cpu_seconds())
        return found


class _Delays:
    """Stands where the histogram is, and keeps the samples themselves."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    def labels(self, _view: str) -> _Delays:
        return self

    def observe(self, seconds: float) -> None:
        self.samples.append((time.monotonic(), seconds))


if __name__ == "__main__":
    delays = _Delays()
    vars(consumer)["AIOKafkaConsumer"] = _Consumer
    vars(viewlane)["VISIBLE_DELAY"] = delays
    code = main([])
    _note(delays=delays.samples)
    sys.exit(code)
