import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.contracts.arrow import arrow_schema
from featurestore.contracts.contract import Contract, parse_contract
from featurestore.contracts.reasons import Reason
from featurestore.contracts.tables import check_table
from featurestore.errors import ContractError

MICROS = {"type": "long", "logicalType": "timestamp-micros"}
SIDE = {"type": "enum", "name": "Side", "symbols": ["BUY", "SELL"]}


def contract_of(kind: Any, **more: Any) -> Contract:
    fields = [{"name": "price", "type": kind, **more}]
    return parse_contract("events/v1", json.dumps({"type": "record", "name": "Event", "fields": fields}))


def checked(kind: Any, column: pa.Array) -> tuple[list[Any], list[tuple[int, Reason]]]:
    contract = contract_of(kind)
    table, rejects = check_table(contract, pa.table({"price": column, "other": column}))
    assert arrow_schema(contract) == table.schema
    held = table["price"].cast("int64") if kind == MICROS else table["price"]
    return held.to_pylist(), [(r.row, r.reason) for r in rejects]


MOMENT = datetime(2013, 1, 1, 5, 17, tzinfo=UTC)
MOMENT_MICROS = 1_357_017_420_000_000


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        ("boolean", pa.array([True, False]), [True, False]),
        ("long", pa.array([1, 2], pa.int8()), [1, 2]),
        ("long", pa.array([1, 2], pa.uint64()), [1, 2]),
        ("int", pa.array([2**31 - 1]), [2**31 - 1]),
        ("double", pa.array([1, -2], pa.int32()), [1.0, -2.0]),
        ("double", pa.array([2**53]), [2.0**53]),
        ("double", pa.array([0.5], pa.float32()), [0.5]),
        ("double", pa.array(np.array([0.5], np.float16)), [0.5]),
        ("string", pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        ("string", pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (
            "string",
            pa.chunked_array([pa.array(["a"]).dictionary_encode(), pa.array(["b"]).dictionary_encode()]),
            ["a", "b"],
        ),
        ("string", pa.array(["a"], pa.string_view()), ["a"]),
        (SIDE, pa.array(["SELL"]), ["SELL"]),
        (["null", "double"], pa.array([None, None]), [None, None]),
        (["null", SIDE], pa.array([None, "BUY"]), [None, "BUY"]),
        (MICROS, pa.array([MOMENT], pa.timestamp("s", "UTC")), [MOMENT_MICROS]),
        (MICROS, pa.array([MOMENT], pa.timestamp("ms", "America/New_York")), [MOMENT_MICROS]),
        (MICROS, pa.array([MOMENT], pa.timestamp("us", "+05:30")), [MOMENT_MICROS]),
        (MICROS, pa.array([MOMENT], pa.timestamp("ns", "UTC")), [MOMENT_MICROS]),
        ("long", pa.array([], pa.int16()), []),
    ],
)
def test_a_cast_that_loses_nothing_is_made(kind: Any, column: pa.Array, expected: list[Any]) -> None:
    assert (expected, []) == checked(kind, column)


@pytest.mark.parametrize(
    ("kind", "column", "kept", "refused"),
    [
        ("long", pa.array([1, 2**63], pa.uint64()), [1], [(1, Reason.OUT_OF_RANGE)]),
        ("int", pa.array([2**31, 5, -(2**31) - 1]), [5], [(0, Reason.OUT_OF_RANGE), (2, Reason.OUT_OF_RANGE)]),
        ("int", pa.array([None, 5]), [5], [(0, Reason.WRONG_TYPE)]),
        (
            "double",
            pa.array([float("nan"), 1.0, float("-inf")]),
            [1.0],
            [(0, Reason.NOT_FINITE), (2, Reason.NOT_FINITE)],
        ),
        ("double", pa.array([2**53 + 1, -(2**53) - 1, 3]), [3.0], [(0, Reason.OUT_OF_RANGE), (1, Reason.OUT_OF_RANGE)]),
        (SIDE, pa.array(["BUY", "HOLD"]), ["BUY"], [(1, Reason.BAD_ENUM)]),
        (MICROS, pa.array([1_500, 2_000], pa.timestamp("ns", "UTC")), [2], [(0, Reason.BAD_TIMESTAMP)]),
        (MICROS, pa.array([2**62, 1], pa.timestamp("s", "UTC")), [1_000_000], [(0, Reason.OUT_OF_RANGE)]),
        (MICROS, pa.array([2**62, 1], pa.timestamp("us", "UTC")), [1], [(0, Reason.OUT_OF_RANGE)]),
    ],
)
def test_rows_that_break_the_contract_are_refused_one_by_one(
    kind: Any, column: pa.Array, kept: list[Any], refused: list[tuple[int, Reason]]
) -> None:
    assert (kept, refused) == checked(kind, column)


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("boolean", pa.array([1])),
        ("long", pa.array([1.0])),
        ("long", pa.array([True])),
        ("double", pa.array(["1.0"])),
        ("double", pa.array([Decimal("1.0")])),
        ("string", pa.array([b"a"])),
        ("string", pa.array([1])),
        (MICROS, pa.array([1])),
        (MICROS, pa.array(["2013-01-01T05:17:00Z"])),
        (MICROS, pa.array([date(2013, 1, 1)])),
        (MICROS, pa.array([0], pa.timestamp("us"))),
    ],
)
def test_a_type_that_would_need_guessing_is_refused_with_the_column(kind: Any, column: pa.Array) -> None:
    with pytest.raises(ContractError, match="column 'price' is") as caught:
        checked(kind, column)
    assert caught.value.hint


def test_a_timestamp_without_a_zone_is_refused_with_what_to_do() -> None:
    with pytest.raises(ContractError) as caught:
        checked(MICROS, pa.array([0], pa.timestamp("us")))
    assert "zone" in caught.value.hint


def test_a_missing_column_takes_the_default() -> None:
    table, rejects = check_table(contract_of("int", default=3), pa.table({"other": [1, 2]}))
    assert ([3, 3], ()) == (table["price"].to_pylist(), rejects)
    table, _ = check_table(contract_of(["null", "int"], default=None), pa.table({"other": [1, 2]}))
    assert [None, None] == table["price"].to_pylist()


def test_a_missing_column_without_a_default_is_named_with_near_matches() -> None:
    with pytest.raises(ContractError, match=r"no column 'price'.*did you mean 'prices'") as caught:
        check_table(contract_of("int"), pa.table({"prices": [1]}))
    assert "price" == caught.value.field


def test_a_column_that_is_there_twice_is_refused() -> None:
    twice = pa.table([pa.array([1]), pa.array([2])], names=["price", "price"])
    with pytest.raises(ContractError, match="2 columns 'price'"):
        check_table(contract_of("int"), twice)


def test_the_first_fault_of_a_row_is_told_with_its_column() -> None:
    fields = [{"name": "a", "type": "int"}, {"name": "b", "type": "double"}]
    contract = parse_contract("events/v1", json.dumps({"type": "record", "name": "Event", "fields": fields}))
    table, rejects = check_table(contract, pa.table({"a": [1, None, None], "b": [float("nan"), float("nan"), 1.0]}))
    assert 0 == table.num_rows
    assert ["b: NaN", "a: null", "a: null"] == [
        r.error[:6].strip() if r.error[0] == "b" else r.error[:7] for r in rejects
    ]
