"""Dead letters as they are read: what counts of their headers, and which are the newest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from featurestore.offline.replays import Places
from streams.letters import Listing, StoredLetter, parse, whole


def record(**ours: bytes) -> Any:
    named = {"topic": b"orders", "partition": b"2", "offset": b"7", "reason": b"not_json", "error": b"no"} | ours
    headers = [("h", b"\xff"), *((f"fs.{name}", value) for name, value in named.items())]
    return SimpleNamespace(key=b"k", value=b"{", headers=headers, timestamp=1_772_366_400_000)


def letter(offset: int, at: int, reason: str = "not_json") -> StoredLetter:
    made = record(offset=b"%d" % offset, reason=reason.encode())
    made.timestamp = at
    found = parse(made, "orders")
    assert found is not None
    return found


def test_headers_of_the_store_are_not_the_events() -> None:
    found = parse(record(contract=b"orders/v1", revision=b"3"), "orders")

    assert found is not None
    assert (2, 7) == found.place
    assert (("h", b"\xff"),) == found.letter.headers
    assert ("orders/v1", "3", 1_772_366_400_000_000) == (found.contract, found.revision, found.at)
    assert 8 == len(found.headers)


def test_of_a_letter_that_was_refused_twice_the_last_refusal_counts() -> None:
    twice = record()
    twice.headers += [("fs.partition", b"2"), ("fs.offset", b"90"), ("fs.reason", b"empty")]
    found = parse(twice, "orders")

    assert found is not None
    assert ((2, 90), "empty") == (found.place, found.letter.reason)


@pytest.mark.parametrize(
    "ours",
    [{"topic": b"another"}, {"partition": b""}, {"offset": b"-1"}, {"offset": "٣".encode()}, {"offset": b"9" * 5000}],
    ids=str,
)
def test_a_record_without_a_place_in_the_topic_is_no_letter(ours: dict[str, bytes]) -> None:
    assert parse(record(**ours), "orders") is None


@pytest.mark.parametrize("timestamp", [-1, 2**62])
def test_a_timestamp_that_is_no_instant_hurts_nobody(timestamp: int) -> None:
    listing = Listing(1, Places())
    listing.add(letter(1, timestamp))

    assert whole(letter(1, timestamp), replayed=False)["at"] == listing.document()["newest"][0]["at"]


def test_a_list_counts_all_and_shows_the_newest() -> None:
    listing = Listing(2, Places([(2, 10), (2, 40)]))
    for offset, at, reason in ((10, 3000, "empty"), (20, 9000, "empty"), (30, 1000, "not_json"), (40, 5000, "empty")):
        listing.add(letter(offset, at, reason))
    document = listing.document()

    assert (4, 2) == (document["letters"], document["replayed"])
    assert [("empty", 3, 2, "1970-01-01T00:00:09Z"), ("not_json", 1, 0, "1970-01-01T00:00:01Z")] == [
        tuple(reason.values()) for reason in document["reasons"]
    ]
    assert [(20, False), (40, True)] == [(entry["offset"], entry["replayed"]) for entry in document["newest"]]


def test_a_limit_of_0_shows_none() -> None:
    listing = Listing(0, Places())
    listing.add(letter(1, 1000))

    assert (1, []) == (listing.document()["letters"], listing.document()["newest"])
