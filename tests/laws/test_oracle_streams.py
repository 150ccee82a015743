"""What the generators promise, and that they do reach the cases they exist for."""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from tests.oracle.meaning import HOUR, MINUTE, OracleEvent, latest_time
from tests.oracle.streams import Stream, absent_key, amounts, instants, schedules, streams

Place = tuple[int, int]

# Finding one example is the point; making it small would take most of the time.
UNSHRUNK = settings(max_examples=2000, database=None, phases=(Phase.generate,))

# The promises hold by construction; drawing whole streams is what costs.
FEW = settings(max_examples=40)


def place(event: OracleEvent) -> Place:
    return event["partition"], event["offset"]


@FEW
@given(streams())
def test_offsets_have_no_holes(stream: Stream) -> None:
    for events in stream.partitions().values():
        offsets = [event["offset"] for event in events]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))


@FEW
@given(st.data())
def test_a_schedule_delivers_everything_and_skips_nothing(data: st.DataObject) -> None:
    stream = data.draw(streams())
    delivered = [event for batch in data.draw(schedules(stream)) for event in batch]
    assert {place(event) for event in delivered} == {place(event) for event in stream.events}
    reached: dict[int, int] = {p: events[0]["offset"] - 1 for p, events in stream.partitions().items()}
    for partition, offset in map(place, delivered):
        assert offset <= reached[partition] + 1, "an offset was skipped"
        reached[partition] = max(reached[partition], offset)


@FEW
@given(st.data())
def test_after_a_replay_a_partition_goes_on_without_holes(data: st.DataObject) -> None:
    stream = data.draw(streams())
    delivered = [event for batch in data.draw(schedules(stream)) for event in batch]
    for partition in stream.partitions():
        offsets = [event["offset"] for event in delivered if event["partition"] == partition]
        assert all(after <= before + 1 for before, after in pairwise(offsets))


@FEW
@given(st.data())
def test_no_batch_is_empty(data: st.DataObject) -> None:
    assert all(data.draw(schedules(data.draw(streams()))))


@FEW
@given(st.data())
def test_instants_from_the_latest_event_are_not_before_it(data: st.DataObject) -> None:
    stream = data.draw(streams(min_events=1, nulls=False))
    key = data.draw(st.sampled_from(stream.keys()))
    latest = latest_time(stream.of(key))
    assert latest is not None
    assert data.draw(instants(stream, key=key, from_latest=True)) >= latest


@FEW
@given(streams(aligned_by=("user",), min_events=1))
def test_an_aligned_stream_has_each_key_in_one_partition(stream: Stream) -> None:
    for key in stream.keys("user"):
        assert len({event["partition"] for event in stream.of(key)}) == 1


@FEW
@given(streams())
def test_the_absent_key_is_absent(stream: Stream) -> None:
    assert stream.of(absent_key(stream)) == []
    assert None not in absent_key(stream).values()


@given(amounts)
def test_amounts_sum_exactly_in_double_double(amount: float) -> None:
    assert abs(amount) <= 2**34
    assert (Fraction(amount) * 2**62).denominator == 1


def has_tie(stream: Stream) -> bool:
    return len({event["event_time"] for event in stream.events}) < len(stream.events)


def has_disorder(stream: Stream) -> bool:
    return any(
        later["event_time"] < earlier["event_time"]
        for events in stream.partitions().values()
        for earlier, later in pairwise(events)
    )


def has_boundary(beside: int) -> Callable[[Stream], bool]:
    return lambda stream: any(event["event_time"] % (5 * MINUTE) == beside for event in stream.events)


def has_late(stream: Stream) -> bool:
    times = [event["event_time"] for event in stream.events]
    return bool(times) and max(times) - min(times) > 3 * HOUR


def has_null(column: str) -> Callable[[Stream], bool]:
    return lambda stream: any(event[column] is None for event in stream.events)


REACHED: dict[str, Callable[[Stream], bool]] = {
    "ties": has_tie,
    "ties across partitions": lambda stream: has_tie(stream) and len(stream.partitions()) > 1,
    "disorder": has_disorder,
    "a hop boundary": has_boundary(0),
    "just after a hop boundary": has_boundary(1),
    "just before a hop boundary": has_boundary(5 * MINUTE - 1),
    "late events": has_late,
    "before 1970": lambda stream: any(event["event_time"] < 0 for event in stream.events),
    "a null in a column": has_null("amount"),
    "a null in a key": has_null("user"),
    "an empty stream": lambda stream: not stream.events,
    "several entities": lambda stream: len(stream.keys()) > 3,
    "far offsets": lambda stream: any(event["offset"] >= 2**40 for event in stream.events),
}


@pytest.mark.parametrize("case", REACHED)
def test_streams_reach(case: str) -> None:
    find(streams(), REACHED[case], settings=UNSHRUNK)


def test_schedules_reach_a_replay_and_an_interleaving() -> None:
    def replayed(drawn: tuple[Stream, tuple[tuple[OracleEvent, ...], ...]]) -> bool:
        stream, batches = drawn
        switches = [event["partition"] for batch in batches for event in batch]
        interleaved = sum(a != b for a, b in pairwise(switches)) > len(stream.partitions())
        return interleaved and len(switches) > len(stream.events)

    drawn = streams().flatmap(lambda stream: st.tuples(st.just(stream), schedules(stream)))
    find(drawn, replayed, settings=UNSHRUNK)
