"""Dead letters on their way to their topic again: each at most once, whoever sends, dies, or starts once more.

Some letters at a time:

1. A document in the lake takes the next number; it names the letters and where the source's topic ends. Who finds the
   number taken stops: somebody else sends.
2. They are sent by an idempotent producer, each with a header `fs.replay` that names its place.
3. When all are acknowledged, the document is marked as done.

Where a document is not done, its process died or gave up. Whoever comes next, but not before nothing of that process
can arrive any more, looks in the source's topic, from where it ended then, for those headers, and goes on with the
letters that are not there under a document of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka.errors import KafkaError, MessageSizeTooLargeError, OutOfOrderSequenceNumber

from featurestore.clock import SECOND, Clock, format_instant
from featurestore.errors import FeatureStoreError, NotFound, ReplayConflict, Unavailable
from featurestore.offline.replays import Place, Places, Replay, Replays
from streams.folding import KEY_TOO_LONG, MISROUTED
from streams.letters import Reading, StoredLetter
from streams.producing import Outbox, Outgoing
from streams.scanning import scan
from streams.topics import Topics, dead_letter_topic

HEADER = "fs.replay"
"""Of a record that was a dead letter: `<partition>/<offset>` of the letter."""

TAKEN = frozenset({MISROUTED, KEY_TOO_LONG})
"""Reasons of a view. Intake took these events: they are in the lake and in other views, and a second copy would be
counted there."""

MAX_LETTERS, MAX_BYTES = 10_000, 8 << 20
"""Of one document; the letters are held in memory while they are sent."""

_BATCH_BYTES = 64 << 10
"""Small, so that no topic takes single letters and refuses a batch of them."""

SEND_SECONDS = 20.0
"""The letters of a document are acknowledged within this time, or their process gives up."""
LEASE = 60 * SECOND
"""After this nothing of a document's process can arrive any more, and a follower that is behind has been left out of
the replicas (`replica.lag.time.max.ms` is 30 s): what is not in the topic then never will be."""

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Selection:
    """Letters that are meant; an empty or absent criterion selects all."""

    reason: str = ""
    partition: int | None = None
    offset: int | None = None

    def takes(self, found: StoredLetter) -> bool:
        letter = found.letter
        return (
            self.reason in ("", letter.reason)
            and self.partition in (None, letter.partition)
            and self.offset in (None, letter.offset)
        )


@dataclass(slots=True)
class Summary:
    """What became of the letters that were selected; in a dry run, what would."""

    selected: int = 0
    sent: int = 0
    already_replayed: int = 0
    recovered: int = 0
    """Letters of an earlier replay that did not finish: sent now, and not among `selected`. In a dry run all that it
    had, since only the topic knows which of them arrived."""
    lost: int = 0
    """As `recovered`, but they are in no dead-letter topic any more, so nobody can send them."""
    skipped: Counter[str] = field(default_factory=Counter)
    """By why: a reason of `TAKEN`, `too_large` for the topic, or `no_partition` of it."""


class Replayer:
    """Sends letters of one source's topic again. Raises ReplayConflict where another process does so, Unavailable."""

    def __init__(self, bootstrap: str, topic: str, replays: Replays, clock: Clock, *, by: str, tell: Tell) -> None:
        """`by` names this process to people; `tell` hears of progress."""
        self._bootstrap, self._topic, self._replays, self._clock = bootstrap, topic, replays, clock
        self._by, self._tell = by, tell
        self._outbox = self._new_outbox()
        self._last = 0
        self._counts: Mapping[str, int] = {}
        self.summary = Summary()

    async def run(self, selection: Selection, *, take_over: bool = False, dry: bool = False) -> Summary:
        """`take_over`: somebody vouches that the process of an unfinished document has ended."""
        history = await asyncio.to_thread(self._replays.read)
        self._last = history.last
        self._counts = (await Topics(self._bootstrap).look([self._topic, self._dlq])).counts
        if history.unfinished is not None and not dry:
            self._require_abandoned(history.unfinished, take_over)
        if self._dlq not in self._counts:
            return self.summary
        if self._topic not in self._counts:
            raise NotFound("topic", self._topic, hint="letters go back to it: make it as it was")
        if dry:
            self.summary.recovered = len(history.unfinished.letters) if history.unfinished is not None else 0
            async with aclosing(self._chosen(selection, history.replayed)) as letters:
                async for _ in letters:
                    self.summary.sent += 1
            return self.summary
        async with self._producing():
            if history.unfinished is not None:
                await self._recover(history.unfinished)
            await self._replay(selection, history.replayed)
        return self.summary

    @property
    def _dlq(self) -> str:
        return dead_letter_topic(self._topic)

    def _new_outbox(self) -> Outbox:
        return Outbox(self._bootstrap, batch_bytes=_BATCH_BYTES, idempotent=True)

    @asynccontextmanager
    async def _producing(self) -> AsyncIterator[None]:
        await self._outbox.start()
        try:
            yield
        finally:
            # Everything was acknowledged, or else nothing more may be sent: not even what waits in the producer.
            await self._outbox.abandon()

    def _require_abandoned(self, unfinished: Replay, take_over: bool) -> None:
        until = unfinished.at + LEASE
        if take_over or self._clock.now() >= until:
            return
        raise ReplayConflict(
            f"{self._replays.name(self._last)} is not finished: {unfinished.by} has been sending "
            f"{len(unfinished.letters):,} letters since {format_instant(unfinished.at)}",
            hint=f"run this again after {format_instant(until)}: it goes on where that process ended. --take-over does "
            "so at once; give it only where that process has certainly ended, and half a minute ago",
        )

    async def _replay(self, selection: Selection, replayed: Places) -> None:
        chunk: list[StoredLetter] = []
        held = 0
        async with aclosing(self._chosen(selection, replayed)) as letters:
            async for found in letters:
                if chunk and (len(chunk) == MAX_LETTERS or held + found.size > MAX_BYTES):
                    self.summary.sent += await self._send(chunk)
                    chunk, held = [], 0
                chunk.append(found)
                held += found.size
        if chunk:
            self.summary.sent += await self._send(chunk)

    async def _chosen(self, selection: Selection, replayed: Places) -> AsyncGenerator[StoredLetter, None]:
        """Letters to send; the others that were selected are counted."""
        async with self._reading() as reading, aclosing(reading.letters()) as letters:
            async for found in letters:
                if not selection.takes(found):
                    continue
                self.summary.selected += 1
                if found.place in replayed:
                    self.summary.already_replayed += 1
                elif why := self._why_not(found):
                    self.summary.skipped[why] += 1
                else:
                    yield found

    def _why_not(self, found: StoredLetter) -> str:
        if found.letter.reason in TAKEN:
            return found.letter.reason
        return "" if found.letter.partition < self._counts[self._topic] else "no_partition"

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Reading]:
        async with scan(self._bootstrap, self._dlq, self._counts[self._dlq]) as letters:
            yield Reading(letters, self._topic, lambda n: self._tell({"read": n, "records": letters.total}))

    async def _recover(self, unfinished: Replay) -> None:
        there = await self._arrived(unfinished)
        missing = Places(place for place in unfinished.letters if place not in there)
        if not len(missing):
            await asyncio.to_thread(self._replays.finish, self._last, ())
            return
        found: list[StoredLetter] = []
        async with self._reading() as reading, aclosing(reading.letters()) as letters:
            async for letter in letters:
                if letter.place in missing:
                    found.append(letter)
                if len(found) == len(missing):
                    break
        self.summary.lost += len(missing) - len(found)
        if found:
            self.summary.recovered += await self._send(found)
        else:
            await asyncio.to_thread(self._replays.finish, self._last, ())

    async def _arrived(self, unfinished: Replay) -> Places:
        """Letters of the document that are in the source's topic. Raises FeatureStoreError where nobody can know."""
        there = Places()
        count = self._counts[self._topic]
        async with scan(self._bootstrap, self._topic, count, starts=unfinished.ends) as records:
            gone = [p for p, end in unfinished.ends.items() if p < count and records.kept[p] > end]
            if gone:
                raise FeatureStoreError(
                    f"{self._replays.name(self._last)} is not finished, and {self._topic} no longer keeps what came "
                    f"after it in partition {gone[0]}: nobody can tell which of its letters were sent",
                    hint="to count all of them as sent, put an empty file "
                    f"{self._replays.name(self._last, done=True)} into the lake; none of them is ever sent then",
                )
            wanted = {f"{partition}/{offset}".encode(): (partition, offset) for partition, offset in unfinished.letters}
            async with aclosing(records.batches()) as batches:
                async for batch in batches:
                    for name, value in (header for record in batch for header in record.headers):
                        if name == HEADER and value in wanted:
                            there.add(wanted[value])
        return there

    async def _send(self, letters: Sequence[StoredLetter]) -> int:
        """Under a new document. Returns how many the broker took."""
        async with scan(self._bootstrap, self._topic, self._counts[self._topic]) as now:
            ends = dict(now.ends)
        number, at, deadline = self._last + 1, self._clock.now(), asyncio.get_running_loop().time() + SEND_SECONDS
        replay = Replay(tuple(letter.place for letter in letters), ends, self._by, at)
        if not await asyncio.to_thread(self._replays.create, number, replay):
            raise await asyncio.to_thread(self._conflict, number)
        self._last = number
        try:
            async with asyncio.timeout_at(deadline):
                refused = await self._deliver(letters)
        except (TimeoutError, Unavailable) as error:
            said = error.message if isinstance(error, Unavailable) else f"not within {SEND_SECONDS:.0f} s"
            raise Unavailable(
                "kafka",
                f"some of {len(letters):,} letters are not acknowledged: {said}",
                hint=f"run this again after {format_instant(at + LEASE)}: it sends those that did not arrive",
            ) from error
        await asyncio.to_thread(self._replays.finish, number, refused)
        self.summary.skipped.update({"too_large": len(refused)} if refused else {})
        self._tell({"sent": self.summary.sent + len(letters) - len(refused)})
        return len(letters) - len(refused)

    def _conflict(self, number: int) -> ReplayConflict:
        winner = self._replays.document(number)
        return ReplayConflict(
            f"{winner.by} began to send letters of {self._topic} at {format_instant(winner.at)}",
            hint="run this again when that has ended: it sends what is left",
        )

    async def _deliver(self, letters: Sequence[StoredLetter]) -> list[Place]:
        """Returns when all are acknowledged, with those that are larger than the topic takes.

        Raises Unavailable where that is not known of each.
        """
        outcomes = await self._outbox.attempt([self._outgoing(letter) for letter in letters])
        failed = [(letter, error) for letter, error in zip(letters, outcomes, strict=True) if error is not None]
        large = {found.letter.partition for found, error in failed if isinstance(error, MessageSizeTooLargeError)}
        refused: list[Place] = []
        for found, error in failed:
            # A batch that was too large leaves a hole in the producer's sequence, for which the broker refuses those
            # behind it. So each of them goes alone, by a new producer.
            behind = isinstance(error, OutOfOrderSequenceNumber) and found.letter.partition in large
            _require(isinstance(error, MessageSizeTooLargeError) or behind, error)
            await self._outbox.abandon()
            self._outbox = self._new_outbox()
            await self._outbox.start()
            [again] = await self._outbox.attempt([self._outgoing(found)])
            _require(again is None or isinstance(again, MessageSizeTooLargeError), again)
            refused += [found.place] if again is not None else []
        return refused

    def _outgoing(self, found: StoredLetter) -> Outgoing:
        letter = found.letter
        name = HEADER, f"{letter.partition}/{letter.offset}".encode()
        return Outgoing(self._topic, letter.partition, letter.value, letter.key, [*letter.headers, name])


def _require(understood: bool, error: KafkaError | None) -> None:
    if not understood:
        raise Unavailable("kafka", str(error) or type(error).__name__) from error
