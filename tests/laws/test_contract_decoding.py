"""However values are written or broken, the fast paths decode them as the exact ones do, row by row."""

import io
import json
import struct
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.clock import MAX_INSTANT, MIN_INSTANT, format_instant
from featurestore.contracts.avro_columns import decode_avro
from featurestore.contracts.contract import Contract, parse_contract
from featurestore.contracts.decode import Decoded, Encoding, decode
from featurestore.contracts.json_columns import CHUNK_ROWS, decode_json, decode_json_exactly

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "seen", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}], "default": None},
        {"name": "n", "type": "int"},
        {"name": "big", "type": ["long", "null"], "default": -5},
        {"name": "x", "type": "double"},
        {"name": "y", "type": ["null", "float"]},
        {"name": "name", "type": "string"},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "side", "type": {"type": "enum", "name": "Side", "symbols": ["BUY", "SELL"]}, "default": "SELL"},
        {"name": "ok", "type": "boolean", "default": True},
    ],
}
ENCODINGS: list[Encoding] = ["auto", "json", "avro", "confluent"]
CONTRACT: Contract = parse_contract("events/v1", json.dumps(SCHEMA))

instants = st.one_of(
    st.integers(MIN_INSTANT, MAX_INSTANT),
    st.integers(MIN_INSTANT // 10**6, MAX_INSTANT // 10**6).map(lambda s: s * 10**6),
)
stamp_texts = st.one_of(
    instants.map(format_instant),
    st.datetimes().map(lambda d: d.isoformat() + "+05:30"),
    st.from_regex(
        r"(20|00|99)[0-9]{2}-[012][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6]0:[0-6][0-9]"
        r"(\.[0-9]{1,9})?(Z|z|[+-][0-2][0-9]:[0-6]0)?",
        fullmatch=True,
    ),
)
texts = st.text(max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
events = st.fixed_dictionaries(
    {
        "at": st.one_of(instants, stamp_texts),
        "n": st.integers(-(2**31), 2**31 - 1),
        "x": st.one_of(finite, st.integers(-(2**70), 2**70)),
        "y": st.none() | finite,
        "name": texts,
    },
    optional={
        "seen": st.none() | stamp_texts | st.integers(-(10**12), 10**12),
        "big": st.none() | st.integers(-(2**63), 2**63 - 1),
        "note": st.none() | texts,
        "side": st.sampled_from(["BUY", "SELL", "HOLD"]),
        "ok": st.booleans(),
        "extra": st.recursive(
            st.none() | st.booleans() | finite | texts,
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
            max_leaves=4,
        ),
    },
)
layouts = st.sampled_from(
    [{}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": 1}, {"separators": (" , ", " : ")}]
)
documents = st.builds(lambda event, layout: json.dumps(event, **layout).encode(), events, layouts)

# What replaces a piece of a good document: each is a way in which real producers, or the two parsers, go wrong.
SPLINTERS = [
    b'', b' ', b'\n', b'\r\n', b'"', b'\\', b'\\"', b'\\u0000', b'\\ud800', b'\\ud83d\\ude00', b'\\u00e9', b'\xff',
    b'\xc3\xa9', b'{', b'}', b'[', b']', b',', b':', b'NaN', b'Infinity', b'-Infinity', b'-Inf', b'-NaN', b'nan',
    b'null', b'true', b'1.0', b'1e2', b'1e999', b'-0', b'-0.0', b'01', b'1.', b'-', b'+1', b'9223372036854775808',
    b'2147483648', b"9" * 410, b'"n":1', b'"n": 1,', b'"x":0,', b'"x":-0.0,', b'"extra":1,', b'"extra":NaN,',
    b'"extra":{"n":1},', b'"\\u006e":1,', b'"n":null,', b'"":1,', b'"\xff":1,', b'/**/', b'\x00', b'\xef\xbb\xbf',
    b'{"n":1}', b'}{', b'},{', b'{"n":1', b'"b":2}',
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    value = draw(documents)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(value)))
        end = draw(st.integers(start, min(len(value), start + 6)))
        value = value[:start] + draw(st.sampled_from(SPLINTERS)) + value[end:]
    return value


@st.composite
def repeating(draw: st.DrawFn) -> bytes:
    """A document with its keys in any order, some of them twice, perhaps escaped, perhaps below an unknown field."""
    pairs = [(f'"{key}"', json.dumps(value)) for key, value in draw(st.permutations(list(draw(events).items())))]
    for key, value in draw(st.lists(st.sampled_from(pairs), max_size=2)):
        escaped = f'"\\u{ord(key[1]):04x}{key[2:]}'
        again = (draw(st.sampled_from([key, escaped, '"other"'])), draw(st.sampled_from([value, "1", '"\\""', "null"])))
        pairs.insert(draw(st.integers(0, len(pairs))), again)
    document = "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
    if draw(st.booleans()):
        return document.encode()
    inner = draw(st.sampled_from([document, f"[{document}]", "[" * 62 + document + "]" * 62]))
    plain = b'{"at":0,"n":1,"x":1.5,"y":null,"name":"a","extra":' + inner.encode() + b"}"
    return draw(st.sampled_from([plain, plain[:-1] + b' ,\t"zz":1}\n']))


GOOD = {b'"at"': b"0", b'"n"': b"1", b'"x"': b"1.5", b'"y"': b"null", b'"name"': b'"a"'}
KEYS = [
    *GOOD, b'"seen"', b'"big"', b'"note"', b'"side"', b'"ok"', b'"z"', b'"zz"', b'""', b'"z" ', b' "z"',
    b'"\\u006e"', b'"\\u007a"', b'"\\"z"', '"é"'.encode(), b'"\xff"', b'"\x01"', b"z",
]  # fmt: skip
LITERALS = [
    *GOOD.values(), b"true", b'"SELL"', b'"HOLD"', b'"1970-01-01T00:00:01.5Z"', b'"1970-13-01T00:00:01Z"',
    b"9" * 410, b"-0.0", b"-0", b"01", b"1.", b".5", b"1e5", b"1e999", b"-1e-999", b"2147483648",
    b"9223372036854775808", b"NaN", b"-Infinity", b"-Inf", b"-NaN", b"truex", b"nul", b"-", b"'a'",
    b'"\\u00e9\\n"', b'"\\""', b'"\\",\\"n\\":1,\\""', b'"\\\\"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\xff"',
    b'"\xc3\xa9"', b'"\t"', b'"\x7f"', b'"a:b,c"', b'"{}[]"', b"{}", b"[]", b'{"n":1,"n":1}', b"[NaN]", b" 1",
    b"\n1", b"1 ", b"",
]  # fmt: skip


@st.composite
def spelled_out(draw: st.DrawFn) -> bytes:
    """A document put together from keys and literals, nearly all of it good: types, ranges, absences, repetitions."""
    pairs = list(GOOD.items())
    for _ in range(draw(st.integers(0, 2))):
        pair = (draw(st.sampled_from(KEYS)), draw(st.sampled_from(LITERALS)))
        place = draw(st.integers(0, len(pairs)))
        pairs[place : place + draw(st.integers(0, 1))] = [pair]
    comma, colon = draw(st.sampled_from([(b",", b":"), (b", ", b": "), (b",", b":  "), (b"\n,", b":")]))
    known = {key: draw(st.sampled_from(LITERALS)) for key in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=1))}
    return b"{" + comma.join(key + colon + known.get(key, value) for key, value in pairs) + b"}"


values = st.one_of(
    documents,
    mutated(),
    repeating(),
    spelled_out(),
    spelled_out(),
    spelled_out(),
    st.binary(max_size=12),
    st.sampled_from([None, b"", b"{}", b"[]", b"1", b'"a"', b"null", b"  ", b'{"n":1', b'"x":2}', *SPLINTERS]),
    st.tuples(documents, documents).map(lambda pair: pair[0] + pair[1]),
    documents.flatmap(lambda d: st.integers(0, len(d)).map(lambda cut: d[:cut])),
)


def as_rows(decoded: Decoded) -> dict[int, tuple[Any, ...]]:
    """Row → its values, floats by their bits, so that 0.0 and -0.0 differ."""
    columns = [c.cast("int64") if str(c.type).startswith("timestamp") else c for c in decoded.columns.columns]
    for column in columns:
        column.validate(full=True)
    exact = [[struct.pack("<d", v) if type(v) is float else v for v in c.to_pylist()] for c in columns]
    return dict(zip(decoded.rows.tolist(), zip(*exact, strict=True), strict=True))


def assert_partition(decoded: Decoded, count: int) -> None:
    rejected = [reject.row for reject in decoded.rejects]
    assert decoded.columns.num_rows == len(decoded.rows)
    assert rejected == sorted(rejected)
    assert np.all(np.diff(decoded.rows) > 0)
    assert sorted(decoded.rows.tolist() + rejected) == list(range(count))


@settings(max_examples=400, deadline=None)
@given(st.lists(values, max_size=16))
def test_columns_decode_json_as_rows_do(batch: list[bytes | None]) -> None:
    expected = decode_json_exactly(CONTRACT, batch)
    got = decode_json(CONTRACT, batch)
    assert_partition(expected, len(batch))
    assert_partition(got, len(batch))
    assert as_rows(expected) == as_rows(got)
    assert expected.rejects == got.rejects


@settings(max_examples=100, deadline=None)
@given(st.lists(events, min_size=1, max_size=20), layouts)
def test_the_rows_path_keeps_what_a_plain_json_reader_sees(batch: list[dict[str, Any]], layout: dict[str, Any]) -> None:
    texts_of = [json.dumps(event, **layout).encode() for event in batch]
    got = as_rows(decode_json(CONTRACT, texts_of))
    for row, found in got.items():
        event = json.loads(texts_of[row])
        assert found[2] == event["n"]
        assert found[3] == event.get("big", -5)
        assert found[6] == event["name"]
        assert found[8] == event.get("side", "SELL")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=30) | documents, max_size=10), st.sampled_from(["auto", "json", "avro", "confluent"])
)
def test_every_value_is_decoded_or_refused_whatever_the_encoding(batch: list[bytes], encoding: Encoding) -> None:
    assert_partition(decode(CONTRACT, batch, encoding), len(batch))


@settings(max_examples=100, deadline=None)
@given(st.lists(documents | repeating(), min_size=1, max_size=40))
def test_a_repeated_key_is_found_among_many_good_documents(batch: list[bytes]) -> None:
    expected, got = decode_json_exactly(CONTRACT, batch), decode_json(CONTRACT, batch)
    assert as_rows(expected) == as_rows(got)
    assert expected.rejects == got.rejects


avro_events = st.fixed_dictionaries(
    {
        "at": instants,
        "seen": st.none() | st.integers(MIN_INSTANT // 1000, MAX_INSTANT // 1000),
        "n": st.integers(-(2**31), 2**31 - 1),
        "big": st.none() | st.integers(-(2**63), 2**63 - 1),
        "x": finite,
        "y": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        "name": texts,
        "note": st.none() | texts,
        "side": st.sampled_from(["BUY", "SELL"]),
        "ok": st.booleans(),
    }
)


def plain(schema: Any) -> Any:
    """The schema without logical types, so that the other reader deals in integers as well."""
    if isinstance(schema, dict):
        return plain("long") if "logicalType" in schema else {key: plain(value) for key, value in schema.items()}
    return [plain(entry) for entry in schema] if isinstance(schema, list) else schema


WRITER = fastavro.parse_schema(plain(SCHEMA))


def write_avro(event: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, WRITER, event)
    return out.getvalue()


def expected_avro(event: dict[str, Any]) -> tuple[Any, ...]:
    event = {**event, "seen": None if event["seen"] is None else event["seen"] * 1000}
    return tuple(struct.pack("<d", v + 0.0) if type(v) is float else v for v in event.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(avro_events, max_size=20), st.booleans())
def test_avro_columns_hold_what_another_avro_library_wrote(batch: list[dict[str, Any]], framed: bool) -> None:
    prefix = b"\x00\x00\x00\x00\x07" if framed else b""
    written = [prefix + write_avro(event) for event in batch]
    decoded = decode(CONTRACT, written, "confluent" if framed else "avro")
    names = CONTRACT.names
    assert as_rows(decoded) == {i: expected_avro({n: e[n] for n in names}) for i, e in enumerate(batch)}


@st.composite
def broken_avro(draw: st.DrawFn) -> bytes:
    value = bytearray(write_avro(draw(avro_events)))
    for _ in range(draw(st.integers(0, 3))):
        value[draw(st.integers(0, len(value) - 1))] = draw(st.integers(0, 255))
    return bytes(value[: draw(st.integers(0, len(value) + 1))]) + draw(
        st.sampled_from([b"", b"", b"\x00", b"\x80" * 11])
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(broken_avro() | st.binary(max_size=20), max_size=10))
def test_broken_avro_never_disturbs_its_neighbours(batch: list[bytes]) -> None:
    together = decode_avro(CONTRACT, batch)
    assert_partition(together, len(batch))
    rows, faults = as_rows(together), {r.row: r.reason for r in together.rejects}
    for row, value in enumerate(batch):
        alone = decode_avro(CONTRACT, [value])
        assert as_rows(alone).get(0) == rows.get(row)
        assert [r.reason for r in alone.rejects] == ([faults[row]] if row in faults else [])


@settings(max_examples=150, deadline=None)
@given(broken_avro())
def test_avro_that_is_taken_is_what_another_avro_library_reads(value: bytes) -> None:
    decoded = decode_avro(CONTRACT, [value])
    if len(decoded.rows):
        read = fastavro.schemaless_reader(io.BytesIO(value), WRITER, None)
        assert as_rows(decoded)[0] == expected_avro(read)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS + 9])
def test_broken_rows_keep_their_places_across_chunks(count: int) -> None:
    good = json.dumps({"at": 0, "n": 1, "x": 1.5, "y": None, "name": "a"}).encode()
    twice = good[:-1] + b',"n":1}'
    edge = CHUNK_ROWS
    bad = {
        0: b"",
        63: good + good,
        64: twice,
        edge - 1: b'{"n":',
        edge: good.replace(b"1.5", b"1.5.5"),
        count - 1: b"[]",
    }
    batch = [bad.get(row, good.replace(b"0", str(row).encode(), 1)) for row in range(count)]
    decoded = decode(CONTRACT, batch)
    assert [r.row for r in decoded.rejects] == sorted(row for row in bad if row < count)
    assert decoded.columns["at"].cast("int64").to_pylist() == decoded.rows.tolist()
