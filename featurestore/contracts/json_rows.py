"""JSON values, one at a time: what every other JSON path must agree with, and the only one that words a refusal.

-0.0 becomes 0.0: the two are equal, and a zero without a sign makes min, max and state bytes independent of order.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Never

from featurestore.clock import MAX_INSTANT, MIN_INSTANT, parse_instant
from featurestore.contracts.contract import Contract
from featurestore.contracts.field import NO_DEFAULT, Field, Scalar
from featurestore.contracts.reasons import MAX_DEPTH, MAX_VALUE_BYTES, Reason, Refused, shown
from featurestore.types import Dtype

# Longer literals are beyond every type here, and int() takes quadratic time on them.
_MAX_DIGITS = 400
_BEYOND = 10**_MAX_DIGITS

# Never fails to match, so it cannot backtrack: an unterminated string runs to the end.
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_STEP = {"{": 1, "[": 1, "}": -1, "]": -1}

Row = tuple[Scalar, ...]


def decode_json_row(contract: Contract, value: bytes | None) -> Row:
    """One value per field of the contract, timestamps in microseconds. Raises Refused with the first fault found."""
    document = _parse(value)
    return tuple(_field_value(field, document) for field in contract.fields)


def _parse(value: bytes | None) -> dict[str, Any]:
    if not value:
        raise Refused(Reason.EMPTY, "the value is null" if value is None else "the value is empty")
    if len(value) > MAX_VALUE_BYTES:
        raise Refused(Reason.TOO_LARGE, f"{len(value)} bytes, at most {MAX_VALUE_BYTES} are read")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(Reason.BAD_UTF8, f"not UTF-8 at byte {error.start}: {error.reason}") from None
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise Refused(Reason.TOO_DEEP, f"nested deeper than {MAX_DEPTH}")
    try:
        document = _DECODER.decode(text)
    except ValueError as error:
        raise Refused(Reason.NOT_JSON, f"not one JSON document: {error}") from None
    if type(document) is not dict:
        raise Refused(Reason.NOT_OBJECT, f"expected a JSON object, got {_JSON_NAMES[type(document)]}")
    return document


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _STRUCTURE.finditer(text):
        depth += _STEP.get(match[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise Refused(Reason.DUPLICATE_KEY, f"the key {shown(twice)} is there twice")
    return found


def _integer(text: str) -> int:
    return int(text) if len(text) <= _MAX_DIGITS else (-_BEYOND if text[0] == "-" else _BEYOND)


def _constant(text: str) -> Never:
    raise Refused(Reason.NOT_FINITE, f"{text} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)

_JSON_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number with a fraction or exponent",
    bool: "a boolean",
    type(None): "null",
}


def _field_value(field: Field, document: dict[str, Any]) -> Scalar:
    if field.name not in document:
        if field.default is NO_DEFAULT:
            raise Refused(Reason.MISSING_FIELD, f"{field.name}: missing, and the contract has no default")
        return field.default
    raw = document[field.name]
    if raw is None and field.nullable:
        return None
    return _READERS[field.dtype](field, raw)


def _wrong_type(field: Field, raw: object, expected: str) -> Refused:
    return Refused(Reason.WRONG_TYPE, f"{field.name}: expected {expected}, got {_JSON_NAMES[type(raw)]}")


def _read_bool(field: Field, raw: object) -> Scalar:
    if type(raw) is not bool:
        raise _wrong_type(field, raw, "a boolean")
    return raw


def _read_int(field: Field, raw: object) -> Scalar:
    if type(raw) is not int:
        raise _wrong_type(field, raw, "an integer")
    low, high = field.bounds
    if not low <= raw <= high:
        raise Refused(Reason.OUT_OF_RANGE, f"{field.name}: an integer outside {low} to {high}")
    return raw


def _read_float(field: Field, raw: object) -> Scalar:
    if type(raw) is not float and type(raw) is not int:
        raise _wrong_type(field, raw, "a number")
    try:
        number = float(raw)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Refused(Reason.NOT_FINITE, f"{field.name}: a number beyond a double")
    return number + 0.0


def _read_string(field: Field, raw: object) -> Scalar:
    if type(raw) is not str:
        raise _wrong_type(field, raw, "a string")
    if field.symbols and raw not in field.symbols:
        raise Refused(Reason.BAD_ENUM, f"{field.name}: {shown(raw)} is none of {', '.join(field.symbols[:20])}")
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise Refused(Reason.BAD_UTF8, f"{field.name}: {shown(raw)} has a lone surrogate") from None
    return raw


def _read_timestamp(field: Field, raw: object) -> Scalar:
    if type(raw) is str:
        try:
            return parse_instant(raw)
        except ValueError:
            raise Refused(
                Reason.BAD_TIMESTAMP,
                f"{field.name}: {shown(raw)} is no RFC 3339 time with a zone and at most microseconds",
            ) from None
    if type(raw) is not int:
        raise _wrong_type(field, raw, "an RFC 3339 string or an integer")
    micros = raw * field.unit_micros
    if not MIN_INSTANT <= micros <= MAX_INSTANT:
        raise Refused(Reason.OUT_OF_RANGE, f"{field.name}: an instant outside the years 1 to 9999")
    return micros


_READERS: dict[Dtype, Callable[[Field, object], Scalar]] = {
    Dtype.BOOL: _read_bool,
    Dtype.INT: _read_int,
    Dtype.FLOAT: _read_float,
    Dtype.STRING: _read_string,
    Dtype.TIMESTAMP: _read_timestamp,
}
