"""Dead letters, read again: what there are, why, and everything about one of them."""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from featurestore.clock import MAX_INSTANT, format_instant
from featurestore.offline.replays import Place, Places
from streams.deadletters import Letter
from streams.scanning import Scan

OURS = "fs."
"""Begins the names of headers that the store adds."""

_ERROR_CHARACTERS = 300
Heard = Callable[[int], None]
"""Called with the number of records read so far."""


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A record of a dead-letter topic. `letter.headers` are the original ones: those of the store are taken out."""

    letter: Letter
    contract: str
    revision: str
    encoded: str
    """Not empty where key and value are not the original bytes, but the event encoded anew."""
    at: int
    """µs; when it was written."""
    headers: tuple[tuple[str, bytes], ...]
    """All of them."""

    @property
    def place(self) -> Place:
        """Where the record was in the source's topic."""
        return self.letter.partition, self.letter.offset

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.letter.key or b"") + len(self.letter.value or b"")


def parse(record: Any, topic: str) -> StoredLetter | None:
    """None for a record that is no dead letter of the topic: somebody else wrote it."""
    # In a letter that was replayed and refused again the last of a name counts.
    ours = {name: _text(value) for name, value in record.headers if name.startswith(OURS)}
    partition, offset = _number(ours.get("fs.partition", "")), _number(ours.get("fs.offset", ""))
    if partition is None or offset is None or ours.get("fs.topic") != topic:
        return None
    kept = tuple((name, value) for name, value in record.headers if not name.startswith(OURS))
    reason, error = ours.get("fs.reason", ""), ours.get("fs.error", "")
    return StoredLetter(
        letter=Letter(partition, offset, record.key, record.value, kept, reason, error),
        contract=ours.get("fs.contract", ""),
        revision=ours.get("fs.revision", ""),
        encoded=ours.get("fs.encoded", ""),
        at=min(max(record.timestamp, 0) * 1000, MAX_INSTANT),
        headers=tuple(record.headers),
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="backslashreplace")


def _number(text: str) -> int | None:
    """Offsets have 19 digits at most; what is longer is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


@dataclass(slots=True)
class Reading:
    """One pass over a dead-letter topic: every letter once, although the topic may hold it more often."""

    scan: Scan
    source_topic: str
    heard: Heard = lambda _: None
    foreign: int = 0
    """Records that are no letters of the topic."""
    _read: int = 0

    async def letters(self) -> AsyncGenerator[StoredLetter, None]:
        seen = Places()
        async with aclosing(self.scan.batches()) as batches:
            async for records in batches:
                self._read += len(records)
                self.heard(self._read)
                for record in records:
                    found = parse(record, self.source_topic)
                    if found is None:
                        self.foreign += 1
                    elif seen.add(found.place):
                        yield found


@dataclass(slots=True)
class _Reason:
    count: int = 0
    replayed: int = 0
    newest: int = 0


@dataclass(slots=True)
class Listing:
    """Counts by reason, and the newest `limit` letters."""

    limit: int
    replayed: Places
    reasons: dict[str, _Reason] = field(default_factory=dict)
    _newest: list[tuple[int, int, int, dict[str, Any]]] = field(default_factory=list)

    def add(self, found: StoredLetter) -> None:
        again = found.place in self.replayed
        reason = self.reasons.setdefault(found.letter.reason, _Reason())
        reason.count += 1
        reason.replayed += again
        reason.newest = max(reason.newest, found.at)
        if not self.limit:
            return
        entry = (found.at, *found.place, _entry(found, replayed=again))
        (heapq.heappush if len(self._newest) < self.limit else heapq.heappushpop)(self._newest, entry)

    def document(self) -> dict[str, Any]:
        reasons = sorted(self.reasons.items(), key=lambda item: (-item[1].count, item[0]))
        return {
            "letters": sum(reason.count for _, reason in reasons),
            "replayed": sum(reason.replayed for _, reason in reasons),
            "reasons": [
                {"reason": name, "count": r.count, "replayed": r.replayed, "newest": format_instant(r.newest)}
                for name, r in reasons
            ],
            "newest": [entry for *_, entry in sorted(self._newest, key=lambda item: item[:3], reverse=True)],
        }


def _entry(found: StoredLetter, *, replayed: bool) -> dict[str, Any]:
    letter = found.letter
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "reason": letter.reason,
        "error": letter.error[:_ERROR_CHARACTERS],
        "at": format_instant(found.at),
        "bytes": found.size,
        "replayed": replayed,
    }


def whole(found: StoredLetter, *, replayed: bool) -> Mapping[str, Any]:
    """Everything of a letter; bytes as they are."""
    letter = found.letter
    return {
        **_entry(found, replayed=replayed),
        "error": letter.error,
        "contract": found.contract,
        "revision": found.revision,
        "encoded": found.encoded,
        "headers": found.headers,
        "key": letter.key,
        "value": letter.value,
    }
