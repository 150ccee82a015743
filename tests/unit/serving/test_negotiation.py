import gzip

import pyarrow as pa
import pytest

from featurestore.serving.negotiation import (
    ARROW,
    IN_THREAD,
    MIN_COMPRESSED,
    NO_WISHES,
    Wishes,
    compressed,
    wishes_of,
)

LARGE = b"[0.5, 1.5, 2.5]" * (MIN_COMPRESSED // 10)


@pytest.mark.parametrize(
    "accept",
    [
        ARROW,
        ARROW.upper(),
        f"{ARROW}, */*",
        f"*/*, {ARROW}",
        f"application/*;q=1.0, {ARROW}",
        f"application/json;q=0.9, {ARROW}; q=0.95",
        f"text/html, {ARROW};q=0.001",
        f"application/json;q=nonsense, {ARROW};q=0.1",
    ],
)
def test_an_arrow_stream_is_answered_to_who_prefers_it(accept: str) -> None:
    assert Wishes(accept=accept.encode()).arrow


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/json",
        "text/html",
        ";;,q=,\xff",
        f"{ARROW};q=0",
        f"{ARROW};q=0.000, text/html",
        f"{ARROW};q=2",
        f"{ARROW};q=-1",
        f"{ARROW};q=0.5, application/json",
        f"{ARROW};q=0.5, */*",
        f"application/json, {ARROW}",
        f"{ARROW}, application/json",
        "application/vnd.apache.arrow.file",
    ],
)
def test_json_is_answered_to_everybody_else(accept: str) -> None:
    assert not Wishes(accept=accept.encode("latin-1")).arrow


@pytest.mark.parametrize(
    ("accept_encoding", "chosen"),
    [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("GZIP", "gzip"),
        ("gzip, zstd", "zstd"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("gzip;q=0.1", "gzip"),
        ("gzip, identity", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *;q=0.5", "gzip"),
        ("*;q=0, gzip", "gzip"),
        ("", ""),
        ("br, deflate", ""),
        ("gzip;q=0", ""),
        ("gzip;q=0, zstd;q=0.0", ""),
        ("identity, gzip;q=0.5", ""),
        ("identity;q=0.2, *;q=0.1", ""),
        ("*;q=0", ""),
        ("gzip;q=much", ""),
    ],
)
def test_an_encoding_is_chosen_by_weight_and_never_one_that_was_not_asked_for(
    accept_encoding: str, chosen: str
) -> None:
    assert chosen == Wishes(accept_encoding=accept_encoding.encode()).encoding


def test_headers_that_are_repeated_are_one_list() -> None:
    headers = [
        (b"host", b"api"),
        (b"accept", b"application/json;q=0.5"),
        (b"accept-encoding", b"br"),
        (b"accept", ARROW.encode()),
        (b"accept-encoding", b"gzip"),
    ]

    assert Wishes(b"application/json;q=0.5," + ARROW.encode(), b"br,gzip") == wishes_of(headers)
    assert wishes_of([(b"host", b"api")]) is NO_WISHES


@pytest.mark.parametrize("times", [1, IN_THREAD // MIN_COMPRESSED])
async def test_what_was_compressed_can_be_read_back(times: int) -> None:
    body = LARGE * times

    by_gzip, gzip_name = await compressed(body, Wishes(accept_encoding=b"gzip"))
    by_zstd, zstd_name = await compressed(body, Wishes(accept_encoding=b"zstd"))

    assert ("gzip", "zstd") == (gzip_name, zstd_name)
    assert max(len(by_gzip), len(by_zstd)) < len(body) / 5
    assert body == gzip.decompress(by_gzip)
    assert body == pa.input_stream(pa.BufferReader(by_zstd), compression="zstd").read()


async def test_a_small_body_stays_as_it_is() -> None:
    body = b"x" * (MIN_COMPRESSED - 1)

    assert (body, "") == await compressed(body, Wishes(accept_encoding=b"gzip, zstd"))


async def test_nothing_is_compressed_unasked() -> None:
    assert (LARGE, "") == await compressed(LARGE, NO_WISHES)
