"""What the stages record beside the values: how far they are, and that they live.

Records are JSON in the fields of a hash, so that an operator can read them with redis-cli. Reading ignores fields it
does not know, so that workers of two releases can share a store during a rollout.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from math import isfinite
from typing import Annotated, TypeVar, cast

import msgspec
from msgspec import Meta

from featurestore.clock import SECOND
from featurestore.errors import Corrupt

Offset = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
"""Of a log record; -1 stands before the first."""
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Micros = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""Microseconds since the epoch, UTC."""
Partition = Annotated[int, Meta(ge=0, le=2**31 - 1)]

LEDGER = ("consumed", "applied", "duplicate", "late", "dead_lettered", "filtered")
"""The order of a fence's counts."""
Counts = Annotated[list[Count], Meta(min_length=len(LEDGER), max_length=len(LEDGER))]


class Fence(msgspec.Struct, frozen=True):
    """How far one view's partition is: every entity write up to (generation, offset) is acknowledged."""

    generation: Count
    offset: Offset
    """Of the log that fold reads."""
    vector: dict[Partition, Offset]
    """Source partition → highest source offset delivered."""
    ledger: dict[Partition, Counts]
    """Source partition → counts since the generation began, in the order of `LEDGER`."""
    event_time: Micros
    """The latest event time applied."""
    broker_time: Micros
    """When the broker took the last record applied."""
    written_at: Micros
    loads: Count = 0
    """How many loaded files of the source the generation began with: what `offline.loads.Loaded.count` was."""
    readable: bool = True
    """False where some of the events up to the offset cannot be read: a backfill had replaced values that they would
    have changed with such that end before them. The generation that it began holds them when it comes to them."""

    begins: dict[Partition, Offset] = {}
    """Source partition → the first source offset that was delivered; of a first generation. What the lake has of
    before, the values lack: the topic no longer had it when they began."""
    first: Offset = 0
    """The first log offset that was delivered; of a first generation."""

    @property
    def position(self) -> tuple[int, int]:
        return self.generation, self.offset


def begins_of(fences: Iterable[Fence]) -> dict[int, int]:
    """Source partition → the source offset before which a view's values may lack events, of all its partitions
    together; none that begins where the source does.

    What came first goes to one entity partition, so the first of any counts. Where a log had been trimmed when its
    partition began, the events that it lacks are those of its own entities, whatever the others have.
    """
    begins: dict[int, int] = {}
    trimmed: dict[int, int] = {}
    for fence in fences:
        for p, first in fence.begins.items():
            begins[p] = min(begins.get(p, first), first)
            if fence.first:
                trimmed[p] = max(trimmed.get(p, first), first)
    return {p: first for p, first in (begins | trimmed).items() if first}


class IntakeMark(msgspec.Struct, frozen=True):
    """How far intake is with one source partition."""

    lanes: dict[str, Offset]
    """Lane → last source offset that is in its shuffle topic."""
    offset: Offset
    """Last source offset whose event is in the lake or among the dead letters."""
    ledger: dict[str, Count]
    """`consumed`, `forwarded`, `dead_lettered`, and dead letters by reason code."""
    written_at: Micros

    @property
    def position(self) -> tuple[int, int]:
        return 0, self.offset


class Beat(msgspec.Struct, frozen=True):
    """A sign of life of one partition of one stage."""

    at: Micros
    position: Offset
    """Next offset to read."""
    end: Offset
    """Next offset the log will give out."""
    behind_seconds: float
    waiting_for: str = ""
    """`kafka`, `redis`, `lake` or `dlq` while it waits for one of them."""
    stopped: str = ""
    """Why it will not go on by itself."""
    generation: Count = 0
    """Of the fence that a view's lane goes on from."""

    def __post_init__(self) -> None:
        # JSON has no infinity; written as null, it would make every beat of the stage unreadable.
        if not isfinite(self.behind_seconds):
            raise ValueError(f"behind_seconds is {self.behind_seconds}; expected a finite number")


class Tally(msgspec.Struct, frozen=True):
    """What was folded into one entity partition."""

    ledger: dict[Partition, Counts]
    """Source partition → counts, in the order of `LEDGER`."""
    event_time: Micros
    """The latest event time applied."""


REBUILD_LEASE = 30 * SECOND
"""A rebuild without a sign of life for so long was left by a process that ended."""


class Stage(StrEnum):
    """What the mark of a view says about the values that are stored."""

    REPLACING = ""
    """A rebuild writes over them: nobody may take them for whole."""
    FILLING = "filling"
    """A backfill computes others beside them: they are as good as they were."""
    PROMOTING = "promoting"
    """Those of the backfill take their place, one by one: each is whole or as it was, and nobody vouches for which."""


class Rebuild(msgspec.Struct, frozen=True):
    """A view's values are being computed anew, in a rebuild or a backfill."""

    generation: Count
    """Of the values and fences that are written."""
    lake_version: Offset
    """Of the table of events that is read; -1 where there is none."""
    vector: dict[Partition, Offset]
    """Source partition → last source offset that is folded."""
    offsets: dict[Partition, Offset]
    """Entity partition → the log offset that its values stand at."""
    buckets: Count
    """The entities are divided by a hash of their keys into so many."""
    done: list[Count]
    """Buckets whose values are acknowledged."""
    tallies: dict[Partition, Tally]
    """Of the buckets that are done, by entity partition."""
    entities: Count
    events: Count
    started_at: Micros
    together: list[str]
    """The views that were asked for at that time, each with such a mark until it is done."""
    at: Micros
    """The last sign of life."""
    by: str
    """Names the process that works on it."""
    loads: Count = 0
    """How many loaded files of the source are in that version of the table."""
    stage: Stage = Stage.REPLACING
    vectors: dict[Partition, dict[Partition, Offset]] = {}
    """Entity partition → its own vector, where a backfill of a shuffled view begins at different ones."""

    def abandoned(self, now: int, lease: int = REBUILD_LEASE) -> bool:
        return now - self.at >= lease


class Put(StrEnum):
    """What became of a record that was to be put."""

    STORED = "stored"
    AHEAD = "ahead"
    """Another writer is further on; nothing was written."""
    LOST = "lost"
    """The store holds less than the writer knows to have been acknowledged: it has lost writes. Nothing was written."""


Record = TypeVar("Record", Fence, IntakeMark, Beat, Rebuild)
Positioned = TypeVar("Positioned", Fence, IntakeMark)

_DECODERS: Mapping[type, msgspec.json.Decoder[object]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Fence, IntakeMark, Beat, Rebuild)
}
encode = msgspec.json.Encoder().encode
"""Record → JSON bytes."""


def decode(kind: type[Record], data: bytes, where: str) -> Record:
    """JSON bytes → record. Raises Corrupt, naming `where`, for anything else."""
    try:
        record = _DECODERS[kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(
            f"{where} does not hold {_ARTICLES[kind]}: {error}",
            hint="see what wrote there; delete the field to start the partition from the beginning of its log",
        ) from None
    return cast(Record, record)


def decode_all(kind: type[Record], fields: Mapping[bytes, bytes], where: str) -> dict[int, Record]:
    """The fields of a hash → partition → record. Raises Corrupt."""
    return {_partition(name, where): decode(kind, data, f"{where}[{name!r}]") for name, data in fields.items()}


def judge(found: tuple[int, int] | None, new: tuple[int, int], believed: tuple[int, int] | None) -> Put:
    """Whether a record at position `new` may replace the one at `found`; `believed` is known to have been stored."""
    if believed is not None and (found is None or found < believed):
        return Put.LOST
    return Put.AHEAD if found is not None and found > new else Put.STORED


_ARTICLES = {Fence: "a fence", IntakeMark: "an intake mark", Beat: "a beat", Rebuild: "the mark of a rebuild"}


def _partition(name: bytes, where: str) -> int:
    if not (name.isdigit() and len(name) <= 10):
        raise Corrupt(f"{where} has the field {name[:64]!r}; expected the number of a partition")
    return int(name)
