"""The record of when events became readable, written as fold does and read as exports do, says what happened.

The model is a list: for each event the instant of the flush that first made it readable. A worker that is killed takes
what it had not handed over along; of that the fence is the witness, at the instant at which it was written.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine.columns import SEQ_BITS, EventBatch
from featurestore.engine.placement import partitions_of
from featurestore.offline.visibility import NOT_YET, ROWS, Visibility
from featurestore.online.fences import Fence
from streams.visibility import Readable, Seen, seen_rows

Event = tuple[int, int]
"""Source partition and offset."""
KEYS = (*"abcdefgh", None)
INTAKE = 7
"""When intake took all of them."""


@dataclass
class Partition:
    """An entity partition: its log, what the lake has of it, and what a worker holds."""

    number: int
    count: int
    fence: Fence | None = None
    log: int = -1
    vector: dict[int, int] = field(default_factory=dict)
    held: list[Seen] = field(default_factory=list)
    stored: list[Seen] = field(default_factory=list)
    mark: int = -1
    truth: dict[Event, int] = field(default_factory=dict)
    pending: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.readable = Readable(self.held.append, self.number, self.count, self.fence)

    def deliver(self, events: list[Event], now: int) -> None:
        self.log += 1
        before = dict(self.vector)
        for partition, offset in events:
            if offset > self.vector.get(partition, -1):
                self.vector[partition] = offset
            if (partition, offset) not in self.truth:
                self.truth[partition, offset] = now
                self.pending.append((partition, offset))
        self.readable.note(before, dict(self.vector), self.log, now)
        self.fence = Fence(0, self.log, dict(self.vector), {}, 0, 0, now + 1)

    def flush(self) -> None:
        self.stored += [seen for seen in self.held if seen.offset > self.mark]
        self.mark = max([self.mark, *(seen.offset for seen in self.held)])
        self.held.clear()
        self.pending.clear()

    def kill(self) -> None:
        self.held.clear()
        if self.fence is not None:
            for event in self.pending:
                self.truth[event] = self.fence.written_at
        self.pending.clear()
        self.open()
        self.flush()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_record_gives_each_event_the_instant_it_became_readable(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 3))
    partitions = [Partition(number, count) for number in range(count)]
    sent = {p: [data.draw(st.sampled_from(KEYS)) for _ in range(data.draw(st.integers(0, 12)))] for p in range(2)}
    homes = {p: partitions_of(pa.array(keys, pa.string()), count, p % count).tolist() for p, keys in sent.items()}
    done = dict.fromkeys(sent, 0)
    now = 1_000
    for _ in range(data.draw(st.integers(0, 12))):
        now += data.draw(st.integers(2, 50))
        some = data.draw(st.sampled_from(partitions))
        match data.draw(st.sampled_from(("intake", "intake", "flush", "kill"))):
            case "flush":
                some.flush()
            case "kill":
                some.kill()
            case _:
                source = data.draw(st.sampled_from(sorted(sent)))
                start = max(0, done[source] - data.draw(st.sampled_from((0, 0, 2))))
                done[source] = max(done[source], min(len(sent[source]), start + data.draw(st.integers(1, 5))))
                for home in partitions:
                    mine = [(source, o) for o in range(start, done[source]) if homes[source][o] == home.number]
                    if mine:
                        home.deliver(mine, now)
    for partition in partitions:
        partition.flush()

    seen = [seen for partition in partitions for seen in partition.stored]
    record = Visibility(seen_rows(data.draw(st.permutations(seen))) if seen else ROWS.empty_table())
    events = [(p, o) for p, keys in sent.items() for o in range(len(keys))]
    keys = pa.array([sent[p][o] for p, o in events], pa.string())
    seq = np.array([p << SEQ_BITS | o for p, o in events], np.int64)
    taken = pa.array([INTAKE] * len(events), pa.int64()).cast(pa.timestamp("us", "UTC"))
    instants, known = record.of(EventBatch(keys, seq, seq, {"visible_time": taken}))

    truth = {event: at for partition in partitions for event, at in partition.truth.items()}
    without = INTAKE if not seen else NOT_YET
    assert instants.tolist() == [truth.get(event, without) for event in events]
    assert known.not_yet == (instants == NOT_YET).sum()
    assert known.from_intake == (instants == INTAKE).sum()
    assert known.recorded + known.not_yet + known.from_intake == len(events)


def record_of(*rows: tuple[int, ...]) -> Visibility:
    """Rows of (entity partition, of how many, source partition, after, up to, instant)."""
    seen = [Seen(home, n, count, ((source, after, up_to),), at)
            for n, (home, count, source, after, up_to, at) in enumerate(rows)]  # fmt: skip
    return Visibility(seen_rows(seen))


def instants(record: Visibility, *events: Event) -> list[int]:
    seq = np.array([p << SEQ_BITS | o for p, o in events], np.int64)
    taken = pa.array([INTAKE] * len(events), pa.int64()).cast(pa.timestamp("us", "UTC"))
    keys = pa.array(["a"] * len(events), pa.string())
    return record.of(EventBatch(keys, seq, seq, {"visible_time": taken}))[0].tolist()  # type: ignore[no-any-return]


def test_what_a_replay_adds_changes_nothing() -> None:
    record = record_of((0, 0, 0, -1, 4, 100), (0, 0, 0, 4, 9, 200), (0, 0, 0, 2, 9, 900), (0, 0, 0, -1, 9, 1_000))
    assert instants(record, (0, 0), (0, 4), (0, 5), (0, 9), (0, 10)) == [100, 100, 200, 200, NOT_YET]


def test_events_of_before_the_record_began_have_the_instant_of_intake() -> None:
    record = record_of((0, 0, 0, 50, 50, 100), (0, 0, 0, 50, 60, 200))
    assert instants(record, (0, 50), (0, 51), (0, 61)) == [INTAKE, 200, NOT_YET]


def test_loaded_events_have_the_instant_of_their_load() -> None:
    record = record_of((0, 0, 0, -1, 60, 200))
    assert instants(record, (-1, 5)) == [INTAKE]


def test_in_an_aligned_view_a_partition_says_nothing_of_another() -> None:
    record = record_of((0, 0, 0, -1, 9, 100), (1, 0, 1, -1, 9, 200))
    assert instants(record, (0, 9), (1, 9), (2, 0)) == [100, 200, NOT_YET]
