"""The part of the Avro schema language that contracts use: one flat record of scalars.

Flat on purpose: every field is a column that features can be computed from, and every value has one decoding.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from featurestore.clock import MAX_INSTANT, MIN_INSTANT
from featurestore.contracts.field import INT64, NO_DEFAULT, Field, NoDefault, Scalar
from featurestore.errors import ContractError
from featurestore.types import Dtype

MAX_SCHEMA_BYTES = 1 << 20
_MAX_FIELDS = 4096
RESERVED = frozenset({"_partition", "_offset", "_month", "visible_time"})

SUPPORTED = (
    "boolean, int, long, float, double, string, enum, long with logicalType timestamp-micros or timestamp-millis, "
    'or a union of null with one of these, as ["null", "double"]'
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_PRIMITIVES = {
    "boolean": Dtype.BOOL,
    "int": Dtype.INT,
    "long": Dtype.INT,
    "float": Dtype.FLOAT,
    "double": Dtype.FLOAT,
    "string": Dtype.STRING,
}
_TIMESTAMP_UNITS = {"timestamp-micros": 1, "timestamp-millis": 1_000}


class RecordShape(NamedTuple):
    fields: tuple[Field, ...]
    canonical: str


@dataclass(frozen=True, slots=True)
class _Wire:
    """A type without its nullability."""

    dtype: Dtype
    wire: str
    unit_micros: int = 1
    symbols: tuple[str, ...] = ()


class _RepeatedKey(ValueError):
    pass


def read_record(contract_id: str, text: str) -> RecordShape:
    """Parse schema text. `canonical` is one spelling for all schemas that decode alike."""
    schema = _parse_json(contract_id, text)
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ContractError(
            f"contract {contract_id}: the top of the schema is not a record",
            hint='a contract is {"type": "record", "name": …, "fields": […]}',
        )
    entries = schema.get("fields")
    if not isinstance(entries, list) or not entries:
        raise ContractError(f"contract {contract_id}: the record has no fields", hint='list at least one in "fields"')
    if len(entries) > _MAX_FIELDS:
        raise ContractError(f"contract {contract_id}: {len(entries)} fields, at most {_MAX_FIELDS} are supported")
    fields: dict[str, Field] = {}
    for position, entry in enumerate(entries):
        field = _read_field(contract_id, position, entry)
        if field.name in fields:
            raise ContractError(f"contract {contract_id}: field {field.name!r} is declared twice", field=field.name)
        fields[field.name] = field
    return RecordShape(tuple(fields.values()), _canonical(tuple(fields.values())))


def _parse_json(contract_id: str, text: str) -> Any:
    if len(text) > MAX_SCHEMA_BYTES:
        raise ContractError(f"contract {contract_id}: the schema is larger than {MAX_SCHEMA_BYTES} bytes")
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise ContractError(f"contract {contract_id}: the schema is nested too deep") from None
    except _RepeatedKey as error:
        raise ContractError(f"contract {contract_id}: the schema repeats the key {error}") from None
    except ValueError as error:
        raise ContractError(
            f"contract {contract_id}: the schema is not JSON: {error}", hint="a contract is an Avro schema (.avsc)"
        ) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKey(repr(key))
        found[key] = value
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON value")


def _read_field(contract_id: str, position: int, entry: object) -> Field:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ContractError(f"contract {contract_id}: field {position} has no name")
    name = entry["name"]
    if not _NAME.fullmatch(name):
        raise ContractError(
            f"contract {contract_id}: {name[:80]!r} is no field name",
            hint="Avro names are letters, digits and _, and do not start with a digit",
            field=name[:80],
        )
    if name in RESERVED:
        raise ContractError(f"contract {contract_id}: {name!r} is a column that the store adds to events", field=name)
    where = f"contract {contract_id}, field {name!r}"
    declared = entry.get("type")
    null_branch, inner = _split_union(where, name, declared)
    wire = _read_type(where, name, inner)
    nullable = null_branch is not None
    default = _read_default(where, name, entry["default"], wire, nullable) if "default" in entry else NO_DEFAULT
    return Field(name, wire.dtype, nullable, default, wire.wire, wire.unit_micros, wire.symbols, null_branch)


def _split_union(where: str, name: str, declared: object) -> tuple[int | None, object]:
    """The index of the null branch (None for no union) and the other branch."""
    if not isinstance(declared, list):
        return None, declared
    if len(declared) != 2 or declared.count("null") != 1:
        raise _unsupported(where, name, f"the union {_brief(declared)}")
    branch = declared.index("null")
    return branch, declared[1 - branch]


def _read_type(where: str, name: str, declared: object) -> _Wire:
    attributes = declared if isinstance(declared, dict) else {"type": declared}
    base = attributes.get("type")
    if base == "enum":
        return _Wire(Dtype.STRING, "enum", symbols=_read_symbols(where, name, attributes.get("symbols")))
    if not isinstance(base, str) or base not in _PRIMITIVES:
        raise _unsupported(where, name, f"the type {_brief(declared)}")
    logical = attributes.get("logicalType")
    if logical is None:
        return _Wire(_PRIMITIVES[base], base)
    if base == "long" and isinstance(logical, str) and logical in _TIMESTAMP_UNITS:
        return _Wire(Dtype.TIMESTAMP, "long", unit_micros=_TIMESTAMP_UNITS[logical])
    # Avro lets readers ignore a logical type; that would hand days or nanoseconds on as if they were plain numbers.
    raise _unsupported(where, name, f"logicalType {_brief(logical)} of {base}")


def _read_symbols(where: str, name: str, symbols: object) -> tuple[str, ...]:
    if not isinstance(symbols, list) or not symbols:
        raise ContractError(f"{where}: the enum lists no symbols", field=name)
    for symbol in symbols:
        if not isinstance(symbol, str) or not _NAME.fullmatch(symbol):
            raise ContractError(f"{where}: {_brief(symbol)} is no enum symbol", field=name)
    if len(set(symbols)) != len(symbols):
        raise ContractError(f"{where}: the enum repeats a symbol", field=name)
    return tuple(symbols)


def _unsupported(where: str, name: str, what: str) -> ContractError:
    return ContractError(f"{where}: {what} is not supported", hint=f"supported: {SUPPORTED}", field=name)


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_Default = Callable[[Any, _Wire], Scalar]


def _bool_default(value: Any, _: _Wire) -> Scalar:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _int_default(value: Any, wire: _Wire) -> Scalar:
    low, high = Field("", wire.dtype, wire=wire.wire).bounds
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"an integer from {low} to {high}")
    return value


def _float_default(value: Any, _: _Wire) -> Scalar:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value) + 0.0


def _string_default(value: Any, wire: _Wire) -> Scalar:
    if type(value) is not str or any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("a string")
    if wire.symbols and value not in wire.symbols:
        raise ValueError(f"one of {', '.join(wire.symbols)}")
    return value


def _timestamp_default(value: Any, wire: _Wire) -> Scalar:
    if type(value) is not int or not INT64[0] <= value <= INT64[1]:
        raise ValueError("an integer in the unit of the logicalType")
    micros = value * wire.unit_micros
    if not MIN_INSTANT <= micros <= MAX_INSTANT:
        raise ValueError("an instant of the years 1 to 9999")
    return micros


_DEFAULTS: dict[Dtype, _Default] = {
    Dtype.BOOL: _bool_default,
    Dtype.INT: _int_default,
    Dtype.FLOAT: _float_default,
    Dtype.STRING: _string_default,
    Dtype.TIMESTAMP: _timestamp_default,
}


def _read_default(
    where: str, name: str, value: object, wire: _Wire, nullable: bool
) -> Scalar | Literal[NoDefault.NO_DEFAULT]:
    if value is None and nullable:
        return None
    try:
        return _DEFAULTS[wire.dtype](value, wire)
    except (ValueError, OverflowError) as error:
        raise ContractError(f"{where}: default {_brief(value)} does not fit; expected {error}", field=name) from None


def _canonical(fields: tuple[Field, ...]) -> str:
    """Field order and union order count, since bare Avro binary depends on them."""
    rows = [
        {
            "name": f.name,
            "wire": f.wire,
            "unit": f.unit_micros if f.dtype is Dtype.TIMESTAMP else None,
            "null": f.null_branch,
            "symbols": f.symbols,
            **({"default": f.default} if f.has_default else {}),
        }
        for f in fields
    ]
    return json.dumps(rows, sort_keys=True, separators=(",", ":"))
