"""Which dead letters went to their topic again: numbered documents `dlq/<topic>/<n>.json` in the lake.

A document is created before the first of its letters is sent, and only by one process: whoever wants to send letters
needs the next number. `<n>.done.json` follows when all are acknowledged, so only the newest can be unfinished.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from featurestore.errors import Corrupt
from featurestore.offline.documents import Documents
from featurestore.offline.lake import Lake

Place = tuple[int, int]
"""Partition and offset of a record of a source's topic."""

_NAME = re.compile(r"([1-9][0-9]{0,8})(\.done)?\.json", re.ASCII)
_READ_AT_ONCE = 16
_BLOCK = 1024


class Replay(msgspec.Struct, frozen=True):
    """Letters that one process set out to send."""

    letters: tuple[Place, ...]
    ends: dict[int, int]
    """Partition → where the source's topic ended before the first letter was sent."""
    by: str
    at: int
    """µs"""


class Outcome(msgspec.Struct, frozen=True):
    refused: tuple[Place, ...] = ()
    """Letters of the document that the broker did not take, and that may be tried again."""


_Kind = TypeVar("_Kind", Replay, Outcome)


class Places:
    """A set of places, in memory by stretches of the log: a million letters side by side take no more than a few."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._blocks: dict[tuple[int, int], int] = {}
        for place in places:
            self.add(place)

    def add(self, place: Place) -> bool:
        """Whether it was not there before."""
        block, bit = _block(place)
        held = self._blocks.get(block, 0)
        self._blocks[block] = held | bit
        return not held & bit

    def discard(self, place: Place) -> None:
        block, bit = _block(place)
        if place in self:
            self._blocks[block] ^= bit

    def __contains__(self, place: Place) -> bool:
        block, bit = _block(place)
        return bool(self._blocks.get(block, 0) & bit)

    def __len__(self) -> int:
        return sum(held.bit_count() for held in self._blocks.values())


def _block(place: Place) -> tuple[tuple[int, int], int]:
    partition, offset = place
    return (partition, offset // _BLOCK), 1 << offset % _BLOCK


@dataclass(frozen=True, slots=True)
class History:
    """All documents of a topic."""

    last: int
    """The newest document's number; 0 where there is none."""
    replayed: Places
    """Letters of all documents, but those that the broker refused."""
    unfinished: Replay | None
    """The newest document, where nothing says that it is done."""


class Replays:
    """The documents of one topic. Calls block and raise Unavailable("lake", …)."""

    def __init__(self, lake: Lake, topic: str) -> None:
        self._topic = topic
        self._documents: Documents = lake.documents(f"dlq/{topic}")

    def name(self, number: int, *, done: bool = False) -> str:
        """Where a document is, within the lake."""
        return f"dlq/{self._topic}/{_file(number, done=done)}"

    def read(self) -> History:
        """Raises Corrupt where a document is missing or not what was written."""
        there = {
            (int(match[1]), bool(match[2])) for name in self._documents.names() if (match := _NAME.fullmatch(name))
        }
        numbers = sorted(number for number, done in there if not done)
        missing = set(range(1, len(numbers) + 1)) - set(numbers)
        if missing:
            raise Corrupt(f"{self.name(min(missing))} is missing in the lake, and later ones are there",
                          hint="restore it: without it nobody knows which letters were sent")  # fmt: skip
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            replays = list(pool.map(self.document, numbers))
            outcomes = list(pool.map(lambda n: self._outcome(n) if (n, True) in there else None, numbers))
        replayed = Places()
        for replay, outcome in zip(replays, outcomes, strict=True):
            for place in replay.letters:
                replayed.add(place)
            for place in outcome.refused if outcome is not None else ():
                replayed.discard(place)
        open_end = bool(numbers) and outcomes[-1] is None
        return History(len(numbers), replayed, replays[-1] if open_end else None)

    def create(self, number: int, replay: Replay) -> bool:
        """False where another process has that number: it sends letters now, or has sent some."""
        return self._documents.create(_file(number), msgspec.json.encode(replay))

    def finish(self, number: int, refused: Sequence[Place]) -> None:
        """Harmless when repeated; the first one counts."""
        self._documents.create(_file(number, done=True), msgspec.json.encode(Outcome(tuple(refused))))

    def document(self, number: int) -> Replay:
        """Raises Corrupt."""
        return self._decode(self.name(number), self._documents.read(_file(number)), Replay)

    def _outcome(self, number: int) -> Outcome:
        raw = self._documents.read(_file(number, done=True))
        return self._decode(self.name(number, done=True), raw or b"{}", Outcome)

    def _decode(self, name: str, raw: bytes, kind: type[_Kind]) -> _Kind:
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"{name} in the lake is not what was written: {error}", hint="restore it") from None


def _file(number: int, *, done: bool = False) -> str:
    return f"{number}.done.json" if done else f"{number}.json"
