import json
from typing import Any

import pytest

from featurestore.contracts.compat import backward_violations, check_transitive
from featurestore.contracts.contract import Contract, parse_contract

MICROS = {"type": "long", "logicalType": "timestamp-micros"}
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}


def enum(*symbols: str) -> dict[str, Any]:
    return {"type": "enum", "name": "E", "symbols": list(symbols)}


def contract(version: int, *fields: tuple[Any, ...]) -> Contract:
    """Each field is (name, type) or (name, type, default)."""
    entries = [dict(zip(("name", "type", "default"), field, strict=False)) for field in fields]
    return parse_contract(f"t/v{version}", json.dumps({"type": "record", "name": "R", "fields": entries}))


def found(new: Any, old: Any) -> list[str]:
    return backward_violations(contract(2, ("a", *new)), contract(1, ("a", *old)))


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (("int",), ("int",)),
        (("long",), ("int",)),
        (("double",), ("int",)),
        (("double",), ("float",)),
        ((["null", "int"],), ("int",)),
        (("int", 1), ("int",)),
        ((enum("A", "B"),), (enum("A"),)),
    ],
)
def test_a_change_that_keeps_every_value_readable_is_fine(new: Any, old: Any) -> None:
    assert [] == found(new, old)


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        (("int",), ("long",), "was long and is int"),
        (("double",), ("long",), "was long and is double"),
        (("float",), ("double",), "was double and is float"),
        (("string",), ("int",), "was int and is string"),
        ((MICROS,), ("long",), "was long and is timestamp-micros"),
        ((MICROS,), (MILLIS,), "integers would be misread"),
        (("string",), (enum("A"),), "was enum and is string"),
        (("int",), (["null", "int"],), "was nullable"),
        (("int",), ("int", 1), "lost its default"),
        ((enum("A"),), (enum("A", "B"),), "symbols may only be added"),
        ((enum("B", "A"),), (enum("A"),), "symbols may only be added"),
    ],
)
def test_a_change_that_loses_events_is_told_with_the_field(new: Any, old: Any, said: str) -> None:
    (violation,) = found(new, old)
    assert said in violation
    assert violation.startswith("a: ")


def test_an_added_field_needs_a_default_and_a_removed_one_nothing() -> None:
    old = contract(1, ("a", "int"))
    assert [] == backward_violations(contract(2, ("b", "int", 0)), old)
    assert ["b: new in t/v2 without a default, and events of t/v1 do not have it"] == backward_violations(
        contract(2, ("a", "int"), ("b", "int")), old
    )


def test_every_version_is_checked_against_all_before_it() -> None:
    first, second = contract(1, ("a", "int")), contract(2, ("b", "int", 0))
    third = contract(3, ("a", "string", ""), ("b", "int", 0))
    assert [] == check_transitive([second, first])
    assert [] == check_transitive([second, third])
    (violation,) = check_transitive([third, first, second])
    assert violation.startswith("t/v3 cannot read t/v1: a: was int")
