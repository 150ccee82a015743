"""Dead letters on a topic of one's own: written as a worker writes them, sent again in this process or in another."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from featurestore.clock import ManualClock
from featurestore.offline.lake import Lake
from featurestore.offline.replays import Replays
from featurestore.online.embedded import start_attached
from featurestore.registry.catalog import Catalog
from streams.deadletters import DeadLetters, Letter
from streams.patience import Patience
from streams.producing import Outbox
from streams.replaying import Replayer, Selection, Summary
from streams.scanning import scan
from streams.topics import Topics
from tests.e2e.streaming import DEFINITIONS, PARTITIONS, Project

NOW = 1_772_366_400_000_000


def a_letter(partition: int, offset: int, reason: str = "not_json", value: bytes | None = b"{") -> Letter:
    return Letter(partition, offset, b"k", value, (("trace", b"t1"),), reason, f"because of {reason}")


@dataclass
class DeadTopic:
    """A published source whose topic has this test's name, with a history of replays."""

    project: Project
    topic: str = field(default_factory=lambda: f"clicks-{uuid.uuid4().hex[:8]}")
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))

    def publish(self) -> Catalog:
        return self.project.publish(DEFINITIONS.replace('topic="clicks"', f'topic="{self.topic}"'))

    async def make(self) -> None:
        """On the embedded broker; a real one has made it."""
        await Topics(self.project.bootstrap).ensure({self.topic: PARTITIONS})

    async def bury(self, letters: Sequence[Letter]) -> None:
        source = self.publish().sources["clicks"]
        outbox = Outbox(self.project.bootstrap)
        await outbox.start()
        try:
            await DeadLetters(outbox, Topics(self.project.bootstrap), Patience()).send(source, letters)
        finally:
            await outbox.stop()

    async def write(self, headers: Sequence[tuple[str, bytes]]) -> None:
        """A record in the dead-letter topic that some stranger wrote."""
        async with AIOKafkaProducer(bootstrap_servers=self.project.bootstrap) as producer:
            await producer.send_and_wait(f"{self.topic}.dlq", b"x", partition=0, headers=list(headers))

    @property
    def replays(self) -> Replays:
        return Replays(Lake(self.project.lake), self.topic)

    def replayer(self, replays: Replays | None = None, *, by: str = "ada") -> Replayer:
        def tell(_: Mapping[str, Any]) -> None:
            return

        return Replayer(self.project.bootstrap, self.topic, replays or self.replays, self.clock, by=by, tell=tell)

    async def replay(self, selection: Selection | None = None, **given: bool) -> Summary:
        return await self.replayer().run(selection or Selection(), **given)

    async def records(self) -> list[Any]:
        """Of the source's topic, in the order of each partition."""
        async with scan(self.project.bootstrap, self.topic, PARTITIONS) as all_:
            return [record async for records in all_.batches() for record in records]

    async def arrivals(self) -> Counter[str]:
        """How often each letter is in the source's topic."""
        headers = [dict(record.headers) for record in await self.records()]
        return Counter(found["fs.replay"].decode() for found in headers if "fs.replay" in found)

    def process(self, *words: str) -> subprocess.Popen[bytes]:
        """`streams.commands dlq replay` in a process of its own."""
        settings = {"FS_KAFKA": self.project.bootstrap, "FS_LAKE": self.project.lake}
        return start_attached(
            [sys.executable, "-m", "streams.commands", "dlq", "replay", "clicks", *words],
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
        )


async def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit code and stdout."""
    said, _ = await asyncio.to_thread(process.communicate)
    return process.returncode, said.decode()


def documents(project: Project, topic: str) -> list[str]:
    folder = Path(project.lake) / "dlq" / topic
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
