import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ConfigError, Corrupt, InvalidRequest
from featurestore.online.keys import MAX_KEY_BYTES, Keyspace

names = Keyspace("fs")


def test_a_value_is_named_by_project_view_hash_tag_and_canonical_key() -> None:
    # The tag is the last byte of the key's CRC-32: a change here orphans every stored value.
    assert [b"fs:v:airport_delay@1:{9f}:JFK", b"fs:v:airport_delay@1:{56}:JFK|B6"] == names.values(
        "airport_delay@1", ["JFK", "JFK|B6"]
    )


def test_one_entity_has_one_hash_tag_in_all_views() -> None:
    [airport], [traffic] = names.values("airport@1", ["JFK"]), names.values("traffic@7", ["JFK"])
    assert airport.split(b":")[3] == traffic.split(b":")[3]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_the_canonical_key_is_read_back_from_the_name(key: str) -> None:
    [name] = names.values("v:a/b@1", [key])
    assert key == names.entity("v:a/b@1", name)
    assert ("v:a/b@1", key) == names.owner(name)


@given(st.text(string.printable + "äß{}*", min_size=1, max_size=50))
def test_the_first_braces_of_a_name_are_its_hash_tag(key: str) -> None:
    [name] = names.values("v@1", [key])
    start = name.index(b"{")
    assert b"}" == name[start + 3 : start + 4]
    assert int(name[start + 1 : start + 3], 16) < 256


def test_keys_spread_over_all_tags() -> None:
    tags = {name.split(b":")[3] for name in names.values("v@1", [f"N{i}" for i in range(5000)])}
    assert 256 == len(tags)


def test_the_longest_key_is_taken_and_a_longer_one_refused() -> None:
    assert 1 == len(names.values("v@1", ["é" * (MAX_KEY_BYTES // 2)]))
    with pytest.raises(InvalidRequest, match="1025 bytes; expected at most 1024") as caught:
        names.values("v@1", ["short", "x" + "é" * (MAX_KEY_BYTES // 2)])
    assert "entities" == caught.value.field


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate at 2"):
        names.values("v@1", ["ab\ud800"])


@pytest.mark.parametrize("view_id", ["", "a{b}", "a*", "a b", "a\n", "x" * 257])
def test_a_name_that_would_break_the_layout_is_refused(view_id: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be part of a Redis key"):
        names.values(view_id, ["k"])
    with pytest.raises(InvalidRequest, match="cannot be part of a Redis key"):
        names.pattern(view_id)


@pytest.mark.parametrize("project", ["", "a:b", "{x}", "*", "p" * 65])
def test_a_project_that_would_break_the_layout_is_refused(project: str) -> None:
    with pytest.raises(ConfigError, match="cannot prefix Redis keys"):
        Keyspace(project)


@pytest.mark.parametrize("name", [b"fs:v:v@1:{00}:JFK", b"fs:v:v@1:{9f}:", b"fs:v:v@1:{9f}:\xff\xfe"])
def test_a_foreign_name_under_the_prefix_is_reported(name: bytes) -> None:
    with pytest.raises(Corrupt, match="is not a value of view 'v@1'"):
        names.entity("v@1", name)
