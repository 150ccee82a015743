"""A stock Faust application beside `stream`: one agent that counts by key in one table.

    BENCH_KAFKA=… BENCH_TOPIC=… BENCH_EVENTS=… BENCH_DIRECTORY=… python -m tests.bench.stream_faust worker --without-web

Prints a summary, with the count of each key, and ends once it has seen all events.
"""

from __future__ import annotations

import os
import time
from typing import Any

import faust

from tests.bench.stream_process import cpu_seconds, peak_bytes, say

TOPIC, EVENTS = os.environ["BENCH_TOPIC"], int(os.environ["BENCH_EVENTS"])

app = faust.App(
    os.environ.get("BENCH_GROUP", "bench-faust"),
    broker=f"kafka://{os.environ['BENCH_KAFKA']}",
    store="memory://",
    datadir=os.environ["BENCH_DIRECTORY"],
    topic_partitions=int(os.environ.get("BENCH_PARTITIONS", "4")),
    topic_replication_factor=1,
)
payments = app.topic(TOPIC, value_serializer="json")
counts = app.Table("counts", default=int)


@app.agent(payments)
async def count_payments(stream: faust.StreamT[Any]) -> None:
    seen, started, cpu = 0, 0.0, 0.0
    async for event in stream:
        if not seen:
            started, cpu = time.monotonic(), cpu_seconds()
        counts[event["user"]] += 1
        seen += 1
        if seen == EVENTS:
            say(
                started=started,
                ended=time.monotonic(),
                cpu=cpu_seconds() - cpu,
                peak=peak_bytes(),
                counts=dict(counts.items()),
            )
            os._exit(0)  # a group that nobody comes back to need not be left in order


if __name__ == "__main__":
    app.main()
