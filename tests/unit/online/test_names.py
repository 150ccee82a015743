"""Kept names are those of the keyspace, also when they were forgotten meanwhile."""

from collections.abc import Sequence

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import InvalidRequest
from featurestore.online import names
from featurestore.online.keys import Keyspace
from featurestore.online.names import Names, mget

KEYSPACE = Keyspace("fs")
VIEWS = ("a@1", "b@1")


def words(packed: bytes) -> list[bytes]:
    reader = hiredis.Reader()
    reader.feed(packed)
    found: list[bytes] = reader.gets()
    return found


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(VIEWS), st.lists(st.text(min_size=1, max_size=3).filter(str.isprintable), max_size=6)
            ),
            max_size=3,
        ),
        max_size=6,
    )
)
def test_a_read_asks_for_the_names_of_all_keys_in_order(reads: list[list[tuple[str, list[str]]]]) -> None:
    kept = Names(KEYSPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "MOST_NAMES", 5)
        for wanted in reads:
            expected = [name for view, keys in wanted for name in KEYSPACE.values(view, keys)]
            packed = kept.of(wanted)
            assert not (expected or packed) or [b"MGET", *expected] == words(mget(packed))


@pytest.mark.parametrize("key", ["x" * 2000, "\ud800"])
def test_a_key_that_cannot_be_stored_is_refused_each_time(key: str) -> None:
    kept = Names(KEYSPACE)
    wanted: Sequence[tuple[str, Sequence[str]]] = [("a@1", ["fine", key])]
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            kept.of(wanted)
    assert [b"MGET", *KEYSPACE.values("a@1", ["fine"])] == words(mget(kept.of([("a@1", ["fine"])])))


def test_few_names_are_kept() -> None:
    kept = Names(KEYSPACE)
    for start in range(0, 3 * names.MOST_NAMES, 1000):
        kept.of([("a@1", [f"k{i}" for i in range(start, start + 1000)])])
    assert sum(map(len, kept._known.values())) <= names.MOST_NAMES
