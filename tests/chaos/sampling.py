"""What is looked at while a run goes on: positions that may never go back, and what the workers weigh."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurestore.errors import Unavailable
from featurestore.online.store import OnlineStore

EVERY_SECONDS = 0.1
_POSITION = struct.Struct("<qq")
_POSITION_AT = 16
"""Of (generation, offset) in a packed value's header, in bytes; read here without the engine."""

Note = Callable[..., None]
Position = tuple[int, int]


def position_of(value: bytes) -> Position:
    """(generation, offset) in the header of a packed value."""
    generation, offset = _POSITION.unpack_from(value, _POSITION_AT)
    return generation, offset


@dataclass
class Sampler:
    """Reads fences, intake marks, beats and the values of some keys again and again, straight from the server.

    `went_back` are sentences about positions that fell though nothing had been lost.
    """

    note: Note
    source: str
    keys: Mapping[str, Sequence[str]]
    """View → the entities whose values are watched."""
    pids: Callable[[], Sequence[int]]
    went_back: list[str] = field(default_factory=list)
    reasons: set[tuple[str, str]] = field(default_factory=set)
    """(`stopped` or `waiting`, code) of all beats seen."""
    samples: int = 0
    heaviest: int = 0
    """Bytes of resident memory of the heaviest worker."""
    _highest: dict[tuple[str, object], Position] = field(default_factory=dict)
    _losing: int = 0

    @contextlib.contextmanager
    def loss(self) -> Iterator[None]:
        """The scenario takes data away: what is seen meanwhile says nothing, and what was seen before is void."""
        self._losing += 1
        try:
            yield
        finally:
            self._losing -= 1
            self._highest.clear()

    async def run(self, store: OnlineStore) -> None:
        """Until it is cancelled."""
        while True:
            with contextlib.suppress(Unavailable):
                await self.look(store)
            for pid in self.pids():
                self.heaviest = max(self.heaviest, resident_bytes(pid))
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self, store: OnlineStore) -> None:
        before, seen = self._losing, dict[tuple[str, object], Position]()
        for view, keys in self.keys.items():
            for partition, fence in (await store.fences(view)).items():
                seen[f"fence of {view}", partition] = fence.position
            values = await store.read(view, keys)
            found = {key: position_of(value) for key, value in zip(keys, values, strict=True) if value is not None}
            seen |= {(f"value of {view}", key): position for key, position in found.items()}
        for partition, mark in (await store.intake_marks(self.source)).items():
            seen["intake mark", partition] = mark.position
        await self._note_beats(store)
        if not before and not self._losing:
            self._compare(seen)
            self.samples += 1
        self.note(
            "sample", positions={f"{what} {which}": at for (what, which), at in seen.items() if "value" not in what}
        )

    def _compare(self, seen: Mapping[tuple[str, object], Position]) -> None:
        for place, highest in self._highest.items():
            found = seen.get(place)
            if found is None or found < highest:
                self.went_back.append(f"{place[0]} {place[1]}: {highest} was seen before {found}")
        self._highest |= seen

    async def _note_beats(self, store: OnlineStore) -> None:
        stages = (f"intake:{self.source}", *(f"fold:{view}" for view in self.keys))
        for stage in stages:
            for beat in (await store.beats(stage)).values():
                told: Mapping[str, Any] = {"stopped": beat.stopped.partition(":")[0], "waiting": beat.waiting_for}
                self.reasons |= {(kind, code.split(" ")[0]) for kind, code in told.items() if code}


def resident_bytes(pid: int) -> int:
    """0 for a process that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
    return 0
