import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import Corrupt
from featurestore.online.fences import Beat, Fence, IntakeMark, Put, decode, decode_all, encode, judge

counts = st.integers(0, 2**63 - 1)
offsets = st.integers(-1, 2**63 - 1)
partitions = st.integers(0, 2**31 - 1)
micros = st.integers(-(2**63), 2**63 - 1)
fences = st.builds(
    Fence,
    generation=counts,
    offset=offsets,
    vector=st.dictionaries(partitions, offsets, max_size=4),
    ledger=st.dictionaries(partitions, st.lists(counts, min_size=6, max_size=6), max_size=4),
    event_time=micros,
    broker_time=micros,
    written_at=micros,
)
FENCE = Fence(
    generation=2,
    offset=2**53 + 1,
    vector={0: 17, 3: -1},
    ledger={0: [5, 4, 0, 1, 0, 0]},
    event_time=-1,
    broker_time=10,
    written_at=11,
)


@given(fences)
def test_a_fence_is_read_back_as_it_was_written(fence: Fence) -> None:
    assert fence == decode(Fence, encode(fence), "here")


def test_marks_and_beats_are_read_back_as_they_were_written() -> None:
    mark = IntakeMark(
        lanes={"departures/origin": 2**60}, offset=-1, ledger={"consumed": 3, "not_json": 1}, written_at=5
    )
    beat = Beat(at=1, position=0, end=7, behind_seconds=0.25, waiting_for="redis", stopped="gap at 7")
    assert (mark, beat) == (decode(IntakeMark, encode(mark), "m"), decode(Beat, encode(beat), "b"))


def test_a_field_of_a_later_release_is_ignored() -> None:
    later = encode(FENCE)[:-1] + b',"added_later":[1]}'
    assert FENCE == decode(Fence, later, "here")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "truncated"),
        (b"\x00\xff\xfe", "malformed"),
        (b"\xff", "malformed"),
        (b"null", "Expected `object`"),
        (b"{}", "missing required field `generation`"),
        (encode(FENCE).replace(b'"generation":2', b'"generation":-2'), "`int` >= 0"),
        (encode(FENCE).replace(b'"generation":2', b'"generation":2.5'), "Expected `int`"),
        (encode(FENCE).replace(b'"generation":2', b'"generation":9223372036854775808'), "`int` <= 9223372036854775807"),
        (encode(FENCE).replace(b'"generation":2', b'"generation":1e400'), "out of range"),
        (encode(FENCE).replace(b"[5,4,0,1,0,0]", b"[5,4,0,1,0]"), "length >= 6"),
        (encode(FENCE).replace(b'"3":-1', b'"-3":-1'), "`int` >= 0"),
    ],
)
def test_anything_else_is_corrupt_and_says_where(data: bytes, what: str) -> None:
    with pytest.raises(Corrupt) as caught:
        decode(Fence, data, "fs:fence:v@1[3]")
    assert caught.value.message.startswith("fs:fence:v@1[3] does not hold a fence: ")
    assert what in caught.value.message


@pytest.mark.parametrize("name", [b"", b"-1", b"one", b"1.0", b"\xb2", b"1" * 11])
def test_a_field_that_is_no_partition_is_corrupt(name: bytes) -> None:
    with pytest.raises(Corrupt, match="expected the number of a partition"):
        decode_all(Fence, {name: encode(FENCE)}, "fs:fence:v@1")


@pytest.mark.parametrize("behind", [float("inf"), float("nan")])
def test_a_beat_that_could_not_be_read_back_cannot_be_made(behind: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        Beat(at=0, position=0, end=0, behind_seconds=behind)


@pytest.mark.parametrize(
    ("expected", "found", "new", "believed"),
    [
        (Put.STORED, None, (0, 0), None),
        (Put.STORED, (1, 5), (1, 5), None),
        (Put.STORED, (1, 5), (1, 6), (1, 5)),
        (Put.STORED, (1, 9), (2, 0), None),
        (Put.AHEAD, (1, 6), (1, 5), None),
        (Put.AHEAD, (2, 0), (1, 9), (1, 8)),
        (Put.LOST, None, (1, 6), (1, 5)),
        (Put.LOST, (1, 4), (1, 6), (1, 5)),
        (Put.LOST, (1, 9), (2, 6), (2, 5)),
    ],
)
def test_a_record_replaces_what_is_not_greater_unless_the_store_lost_writes(
    expected: Put, found: tuple[int, int] | None, new: tuple[int, int], believed: tuple[int, int] | None
) -> None:
    assert expected is judge(found, new, believed)
