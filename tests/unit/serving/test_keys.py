"""API keys as they are made, written down and found again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.clock import DAY
from featurestore.errors import ConfigError, UsageError
from featurestore.serving.keys import ApiKey, digest_of, new_key, parse_keys

HASH = "sha256:" + "ab" * 32


def test_a_key_has_256_random_bits_and_its_line_has_none_of_them() -> None:
    made = [new_key("scoring", ["lookup:flight_delay"]) for _ in range(100)]

    assert {43 + len("fsk_")} == {len(key) for key, _ in made}
    assert len({key for key, _ in made}) == 100
    assert not any(key in entry.line or key[4:12] in entry.line for key, entry in made)


@pytest.mark.parametrize("expires", [None, 0, 1_772_366_400_000_000])
def test_a_line_is_read_back_as_it_was_written(expires: int | None) -> None:
    key, entry = new_key("scoring-2.b", ["lookup:flight_delay", "lookup:*", "admin"], expires=expires)
    ring = parse_keys(f"# whose\n\n  {entry.line}  # and why\n", "the file")

    assert (entry,) == ring.keys
    found = ring.find(digest_of(key.encode()))
    assert found is not None
    assert (entry, "scoring-2.b", True) == (found[0], found[1].name, found[1].admin)


def test_another_key_is_not_found_although_its_digest_begins_alike() -> None:
    digest = bytes(32)
    ring = parse_keys(ApiKey("a", ("admin",), digest).line, "the file")

    assert ring.find(digest) is not None
    assert None is ring.find(digest[:31] + b"\1")
    assert None is ring.find(digest[:8])


def test_two_keys_of_one_name_are_valid_at_once() -> None:
    keys, entries = zip(*(new_key("scoring", ["lookup:a"], expires=DAY * n) for n in (1, 2)), strict=True)
    ring = parse_keys("\n".join(entry.line for entry in entries), "the file")

    found = [ring.find(digest_of(key.encode())) for key in keys]
    assert ["scoring", "scoring"] == [holder[1].name for holder in found if holder is not None]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scoring", "has 1 words"),
        (f"scoring admin {HASH} 2027-01-01T00:00:00Z more", "has 5 words"),
        (f"sco/ring admin {HASH}", "its name"),
        (f"scoring lookup {HASH}", "its scopes"),
        (f"scoring lookup:Flight {HASH}", "its scopes"),
        (f"scoring admin, {HASH}", "its scopes"),
        (f"scoring admin {HASH[:-1]}", "its hash"),
        (f"scoring admin {HASH.upper()}", "its hash"),
        ("scoring admin md5:" + "ab" * 32, "its hash"),
        (f"scoring admin {HASH} tomorrow", "'tomorrow' is not RFC 3339"),
        (f"scoring admin {HASH} 2027-01-01T00:00:00", "is not RFC 3339 with a zone"),
        (f"scoring admin {HASH}\nother admin {HASH}", "line 4: this key is in line 3 already"),
    ],
)
def test_a_line_that_is_wrong_is_refused_by_its_number(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys(f"# keys\n\n{line}\n", "keys.txt")

    assert caught.value.message.startswith("keys.txt, line ")
    assert said in caught.value.message


def test_a_key_in_the_file_of_hashes_is_refused_and_not_repeated() -> None:
    key, _ = new_key("scoring", ["admin"])
    with pytest.raises(ConfigError, match="it holds a key itself") as caught:
        parse_keys(f"scoring admin {key}", "keys.txt")

    assert key[4:] not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "scopes", "field"),
    [
        ("", ["admin"], "name"),
        ("fsk_a", ["admin"], "name"),
        ("a b", ["admin"], "name"),
        ("x" * 65, ["admin"], "name"),
        ("a", [], "scope"),
        ("a", ["lookup:"], "scope"),
        ("a", ["lookup:a b"], "scope"),
        ("a", ["Admin"], "scope"),
    ],
)
def test_a_key_that_could_not_be_written_down_is_not_made(name: str, scopes: list[str], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        new_key(name, scopes)

    assert field == caught.value.field


@given(st.text(alphabet=st.sampled_from("a \n\t#:,*sha256lookupdmin0Tz\u2028é"), max_size=200) | st.text(max_size=200))
def test_no_text_does_more_than_to_be_refused(text: str) -> None:
    try:
        ring = parse_keys(text, "keys.txt")
    except ConfigError:
        return
    assert all(parse_keys(key.line, "again").keys == (key,) for key in ring.keys)
