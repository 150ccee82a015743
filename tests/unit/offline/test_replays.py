"""The documents of replays: one number for one process, and nothing forgotten."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from featurestore.errors import Corrupt, Unavailable
from featurestore.offline.documents import Documents
from featurestore.offline.lake import Lake
from featurestore.offline.replays import Places, Replay, Replays

PLACES = st.tuples(st.integers(0, 3), st.integers(0, 5000) | st.integers(0, 2**63 - 1))


def replay(*letters: tuple[int, int], by: str = "ada") -> Replay:
    return Replay(letters, {0: 10, 1: 0}, by, at=7)


@pytest.fixture
def replays(tmp_path: Path) -> Replays:
    return Replays(Lake(str(tmp_path / "the lake")), "shop.orders")


@given(st.lists(st.tuples(st.booleans(), PLACES)))
def test_places_are_a_set(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    plain, places = set[tuple[int, int]](), Places()
    for adding, place in steps:
        assert (place in plain) == (place in places)
        if adding:
            assert places.add(place) == (place not in plain)
            plain.add(place)
        else:
            places.discard(place)
            plain.discard(place)
    assert len(plain) == len(places)


def test_nothing_was_replayed_where_there_is_no_folder(replays: Replays, tmp_path: Path) -> None:
    history = replays.read()

    assert (0, 0, None) == (history.last, len(history.replayed), history.unfinished)
    assert not (tmp_path / "the lake").exists()


def test_a_document_is_read_as_it_was_written_and_is_unfinished_until_it_is_done(replays: Replays) -> None:
    assert replays.create(1, replay((0, 5), (1, 2**62)))
    history = replays.read()

    assert replay((0, 5), (1, 2**62)) == history.unfinished
    assert (0, 5) in history.replayed
    assert (1, 2**62) in history.replayed
    replays.finish(1, ())
    assert replays.read().unfinished is None
    assert 2 == len(replays.read().replayed)


def test_refused_letters_count_as_replayed_only_when_they_are_sent_later(replays: Replays) -> None:
    replays.create(1, replay((0, 5), (0, 6)))
    replays.finish(1, [(0, 6)])

    assert (0, 6) not in replays.read().replayed
    replays.create(2, replay((0, 6)))
    assert (0, 6) in replays.read().replayed


def test_of_many_who_want_a_number_one_gets_it(replays: Replays) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: replays.create(1, replay((0, n), by=f"process {n}")), range(40)))

    assert 1 == won.count(True)
    assert f"process {won.index(True)}" == replays.document(1).by


def test_whoever_asks_twice_after_a_lost_answer_still_has_the_number(replays: Replays) -> None:
    assert replays.create(1, replay((0, 5)))
    assert replays.create(1, replay((0, 5)))


def test_what_a_killed_writer_left_is_no_document(replays: Replays, tmp_path: Path) -> None:
    replays.create(1, replay((0, 5)))
    (tmp_path / "the lake" / "dlq" / "shop.orders" / ".0f.partial").write_bytes(b'{"lett')

    assert 1 == replays.read().last


def test_an_empty_mark_made_by_hand_finishes_a_document(replays: Replays, tmp_path: Path) -> None:
    replays.create(1, replay((0, 5)))
    (tmp_path / "the lake" / replays.name(1, done=True)).touch()

    assert replays.read().unfinished is None


def test_a_missing_document_is_an_error_and_not_a_second_chance(replays: Replays, tmp_path: Path) -> None:
    replays.create(1, replay((0, 5)))
    replays.create(2, replay((0, 6)))
    (tmp_path / "the lake" / replays.name(1)).unlink()

    with pytest.raises(Corrupt, match=r"dlq/shop\.orders/1\.json is missing"):
        replays.read()


def test_a_document_that_was_tampered_with_is_named(replays: Replays, tmp_path: Path) -> None:
    replays.create(1, replay((0, 5)))
    (tmp_path / "the lake" / replays.name(1)).write_text('{"letters": "all"}')

    with pytest.raises(Corrupt, match=r"dlq/shop\.orders/1\.json .* is not what was written"):
        replays.read()


def test_a_lake_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(Unavailable) as caught:
        Replays(Lake(str(tmp_path / "file")), "orders").create(1, replay((0, 5)))
    assert "lake" == caught.value.part


def test_in_an_object_store_as_in_a_directory_a_document_is_created_once() -> None:
    documents = Documents(MemoryStore(), lambda _: nullcontext())

    assert [True, True, False] == [documents.create("1.json", data) for data in (b"a", b"a", b"b")]
    assert (["1.json"], b"a") == (documents.names(), documents.read("1.json"))
