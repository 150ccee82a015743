"""Records as they are, with no contract asked: what a broken producer sends, and what lies in a dead-letter topic.

    python -m streams.raw send TOPIC     one record per line of stdin: {"key": text or null, "value": text or null}
    python -m streams.raw read TOPIC     one line per record on stdout: partition, offset, headers, key, value

For demonstrations and for looking at things by hand; everything else checks events before it sends them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any

from aiokafka import AIOKafkaProducer

from featurestore.config import load_settings
from streams.scanning import scan
from streams.topics import Topics

MAX_READ = 10_000
"""Records of a topic that are shown; it is read from the beginning."""


async def send(bootstrap: str, topic: str) -> None:
    records = [json.loads(line) for line in sys.stdin if line.strip()]
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for record in records:
            await producer.send_and_wait(topic, key=_bytes(record["key"]), value=_bytes(record["value"]))


async def read(bootstrap: str, topic: str) -> None:
    partitions = (await Topics(bootstrap).look([topic])).counts.get(topic, 0)
    written = 0
    async with scan(bootstrap, topic, partitions) as found, aclosing(found.batches()) as batches:
        async for records in batches:
            written += _write(records)
            if written >= MAX_READ:
                return


def _write(records: Iterable[Any]) -> int:
    count = 0
    for count, record in enumerate(records, 1):  # noqa: B007 — the last count is the answer
        said = {
            "partition": record.partition,
            "offset": record.offset,
            "headers": {name: _text(value) for name, value in record.headers},
            "key": _text(record.key),
            "value": _text(record.value),
        }
        sys.stdout.write(json.dumps(said) + "\n")
    return count


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


_COMMANDS: dict[str, Callable[[str, str], Awaitable[None]]] = {"send": send, "read": read}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m streams.raw", description="Records as they are.")
    parser.add_argument("command", choices=sorted(_COMMANDS))
    parser.add_argument("topic")
    given = parser.parse_args()

    async def run() -> None:
        await _COMMANDS[given.command](load_settings().kafka, given.topic)

    asyncio.run(run())


if __name__ == "__main__":
    main()
