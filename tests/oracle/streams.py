"""Random event streams, and random ways of delivering them.

A stream is a set of events that happened; a schedule is how a broker hands them over. Values depend on the first
alone, so a law draws one stream, then several schedules and instants for it:

    stream = data.draw(streams())
    schedule = data.draw(schedules(stream))
    at = data.draw(instants(stream))
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.oracle.meaning import DAY, HOUR, INT64_MAX, INT64_MIN, MINUTE, SECOND, OracleEvent, events_of, latest_time

Window: TypeAlias = tuple[int, int]
"""Length and hop, in microseconds."""
Batch: TypeAlias = tuple[OracleEvent, ...]
Schedule: TypeAlias = tuple[Batch, ...]
Key: TypeAlias = dict[str, Any]

WINDOWS: tuple[Window, ...] = (
    (5 * SECOND, SECOND),
    (61 * SECOND, 5 * SECOND),
    (5 * MINUTE, 15 * SECOND),
    (HOUR, 5 * MINUTE),
    (HOUR, HOUR),
    (DAY, HOUR),
)
"""Default hops, one of which does not divide its window, and a window that is a single hop."""

# 1970 itself, a plain summer day, a leap day and the end of a year: all past, so no clock calls them the future.
ANCHORS = (0, 1_371_000_000 * SECOND, 1_709_164_800 * SECOND, 1_735_689_600 * SECOND)

# Separators and escapes of key encodings, the empty string, NUL, two spellings of one letter, text beyond 16 bits.
ODD_TEXTS = ("", "a", "a|b", "b|", "\\", "a\\|", "\x00", "0", "true", "null", "é", "e\u0301", "😀", "\u202e", "ß", " a")

texts: SearchStrategy[str] = st.one_of(st.sampled_from(ODD_TEXTS), st.text(st.characters(codec="utf-8"), max_size=6))

# Every amount is a multiple of 2^-62 and at most 2^34 in size, so that a sum in double-double is exact and a plain sum
# of doubles is badly wrong: a law may ask for 1e-9 and means it.
amounts: SearchStrategy[float] = st.one_of(
    st.sampled_from((1e10, -1e10, 1e-3)),
    st.sampled_from((0.0, 0.1, 0.2, -0.3, -1e-3, 1e9 + 1, 1e9 + 2, 1e9 + 4)),
    st.integers(-1_000_000, 1_000_000).map(lambda thousandths: thousandths / 1000),
)

# A small spread far from zero: what a variance by running means gets wrong.
readings: SearchStrategy[float] = st.integers(0, 9).map(lambda units: 1e9 + units)

# A thousand of them still sum within int64; as doubles they lose their last digit.
quantities: SearchStrategy[int] = st.one_of(
    st.integers(-5, 5),
    st.integers(2**53 - 3, 2**53 + 3),
    st.integers(-(2**53) - 3, -(2**53) + 3),
)

# Their sums may not fit int64: for operations that only choose among values, or for a law about the overflow.
huge_integers: SearchStrategy[int] = st.one_of(
    st.sampled_from((INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX)), st.integers(INT64_MIN, INT64_MAX)
)

COLUMNS: Mapping[str, SearchStrategy[Any]] = {
    "amount": amounts,
    "reading": readings,
    "quantity": quantities,
    "huge": huge_integers,
    "score": st.integers(-100, 100),
    "label": texts,
    "flag": st.booleans(),
}
"""Columns by name; each is also null now and then."""

KEYS: Mapping[str, SearchStrategy[Any]] = {
    "user": st.sampled_from(("a", "a|b", "b|", "", "é")),
    "shop": st.sampled_from((-1, 0, 7)),
}
"""Key columns by name. A stream takes at most three values of each, and now and then null: entities get many events."""


@dataclass(frozen=True)
class Stream:
    """Events by source partition in offset order; offsets have no holes within a partition."""

    events: tuple[OracleEvent, ...]
    windows: tuple[Window, ...] = WINDOWS
    key_columns: tuple[str, ...] = field(default=tuple(KEYS))

    def partitions(self) -> dict[int, tuple[OracleEvent, ...]]:
        found = sorted({event["partition"] for event in self.events})
        return {p: tuple(event for event in self.events if event["partition"] == p) for p in found}

    def keys(self, *columns: str) -> list[Key]:
        """Every key that occurs over `columns` (all key columns when none is named), without those that hold a null."""
        names = columns or self.key_columns
        found = {tuple(event[name] for name in names) for event in self.events}
        return [dict(zip(names, parts, strict=True)) for parts in sorted(found, key=repr) if None not in parts]

    def of(self, key: Key) -> list[OracleEvent]:
        """The events of one entity."""
        return events_of(self.events, key)


@st.composite
def streams(
    draw: DrawFn,
    *,
    columns: Mapping[str, SearchStrategy[Any]] = COLUMNS,
    keys: Mapping[str, SearchStrategy[Any]] = KEYS,
    windows: Sequence[Window] = WINDOWS,
    min_events: int = 0,
    max_events: int = 30,
    max_partitions: int = 3,
    aligned_by: Sequence[str] = (),
    nulls: bool = True,
) -> Stream:
    """A stream with disorder, ties, hop boundaries, late events, nulls in columns and keys, and instants before 1970.

    `aligned_by` names key columns whose values decide the partition, as when producers key their messages by them.
    """
    times = draw(_pools(windows))
    pools = {name: draw(st.lists(values, min_size=1, max_size=3, unique=True)) for name, values in keys.items()}
    cells = {name: st.sampled_from(pool) for name, pool in pools.items()} | dict(columns)
    row = st.fixed_dictionaries(
        {"event_time": st.sampled_from(times)}
        | {name: _nullable(values) if nulls else values for name, values in cells.items()}
    )
    # Lists are short by themselves; half of the streams are long, so that windows hold many events.
    least = draw(st.sampled_from((min_events, max(min_events, max_events // 2))))
    rows = draw(st.lists(row, min_size=least, max_size=max_events))
    count = draw(st.integers(1, max_partitions))
    starts = draw(st.lists(st.sampled_from((0, 0, 1, 1000, 2**40)), min_size=count, max_size=count))
    queues: list[list[OracleEvent]] = [[] for _ in range(count)]
    for event in rows:
        partition = _aligned(event, aligned_by, count) if aligned_by else draw(st.integers(0, count - 1))
        queue = queues[partition]
        queue.append(event | {"partition": partition, "offset": starts[partition] + len(queue)})
    return Stream(tuple(chain.from_iterable(queues)), tuple(windows), tuple(keys))


@st.composite
def schedules(draw: DrawFn, stream: Stream, *, max_replays: int = 3) -> Schedule:
    """The stream cut into batches, partitions interleaved, each partition in offset order.

    A replay takes one partition back to any earlier offset and goes on from there without holes, as after a restart; so
    every event is delivered at least once, and some again.
    """
    queues = stream.partitions()
    positions = dict.fromkeys(queues, 0)
    replays = draw(st.integers(0, max_replays))
    batches: list[Batch] = []
    while queues:
        if replays and draw(st.booleans()):
            replays -= 1
            partition = draw(st.sampled_from(list(queues)))
            positions[partition] = draw(st.integers(0, positions[partition]))
        if all(positions[p] == len(queues[p]) for p in queues):
            break
        batches.append(tuple(draw(_polls(queues, positions))))
    return tuple(batches)


@st.composite
def instants(draw: DrawFn, stream: Stream, *, key: Key | None = None, from_latest: bool = False) -> int:
    """An instant to ask at: an event's, one where an event leaves a window, a hop boundary, 1 µs beside, or far off.

    With `from_latest`, not before the last event of `key` (of the stream without one): there the online store owes
    exact values however the events arrived.
    """
    events = stream.events if key is None else stream.of(key)
    latest = latest_time(events)
    if latest is None:
        return draw(st.sampled_from(ANCHORS)) + draw(st.integers(-DAY, DAY))
    event_time: int = draw(st.sampled_from(sorted({event["event_time"] for event in events})))
    window, hop = draw(st.sampled_from(stream.windows))
    around: int = draw(
        st.one_of(
            st.sampled_from((event_time, latest, event_time + window, event_time + window + hop)),
            st.integers(-1, 2).map(lambda hops: ((event_time + window) // hop + hops) * hop),
            st.integers(-1, 2).map(lambda hops: (event_time // hop + hops) * hop),
            st.integers(-2 * window, 2 * window).map(lambda away: event_time + away),
            st.sampled_from((latest + 400 * DAY, latest + 10 * window, event_time - 10 * window)),
        )
    )
    at = around + draw(st.sampled_from((0, 0, -1, 1)))
    return max(at, latest) if from_latest else at


def absent_key(stream: Stream, *columns: str) -> Key:
    """A key over `columns` that no event of the stream has, of the types the others have."""
    names = columns or stream.key_columns
    return {name: _unseen(event[name] for event in stream.events) for name in names}


def _unseen(values: Iterator[Any]) -> Any:
    seen = {value for value in values if value is not None}
    numbers = [value for value in seen if isinstance(value, int)]
    return max(numbers) + 1 if numbers else "".join(map(str, sorted(seen))) + "?"


def _nullable(values: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Null about once in nine."""
    return st.integers(0, 8).flatmap(lambda die: st.none() if die == 8 else values)


def _pools(windows: Sequence[Window]) -> SearchStrategy[list[int]]:
    """A few instants around one anchor, for events to share: sharing makes ties, drawing freely makes disorder."""
    return st.sampled_from(ANCHORS).flatmap(
        lambda anchor: st.lists(_times(anchor, windows), min_size=1, max_size=10, unique=True)
    )


def _times(anchor: int, windows: Sequence[Window]) -> SearchStrategy[int]:
    return st.sampled_from(tuple(windows)).flatmap(lambda window: _times_in(anchor, *window))


def _times_in(anchor: int, window: int, hop: int) -> SearchStrategy[int]:
    across = window // hop + 2
    boundaries = st.integers(-across, across).map(lambda hops: (anchor // hop + hops) * hop)
    return st.one_of(
        st.tuples(boundaries, st.sampled_from((-1, 0, 1))).map(sum),
        st.integers(-window, window).map(lambda away: anchor + away),
        st.integers(2, 50).map(lambda late: anchor - late * window - 1),
    )


@st.composite
def _polls(draw: DrawFn, queues: Mapping[int, Sequence[OracleEvent]], positions: dict[int, int]) -> list[OracleEvent]:
    """One batch: at least one event, runs of one or more partitions. Moves `positions` on."""
    batch: list[OracleEvent] = []
    waiting = [p for p in queues if positions[p] < len(queues[p])]
    for partition in draw(st.lists(st.sampled_from(waiting), min_size=1, max_size=4)):
        left = queues[partition][positions[partition] :]
        run = left[: draw(st.integers(1, len(left)))] if left else ()
        positions[partition] += len(run)
        batch.extend(run)
    return batch


def _aligned(event: OracleEvent, columns: Sequence[str], count: int) -> int:
    return sum(repr([event[column] for column in columns]).encode()) % count
