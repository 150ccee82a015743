"""Every record of a topic is an event or a letter, at its own offset."""

import json

import pytest

from featurestore.clock import MINUTE, SECOND
from streams.reading import read
from tests.unit.streams.clicks import records, source

NOW = 1_000 * SECOND


def click(at: int) -> bytes:
    return json.dumps({"at": at, "user": "u", "amount": 1}).encode()


def test_events_and_letters_keep_their_offsets() -> None:
    batch = read(source(), 2, records([click(1), b"{", click(2), None, click(3)], first=40), 40, NOW)

    assert batch.offsets.tolist() == [40, 42, 44]
    assert batch.event_time.tolist() == [1, 2, 3]
    assert [(41, "not_json"), (43, "empty")] == [(letter.offset, letter.reason) for letter in batch.letters]
    assert batch.refused.tolist() == [False, True, False, True, False]
    assert (batch.first, batch.last) == (40, 44)
    assert batch.letters[0].key == b"k"
    assert batch.letters[0].headers == (("h", b"1"),)


@pytest.mark.parametrize(
    ("kind", "timestamp_ms", "limit"),
    [(1, 2_000, 2 * SECOND + 5 * MINUTE), (0, 2_000, NOW + 5 * MINUTE)],
    ids=["the broker's clock where it stamps records", "else the worker's clock"],
)
def test_an_event_beyond_the_skew_is_a_letter(kind: int, timestamp_ms: int, limit: int) -> None:
    held = records([click(limit), click(limit + 1), b"{"], timestamp_ms=timestamp_ms, kind=kind)
    batch = read(source(), 0, held, 0, NOW)

    assert batch.offsets.tolist() == [0]
    assert ["future_event", "not_json"] == [letter.reason for letter in batch.letters]
    assert "max_future_skew=5m" in batch.letters[0].error


def test_a_batch_of_letters_only_has_no_events() -> None:
    batch = read(source(), 0, records([None, b""], first=5), 5, NOW)

    assert batch.offsets.tolist() == []
    assert batch.events.num_rows == 0
    assert [5, 6] == [letter.offset for letter in batch.letters]


def test_an_event_can_become_a_letter_with_the_record_it_was() -> None:
    held = records([b"{", click(7)], first=8)
    letter = read(source(), 1, held, 8, NOW).letter(0, "misrouted", "why")

    assert (letter.partition, letter.offset, letter.value, letter.reason) == (1, 9, click(7), "misrouted")
