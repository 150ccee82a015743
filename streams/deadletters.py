"""Records that broke their contract, kept whole where somebody can look at them and send them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.definitions.compiled import CompiledSource
from featurestore.telemetry import DEAD_LETTERS
from streams.patience import Patience
from streams.producing import Headers, Outbox, Outgoing
from streams.topics import Topics, dead_letter_topic

_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Letter:
    """A refused record: as it was, where it was, and why."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    error: str


class DeadLetters:
    """Writes to `<source topic>.dlq`, which it makes on first use with as many partitions as the source has."""

    def __init__(self, outbox: Outbox, topics: Topics, patience: Patience) -> None:
        self._outbox, self._topics, self._patience = outbox, topics, patience
        self._partitions: dict[str, int] = {}
        self.revision = 0

    async def send(self, source: CompiledSource, letters: Sequence[Letter]) -> None:
        """Returns when all are acknowledged, however long that takes: nothing is dropped."""
        if not letters:
            return
        topic = dead_letter_topic(source.topic)
        if topic not in self._partitions:
            await self._patience.until_done(lambda: self._prepare(source.topic))
        count = self._partitions[topic]
        records = [
            Outgoing(topic, letter.partition % count, letter.value, letter.key, self._headers(source, letter))
            for letter in letters
        ]
        for start in range(0, len(records), _CHUNK):
            chunk = records[start : start + _CHUNK]
            await self._patience.until_done(lambda chunk=chunk: self._outbox.deliver(chunk))  # type: ignore[misc]
        for reason, n in Counter(letter.reason for letter in letters).items():
            DEAD_LETTERS.labels(source.topic, reason).inc(n)

    async def _prepare(self, source_topic: str) -> None:
        topic = dead_letter_topic(source_topic)
        there = await self._topics.look([source_topic])
        counts = await self._topics.ensure({topic: there.counts.get(source_topic, 1)})
        self._partitions[topic] = counts[topic]

    def _headers(self, source: CompiledSource, letter: Letter) -> Headers:
        """The record's own, then ours: in a letter that was replayed and refused again, the last of a name counts."""
        ours = {
            "fs.reason": letter.reason,
            "fs.topic": source.topic,
            "fs.partition": str(letter.partition),
            "fs.offset": str(letter.offset),
            "fs.contract": source.contract.id,
            "fs.revision": str(self.revision),
            "fs.error": letter.error,
        }
        return [*letter.headers, *((name, text.encode()) for name, text in ours.items())]
