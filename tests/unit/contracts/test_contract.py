import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featurestore.contracts.contract import NO_DEFAULT, Field, known_contracts, load_contract, parse_contract
from featurestore.errors import ContractError, NotFound
from featurestore.types import Dtype

SCHEMAS = Path(__file__).parents[3] / "schemas"


def record(*fields: Any) -> str:
    return json.dumps({"type": "record", "name": "Event", "fields": list(fields)})


def field(kind: Any, **more: Any) -> str:
    return record({"name": "price", "type": kind, **more})


def the_field(text: str) -> Field:
    return parse_contract("events/v1", text).fields[0]


MICROS = {"type": "long", "logicalType": "timestamp-micros"}
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
SIDE = {"type": "enum", "name": "Side", "symbols": ["BUY", "SELL"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (field("boolean"), Field("price", Dtype.BOOL, wire="boolean")),
        (field("int"), Field("price", Dtype.INT, wire="int")),
        (field("long"), Field("price", Dtype.INT, wire="long")),
        (field("float"), Field("price", Dtype.FLOAT, wire="float")),
        (field({"type": "double"}), Field("price", Dtype.FLOAT, wire="double")),
        (field("string", default=""), Field("price", Dtype.STRING, default="", wire="string")),
        (field(SIDE), Field("price", Dtype.STRING, wire="enum", symbols=("BUY", "SELL"))),
        (field(MICROS), Field("price", Dtype.TIMESTAMP, wire="long")),
        (field(MILLIS, default=5), Field("price", Dtype.TIMESTAMP, default=5_000, wire="long", unit_micros=1_000)),
        (field(["null", "int"]), Field("price", Dtype.INT, True, wire="int", null_branch=0)),
        (field(["double", "null"], default=1), Field("price", Dtype.FLOAT, True, 1.0, "double", null_branch=1)),
        (field(["null", "string"], default=None), Field("price", Dtype.STRING, True, None, "string", null_branch=0)),
    ],
)
def test_a_supported_type_becomes_a_field(text: str, expected: Field) -> None:
    assert expected == the_field(text)


def test_no_default_and_a_default_of_null_are_told_apart() -> None:
    assert the_field(field(["null", "int"])).default is NO_DEFAULT
    assert the_field(field(["null", "int"], default=None)).default is None


def test_an_int_has_32_bits_and_a_long_64() -> None:
    assert (-(2**31), 2**31 - 1) == the_field(field("int")).bounds
    assert (-(2**63), 2**63 - 1) == the_field(field("long")).bounds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"type": NaN}', "not JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"type": "record", "type": "record"}', "repeats the key 'type'"),
        ('"string"', "not a record"),
        ('{"type": "enum"}', "not a record"),
        ('{"type": "record", "fields": {}}', "no fields"),
        (record(), "no fields"),
        (record("price"), "field 0 has no name"),
        (record({"type": "int"}), "field 0 has no name"),
        (record({"name": "1st", "type": "int"}), "'1st' is no field name"),
        (record({"name": "_offset", "type": "int"}), "'_offset' is a column that the store adds"),
        (record({"name": "a", "type": "int"}, {"name": "a", "type": "int"}), "'a' is declared twice"),
        (record({"name": "price"}), "the type null is not supported"),
        (field("bytes"), 'the type "bytes" is not supported'),
        (field("Price"), 'the type "Price" is not supported'),
        (field({"type": "array", "items": "int"}), '"array"'),
        (field({"type": "map", "values": "int"}), '"map"'),
        (field({"type": "fixed", "size": 4, "name": "F"}), '"fixed"'),
        (field({"type": "record", "name": "R", "fields": []}), '"record"'),
        (field({"type": "bytes", "logicalType": "decimal", "precision": 4}), '"decimal"'),
        (field({"type": "int", "logicalType": "date"}), 'logicalType "date" of int'),
        (field({"type": "long", "logicalType": "timestamp-nanos"}), '"timestamp-nanos"'),
        (field({"type": "int", "logicalType": "timestamp-micros"}), '"timestamp-micros" of int'),
        (field(["int", "string"]), "the union"),
        (field(["null", "int", "string"]), "the union"),
        (field(["null"]), "the union"),
        (field(["null", ["int"]]), "is not supported"),
        (field({"type": "enum", "name": "E", "symbols": []}), "lists no symbols"),
        (field({"type": "enum", "name": "E", "symbols": ["A", "A"]}), "repeats a symbol"),
        (field({"type": "enum", "name": "E", "symbols": ["a b"]}), "is no enum symbol"),
        (field("int", default=None), "expected an integer"),
        (field("int", default=2**31), "expected an integer"),
        (field("int", default=True), "expected an integer"),
        (field("boolean", default=0), "expected true or false"),
        (field("double", default="1"), "expected a finite number"),
        (field("string", default=1), "expected a string"),
        (field(SIDE, default="HOLD"), "expected one of BUY, SELL"),
        (field(MICROS, default=2**62), "years 1 to 9999"),
        (field("string", doc="x" * (1 << 20)), "larger than"),
    ],
)
def test_a_schema_that_is_not_a_flat_record_of_scalars_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_contract("events/v1", text)
    assert said in str(caught.value)
    assert "events/v1" in str(caught.value)


def test_an_unsupported_type_names_the_field_and_what_is_supported() -> None:
    with pytest.raises(ContractError) as caught:
        parse_contract("events/v1", field("bytes"))
    assert caught.value.field == "price"
    assert "timestamp-micros" in caught.value.hint


@pytest.mark.parametrize(
    "contract_id", ["", "events", "events/1", "events/v0", "../../etc/v1", "a/b/v1", "e v/v1", "."]
)
def test_an_id_that_is_not_topic_and_version_is_refused(contract_id: str) -> None:
    with pytest.raises(ContractError, match="is no contract id"):
        load_contract(SCHEMAS, contract_id)


def test_the_fingerprint_follows_meaning_and_not_layout() -> None:
    base = parse_contract("events/v1", field("int"))
    same = [field("int", doc="in cents"), json.dumps(json.loads(field("int")), indent=4), field({"type": "int"})]
    other = [field("long"), field("int", default=1), field(["null", "int"]), field(["int", "null"])]
    assert {base.fingerprint} == {parse_contract("events/v1", text).fingerprint for text in same}
    assert 5 == len({base.fingerprint, *(parse_contract("events/v1", text).fingerprint for text in other)})


def test_the_flights_contract_loads() -> None:
    contract = load_contract(SCHEMAS, "flights.departures/v1")
    assert ("flights.departures", 1) == (contract.topic, contract.version)
    assert Dtype.TIMESTAMP is contract.field("departed_at").dtype
    with pytest.raises(NotFound, match="did you mean 'dep_delay'"):
        contract.field("dep_dealy")


def test_a_missing_file_is_not_found_with_its_path_and_near_matches(tmp_path: Path) -> None:
    for version in (1, 2, 10):
        target = tmp_path / "payments" / f"v{version}.avsc"
        target.parent.mkdir(exist_ok=True)
        target.write_text(field("int"))
    assert ("payments/v1", "payments/v2", "payments/v10") == known_contracts(tmp_path)
    with pytest.raises(NotFound, match="did you mean 'payments/v1'") as caught:
        load_contract(tmp_path, "payment/v1")
    assert str(tmp_path / "payment" / "v1.avsc") in caught.value.hint


def test_an_empty_directory_of_schemas_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        load_contract(tmp_path / "nowhere", "payments/v1")
    assert "FS_SCHEMAS" in caught.value.hint


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "v1.avsc").write_bytes(b" " * ((1 << 20) + 1))
    (tmp_path / "t" / "v2.avsc").write_bytes(b"\xff\xfe{")
    (tmp_path / "t" / "v3.avsc").mkdir()
    for version, said in ((1, "larger than"), (2, "not UTF-8"), (3, "cannot be read")):
        with pytest.raises(ContractError, match=said):
            load_contract(tmp_path, f"t/v{version}")


def test_loading_a_contract_loads_neither_arrow_nor_numpy() -> None:
    code = (
        "import sys; from featurestore.contracts.contract import load_contract; "
        f"load_contract({str(SCHEMAS)!r}, 'flights.departures/v1'); "
        "print(sorted({'pyarrow', 'numpy', 'msgspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "[]" == done.stdout.strip()
