import json
import struct
from typing import Any

import pytest

from featurestore.contracts import avro_columns, json_columns
from featurestore.contracts.arrow import arrow_schema
from featurestore.contracts.contract import Contract, parse_contract
from featurestore.contracts.decode import Encoding, Reason, decode
from featurestore.contracts.json_columns import decode_json, decode_json_exactly
from featurestore.contracts.json_rows import Row, decode_json_row
from featurestore.errors import UsageError


def contract_of(**types: Any) -> Contract:
    """`name=type`, or `name=(type, default)`."""
    fields = [
        {"name": name, "type": kind[0], "default": kind[1]} if isinstance(kind, tuple) else {"name": name, "type": kind}
        for name, kind in types.items()
    ]
    return parse_contract("events/v1", json.dumps({"type": "record", "name": "Event", "fields": fields}))


MICROS = {"type": "long", "logicalType": "timestamp-micros"}
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
SIDE = {"type": "enum", "name": "Side", "symbols": ["BUY", "SELL"]}


def one(contract: Contract, value: bytes | None, encoding: Encoding = "auto") -> Any:
    """The row as a dict, or the reason it is refused for."""
    decoded = decode(contract, [value], encoding)
    if decoded.rejects:
        assert (0, 0) == (decoded.columns.num_rows, len(decoded.rows))
        return decoded.rejects[0].reason
    columns = [c.cast("int64") if str(c.type).startswith("timestamp") else c for c in decoded.columns.columns]
    return {name: column[0].as_py() for name, column in zip(contract.names, columns, strict=True)}


TYPED = {
    "boolean": b'{"v":true}',
    "int": b'{"v":1}',
    "double": b'{"v":1.5}',
    "string": b'{"v":"a"}',
}


@pytest.mark.parametrize("kind", TYPED)
@pytest.mark.parametrize("value", [*TYPED.values(), b'{"v":null}', b'{"v":[]}', b'{"v":{}}', b'{"v":1.0}'])
def test_no_value_is_coerced_to_another_type(kind: str, value: bytes) -> None:
    raw = json.loads(value)["v"]
    fits = {"boolean": type(raw) is bool, "int": type(raw) is int, "double": type(raw) in (int, float)}
    good = fits.get(kind, type(raw) is str)
    assert ({"v": raw} if good else Reason.WRONG_TYPE) == one(contract_of(v=kind), value)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("int", b'{"v":2147483647}', 2147483647),
        ("int", b'{"v":-2147483648}', -2147483648),
        ("int", b'{"v":2147483648}', Reason.OUT_OF_RANGE),
        ("int", b'{"v":-2147483649}', Reason.OUT_OF_RANGE),
        ("long", b'{"v":9223372036854775807}', 2**63 - 1),
        ("long", b'{"v":-9223372036854775808}', -(2**63)),
        ("long", b'{"v":9223372036854775808}', Reason.OUT_OF_RANGE),
        ("long", b'{"v":' + b"9" * 5000 + b"}", Reason.OUT_OF_RANGE),
        ("long", b'{"v":-0}', 0),
        ("double", b'{"v":0.1}', 0.1),
        ("double", b'{"v":123456789012345678901}', 123456789012345678901.0),
        ("double", b'{"v":NaN}', Reason.NOT_FINITE),
        ("double", b'{"v":-Infinity}', Reason.NOT_FINITE),
        ("double", b'{"v":1e999}', Reason.NOT_FINITE),
        ("double", b'{"v":' + b"9" * 5000 + b"}", Reason.NOT_FINITE),
        ("string", '{"v":"Zoë"}'.encode(), "Zoë"),
        ("string", b'{"v":"a\\"b\\u00e9\\ud83d\\ude00"}', 'a"bé😀'),
        ("string", b'{"v":"\\ud800"}', Reason.BAD_UTF8),
        ("string", b'{"v":"\xff"}', Reason.BAD_UTF8),
        (SIDE, b'{"v":"SELL"}', "SELL"),
        (SIDE, b'{"v":"HOLD"}', Reason.BAD_ENUM),
        (SIDE, b'{"v":1}', Reason.WRONG_TYPE),
        (MICROS, b'{"v":"1970-01-01T00:00:01Z"}', 1_000_000),
        (MICROS, b'{"v":"1970-01-01T01:00:00.5+01:00"}', 500_000),
        (MICROS, b'{"v":1500}', 1_500),
        (MILLIS, b'{"v":1500}', 1_500_000),
        (MILLIS, b'{"v":"1970-01-01T00:00:00.000001Z"}', 1),
        (MICROS, b'{"v":"1970-01-01T00:00:00"}', Reason.BAD_TIMESTAMP),
        (MICROS, b'{"v":"1970-01-01"}', Reason.BAD_TIMESTAMP),
        (MICROS, b'{"v":"1970-02-30T00:00:00Z"}', Reason.BAD_TIMESTAMP),
        (MICROS, b'{"v":"1970-01-01T00:00:00.0000001Z"}', Reason.BAD_TIMESTAMP),
        (MICROS, b'{"v":1.5}', Reason.WRONG_TYPE),
        (MICROS, b'{"v":true}', Reason.WRONG_TYPE),
        (MICROS, b'{"v":253402300800000000}', Reason.OUT_OF_RANGE),
        (MILLIS, b'{"v":9223372036854775807}', Reason.OUT_OF_RANGE),
    ],
)
def test_a_json_value_is_taken_as_it_is_or_refused(kind: Any, value: bytes, expected: Any) -> None:
    found = one(contract_of(v=kind), value)
    assert expected == (found["v"] if isinstance(found, dict) else found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Reason.EMPTY),
        (b"", Reason.EMPTY),
        (b"   ", Reason.NOT_JSON),
        (b"hello", Reason.NOT_JSON),
        (b'{"v":1', Reason.NOT_JSON),
        (b'{"v":1}{"v":2}', Reason.NOT_JSON),
        (b'{"v":1} tail', Reason.NOT_JSON),
        (b"{'v':1}", Reason.NOT_JSON),
        (b'{"v":01}', Reason.NOT_JSON),
        (b'{"v":1,}', Reason.NOT_JSON),
        (b'\xef\xbb\xbf{"v":1}', Reason.NOT_JSON),
        (b"[1]", Reason.NOT_OBJECT),
        (b"1", Reason.NOT_OBJECT),
        (b"null", Reason.NOT_OBJECT),
        (b"{}", Reason.MISSING_FIELD),
        (b'{"w":1}', Reason.MISSING_FIELD),
        (b'{"v":1,"v":1}', Reason.DUPLICATE_KEY),
        (b'{"v":1,"\\u0076":1}', Reason.DUPLICATE_KEY),
        (b'{"v":1,"w":1,"w":1}', Reason.DUPLICATE_KEY),
        (b'{"v":1,"w":{"a":1,"a":2}}', Reason.DUPLICATE_KEY),
        (b'{"v":1,"w":1,"w" :1}', Reason.DUPLICATE_KEY),
        (b'{"v":1,"w":1,"\\u0077":1}', Reason.DUPLICATE_KEY),
        # Escaped quotes that make keys look like the space between strings, and the other way round.
        (rb'{"v":1,"a":"\",",",k":1,",k":2,",\"z":5}', Reason.DUPLICATE_KEY),
        (rb'{"a":"\",",",\"v":5}', Reason.MISSING_FIELD),
        (b'{"v":1,"w":NaN}', Reason.NOT_FINITE),
        (b'{"v":1,"w":-Infinity}', Reason.NOT_FINITE),
        (b'{"v":1,"w":-Inf}', Reason.NOT_JSON),
        (b'{"v":1,"w":"\xff"}', Reason.BAD_UTF8),
        (b'{"v":1,"w":' + b"[" * 64 + b"]" * 64 + b"}", Reason.TOO_DEEP),
        (b'{"v":1,"w":"' + b"x" * (1 << 20) + b'"}', Reason.TOO_LARGE),
    ],
)
def test_each_way_to_break_a_document_has_its_reason(value: bytes | None, expected: Reason) -> None:
    assert expected is one(contract_of(v="int"), value, "json")


@pytest.mark.parametrize(
    "value",
    [
        b'{"v":1}',
        b' \n{ "v" : 1 }\r\n',
        b'{"w":null,"v":1,"x":[1,{"v":"2"}],"y":1e999,"z":"}{"}',
        b'{"v":1,"w":' + b"[" * 63 + b"]" * 63 + b"}",
        b'{"v":1,"w":"' + b"[" * 100 + b'"}',
        b'{"v":1,"w":"\\ud800"}',
    ],
)
def test_white_space_and_unknown_fields_of_any_type_are_allowed(value: bytes) -> None:
    assert {"v": 1} == one(contract_of(v="int"), value)


def test_an_absent_field_takes_its_default_and_a_null_stays_a_null() -> None:
    contract = contract_of(a=(["null", "int"], None), b=(["int", "null"], 7), c=("string", "x"), d=(MILLIS, 2))
    assert {"a": None, "b": 7, "c": "x", "d": 2_000} == one(contract, b"{}")
    assert {"a": 1, "b": None, "c": "", "d": 0} == one(contract, b'{"a":1,"b":null,"c":"","d":0}')


def test_a_nullable_field_without_a_default_must_be_there() -> None:
    contract = contract_of(a=["null", "int"])
    assert {"a": None} == one(contract, b'{"a":null}')
    assert Reason.MISSING_FIELD is one(contract, b"{}")


def test_a_negative_zero_loses_its_sign_on_every_path() -> None:
    contract = contract_of(v="double")
    values = [b'{"v":-0.0}', b'{ "v" :-0.0}', b'{"v":-0}']
    found = [*decode(contract, values, "json").columns["v"].to_pylist()]
    found += decode(contract, [struct.pack("<d", -0.0)], "avro").columns["v"].to_pylist()
    assert [struct.pack("<d", 0.0)] * 4 == [struct.pack("<d", v) for v in found]


def test_documents_that_only_line_up_together_are_each_refused() -> None:
    contract = contract_of(a="int", b="int")
    values = [b'{"a":1', b'"b":2}', b'{"a":1,"b":2}{"a":3,"b":4}', b'{"a":1,"b":"', b'"}']
    decoded = decode(contract, values, "json")
    assert [0, 1, 2, 3, 4] == [r.row for r in decoded.rejects]
    assert {Reason.NOT_JSON, Reason.WRONG_TYPE} >= {r.reason for r in decoded.rejects}


def test_rows_keep_their_places_among_tombstones_and_junk() -> None:
    contract = contract_of(v="int")
    values = [None, b'{"v":1}', b"", b"junk", b'{"v":2}{"v":3}', b'{"v":4}', None]
    decoded = decode(contract, values)
    assert [1, 5] == decoded.rows.tolist()
    assert [1, 4] == decoded.columns["v"].to_pylist()
    expected = [Reason.EMPTY, Reason.EMPTY, Reason.NOT_JSON, Reason.NOT_JSON, Reason.EMPTY]
    assert list(zip([0, 2, 3, 4, 6], expected, strict=True)) == [(r.row, r.reason) for r in decoded.rejects]


@pytest.mark.parametrize("encoding", ["auto", "json", "avro", "confluent"])
def test_nothing_in_gives_an_empty_batch_with_the_schema(encoding: Encoding) -> None:
    contract = contract_of(v="int", at=MICROS)
    decoded = decode(contract, [], encoding)
    assert arrow_schema(contract) == decoded.columns.schema
    assert (0, ()) == (len(decoded.rows), decoded.rejects)


def test_texts_and_integers_mix_in_one_timestamp_column() -> None:
    contract = contract_of(at=["null", MILLIS])
    values = [b'{"at":"1970-01-01T00:00:01Z"}', b'{"at":2000}', b'{"at":null}', b'{"at":"1970-01-01T00:00:03.000Z"}']
    column = decode(contract, values).columns["at"].cast("int64").to_pylist()
    assert [1_000_000, 2_000_000, None, 3_000_000] == column


def test_every_value_may_have_an_unknown_field_of_its_own() -> None:
    contract = contract_of(v="int")
    values = [json.dumps({f"k{i}": "x", "v": i}).encode() for i in range(100)]
    assert list(range(100)) == decode(contract, values).columns["v"].to_pylist()


def test_one_repeated_key_does_not_send_its_neighbours_to_the_exact_path(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes | None] = []

    def ask(contract: Contract, value: bytes | None) -> Row:
        asked.append(value)
        return decode_json_row(contract, value)

    monkeypatch.setattr(json_columns, "decode_json_row", ask)
    good = [b'{"v":1}', b'{"v":2,"w":"\\"","x":[{"v":"a"}]}', b' {"v":3}\n']
    bad = [b'{"v":4,"v":4}', b'{"v":5,"w":{"x":"","x":1}}', b'{"v":6.0}', b'{"v":7}{"v":8}', b'{"v":']
    decoded = decode(contract_of(v="int"), good + bad, "json")
    assert [0, 1, 2] == decoded.rows.tolist()
    assert bad == asked


@pytest.mark.parametrize("texts", [rb'"a":"\\","b":"\\"', rb'"a":"\\","b":"\\","w":[]', rb'"a":"\"","b":"\\\""'])
def test_escapes_at_the_end_of_a_text_hide_no_repeated_key(texts: bytes) -> None:
    contract = contract_of(v="int", a="string", b="string")
    values = [b"{" + texts + b',"v":1}', b"{" + texts + b',"v":2,"v":2}', b'{"v":3,"a":"","b":""}']
    decoded = decode(contract, values, "json")
    assert [1, 3] == decoded.columns["v"].to_pylist()
    assert [(1, Reason.DUPLICATE_KEY)] == [(reject.row, reject.reason) for reject in decoded.rejects]


@pytest.mark.parametrize("depth", [63, 64, 100_000])
def test_the_limit_of_depth_holds_whatever_the_neighbours(depth: int) -> None:
    nested = b'{"v":1,"w":' + b"[" * depth + b"]" * depth + b"}"
    decoded = decode(contract_of(v="int"), [b'{"v":0,"w":1}', nested, b'{"v":2,"w":{}}'], "json")
    assert ([0, 1, 2] if depth < 64 else [0, 2]) == decoded.rows.tolist()
    assert ([] if depth < 64 else [Reason.TOO_DEEP]) == [reject.reason for reject in decoded.rejects]


def test_a_very_large_batch_of_large_values_is_cut_into_runs() -> None:
    contract = contract_of(v="int", w="string")
    values = [json.dumps({"v": i, "w": "x" * 900_000}).encode() for i in range(40)]
    assert list(range(40)) == decode(contract, values).columns["v"].to_pylist()


def test_columns_and_rows_word_a_refusal_alike() -> None:
    contract = contract_of(v="int")
    values = [b'{"v":"x"}', b'{"v":1.5}', b'{"v":1}', b'{"v":3000000000}']
    assert decode_json_exactly(contract, values).rejects == decode_json(contract, values).rejects
    assert "v: expected an integer, got a string" == decode(contract, values).rejects[0].error


def test_an_error_text_is_short_and_printable_whatever_the_value() -> None:
    value = json.dumps({"v": "\x1b[31m\n" + "é" * 100_000}).encode()
    (reject,) = decode(contract_of(v=MICROS), [value]).rejects
    assert len(reject.error) < 300
    assert reject.error.isprintable()


def varint(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("boolean", b"\x01", True),
        ("boolean", b"\x02", Reason.BAD_AVRO),
        ("int", varint(-(2**31)), -(2**31)),
        ("int", varint(2**31), Reason.OUT_OF_RANGE),
        ("long", varint(2**63 - 1), 2**63 - 1),
        ("long", varint(-(2**63)), -(2**63)),
        ("long", b"\x80" * 9 + b"\x02", Reason.BAD_AVRO),
        ("long", b"\x80" * 10 + b"\x01", Reason.BAD_AVRO),
        ("long", b"\x80", Reason.BAD_AVRO),
        ("long", b"\x02\x00", Reason.BAD_AVRO),
        ("float", struct.pack("<f", 1.5), 1.5),
        ("float", struct.pack("<f", float("nan")), Reason.NOT_FINITE),
        ("float", b"\x01\x00\x80\x7f", Reason.NOT_FINITE),  # a signalling NaN
        ("double", struct.pack("<d", -1e300), -1e300),
        ("double", struct.pack("<d", float("inf")), Reason.NOT_FINITE),
        ("double", b"\x00" * 7, Reason.BAD_AVRO),
        ("string", b"\x06abc", "abc"),
        ("string", b"\x06ab", Reason.BAD_AVRO),
        ("string", b"\x05abc", Reason.BAD_AVRO),
        ("string", varint(2**62) + b"abc", Reason.BAD_AVRO),
        ("string", b"\x02\xff", Reason.BAD_UTF8),
        (SIDE, b"\x02", "SELL"),
        (SIDE, b"\x04", Reason.BAD_ENUM),
        (SIDE, b"\x01", Reason.BAD_ENUM),
        (["null", "int"], b"\x00", None),
        (["null", "int"], b"\x02\x04", 2),
        (["int", "null"], b"\x02", None),
        (["null", "int"], b"\x04\x04", Reason.BAD_AVRO),
        (MILLIS, varint(-5), -5_000),
        (MICROS, varint(2**62), Reason.OUT_OF_RANGE),
        ("int", b"", Reason.EMPTY),
        ("int", None, Reason.EMPTY),
        ("string", varint(1 << 20) + b"x" * (1 << 20), Reason.TOO_LARGE),
    ],
)
def test_an_avro_value_is_taken_as_it_is_or_refused(kind: Any, value: bytes | None, expected: Any) -> None:
    found = one(contract_of(v=kind), value, "avro")
    assert expected == (found["v"] if isinstance(found, dict) else found)


def test_text_that_is_only_utf8_across_two_rows_is_refused_in_both() -> None:
    decoded = decode(contract_of(v="string"), [b"\x02\xc3", b"\x02\xa9", b"\x04\xc3\xa9"], "avro")
    assert [(0, Reason.BAD_UTF8), (1, Reason.BAD_UTF8)] == [(r.row, r.reason) for r in decoded.rejects]
    assert ["é"] == decoded.columns["v"].to_pylist()


def test_each_value_of_a_mixed_topic_is_read_as_it_is_written() -> None:
    contract = contract_of(v="int")
    values = [b'{"v":1}', b"\x00\x00\x00\x00\x09\x04", b"\x06", b' {"v":4}', b"\x00\x00\x00\x00\x09"]
    decoded = decode(contract, values)
    assert [1, 2, 3, 4] == decoded.columns["v"].to_pylist()
    assert [(4, Reason.BAD_AVRO)] == [(r.row, r.reason) for r in decoded.rejects]


def test_a_bare_record_is_never_taken_for_a_framed_one() -> None:
    contract = contract_of(v="int")
    assert Reason.BAD_AVRO is one(contract, b"\x04", "confluent")
    assert Reason.EMPTY is one(contract, None, "confluent")
    assert {"v": 2} == one(contract, b"\x00\x00\x00\x00\x09\x04", "confluent")


def test_junk_text_is_explained_as_json_where_the_encoding_is_open() -> None:
    contract = contract_of(a="long", v="double")
    assert Reason.NOT_JSON is one(contract, b"hello")
    assert Reason.NOT_OBJECT is one(contract, b"[1, 2]")
    assert Reason.BAD_AVRO is one(contract, b"\x01\x02\x03")


def test_a_batch_past_the_text_limit_of_arrow_is_an_error_and_not_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro_columns, "MAX_TEXT_BYTES", 2)
    with pytest.raises(UsageError, match="2 GiB"):
        decode(contract_of(v="string"), [b"\x06abc"], "avro")
