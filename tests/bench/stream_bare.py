"""The limit that `stream` is measured against: records, JSON, NumPy groups, and nothing else.

    python -m tests.bench.stream_bare BOOTSTRAP TOPIC EVENTS

No group, no state that outlives it, no windows, no commits, no store. Prints a summary, with the count of each key.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec
import numpy as np
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.bench.stream_events import PARTITIONS, Payment
from tests.bench.stream_process import cpu_seconds, peak_bytes, say


async def run(bootstrap: str, topic: str, events: int) -> None:
    decode = msgspec.json.Decoder(Payment).decode
    numbers: dict[str, int] = {}
    count, total = np.zeros(1 << 20, np.int64), np.zeros(1 << 20)
    seen, started, cpu = 0, 0.0, 0.0
    async with AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 << 20,
        check_crcs=False,
    ) as consumer:
        partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        while seen < events:
            for records in (await consumer.getmany(timeout_ms=200, max_records=20_000)).values():
                if not seen:
                    started, cpu = time.monotonic(), cpu_seconds()
                rows = [decode(record.value) for record in records]
                keys = [numbers.setdefault(row.user, len(numbers)) for row in rows]
                place = np.array(keys)
                np.add.at(count, place, 1)
                np.add.at(total, place, np.array([row.amount for row in rows]))
                seen += len(rows)
    say(
        started=started,
        ended=time.monotonic(),
        cpu=cpu_seconds() - cpu,
        peak=peak_bytes(),
        counts=dict(zip(numbers, count.tolist(), strict=False)),
    )


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
