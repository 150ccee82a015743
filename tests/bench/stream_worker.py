"""`python -m streams.worker`, which also notes when it fetched its first records and how long events took.

    BENCH_NOTES=FILE FS_…=… python -m tests.bench.stream_worker

The file gets a line at the first records, with the instant and the processor time spent until then, and one at the
end with the delay of events (seconds), from the broker's timestamp until they can be read: per batch of a view some,
evenly spread over it, with the instant (monotonic) and how many events they stand for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from aiokafka import AIOKafkaConsumer

from featurestore.clock import SECOND
from streams import consumer, fold
from streams.folding import Accepted
from streams.viewlane import ViewLane
from streams.worker import main
from tests.bench.stream_process import cpu_seconds

SAMPLES = 32
"""Events of a batch whose delay is noted."""
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


class _Lane(ViewLane):
    """Notes the delays of a batch where the histogram takes one sample."""

    noted: ClassVar[list[tuple[float, int, list[float]]]] = []

    def _readable(self, accepted: Accepted) -> int:
        appended = np.sort(accepted.appended)
        if appended.size:
            some = appended[np.linspace(0, appended.size - 1, SAMPLES).astype(int)]
            delays = (self._clock.now() - some) / SECOND
            self.noted.append((time.monotonic(), appended.size, delays.tolist()))
        return super()._readable(accepted)


if __name__ == "__main__":
    vars(consumer)["AIOKafkaConsumer"] = _Consumer
    vars(fold)["ViewLane"] = _Lane
    code = main([])
    _note(delays=_Lane.noted)
    sys.exit(code)
