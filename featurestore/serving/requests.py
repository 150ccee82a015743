"""The body of a lookup: bounded before it is parsed, strict when it is, and every refusal names its field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET, UnsetType

from featurestore.clock import parse_instant
from featurestore.definitions.expressions import RequestField
from featurestore.engine.columns import ARROW_TYPES
from featurestore.errors import near_matches
from featurestore.serving.problems import Problem, Refused, invalid
from featurestore.types import Dtype

MAX_BODY = 1 << 20
"""Bytes."""
MAX_ROWS = 1_000
MAX_DEPTH = 8
MAX_TEXT = 1_024
"""Characters of a text in `request`: one that holds for every row may be answered in every row."""

KeyValue: TypeAlias = str | int | bool | None

_STEP = np.zeros(256, np.int8)
_STEP[[ord("{"), ord("[")]] = 1
_STEP[[ord("}"), ord("]")]] = -1


class _Body(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    service: str
    entities: msgspec.Raw
    at: str | UnsetType | None = UNSET
    budget_ms: float | UnsetType | None = UNSET
    request: msgspec.Raw | UnsetType = UNSET


FIELDS: tuple[str, ...] = _Body.__struct_fields__
_decode_body = msgspec.json.Decoder(_Body).decode


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """A lookup whose entities and fields are still text: their types depend on the service."""

    service: str
    entities: bytes
    at: int | None
    """µs; None means everything applied so far."""
    budget_ms: float | None
    fields: bytes = b"{}"
    """Of the request itself."""


def parse_lookup(body: bytes) -> LookupRequest:
    """Raises Refused."""
    if len(body) > MAX_BODY:
        raise Refused(too_large(MAX_BODY))
    _check_depth(body)
    try:
        parsed = _decode_body(body)
    except _DECODE_ERRORS as error:
        _refuse(error, body, "", FIELDS)
    entities, fields = bytes(parsed.entities), b"" if parsed.request is UNSET else bytes(parsed.request)
    at = parsed.at or None
    _check_members(body, (entities, fields), parsed, at.count(":") if at else 0)
    absent = fields in (b"", b"null")
    instant, budget = _instant(parsed.at), _budget(parsed.budget_ms)
    return LookupRequest(parsed.service, entities, instant, budget, b"{}" if absent else fields)


def too_large(limit: int) -> Problem:
    hint = f"ask for at most {MAX_ROWS} entities at a time"
    return Problem(413, "body_too_large", f"the body is larger than {limit} bytes", hint=hint)


_INTEGER = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

_KEY_TYPES: dict[Dtype, Any] = {
    Dtype.STRING: list[str | None],
    Dtype.INT: list[_INTEGER | None],
    Dtype.BOOL: list[bool | None],
}


class EntityColumns:
    """Reads `entities` of one service: exactly these key columns, of these types, equally long."""

    def __init__(self, keys: Mapping[str, Dtype]) -> None:
        self.names, self.dtypes = tuple(keys), tuple(keys.values())
        fields = [(f"k{i}", _KEY_TYPES[dtype]) for i, dtype in enumerate(keys.values())]
        rename = {f"k{i}": name for i, name in enumerate(keys)}
        shape = msgspec.defstruct("Entities", fields, rename=rename, forbid_unknown_fields=True, gc=False)
        self._decode = msgspec.json.Decoder(shape).decode
        self._columns: Callable[[Any], Sequence[list[KeyValue]]] = msgspec.structs.astuple

    def read(self, entities: bytes) -> Sequence[list[KeyValue]]:
        """One list of values per key column, in the order of `names`. Raises Refused."""
        try:
            columns = self._columns(self._decode(entities))
        except _DECODE_ERRORS as error:
            _refuse(error, entities, "entities", self.names)
        rows = len(columns[0])
        for name, column in zip(self.names, columns, strict=True):
            if len(column) != rows:
                detail = f"entities.{name} has {len(column)} values, entities.{self.names[0]} has {rows}"
                raise invalid(detail, field=f"entities.{name}", hint="row i is the i-th value of every key column")
        if rows > MAX_ROWS:
            detail = f"{rows} entities; at most {MAX_ROWS} are answered at a time"
            raise invalid(detail, field=f"entities.{self.names[0]}", hint="split the request")
        if not _has_members(entities, len(self.names)):
            _refuse_duplicate(entities, "entities")
        return columns


_TEXT = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_FIELD_TYPES: dict[Dtype, Any] = {
    Dtype.STRING: list[_TEXT | None] | _TEXT | None,
    Dtype.INT: list[_INTEGER | None] | _INTEGER | None,
    Dtype.FLOAT: list[float | None] | float | None,
    Dtype.BOOL: list[bool | None] | bool | None,
}


class RequestFields:
    """Reads `request` for one service: its fields, of their types, each a column or one value for every row."""

    def __init__(self, fields: Sequence[RequestField]) -> None:
        self.names = tuple(field.name for field in fields)
        self._types = tuple(ARROW_TYPES[field.dtype] for field in fields)
        rename = {f"f{i}": name for i, name in enumerate(self.names)}
        shape = msgspec.defstruct(
            "Request", map(_member, rename, fields), rename=rename, forbid_unknown_fields=True, kw_only=True, gc=False
        )
        self._decode = msgspec.json.Decoder(shape).decode
        self._values: Callable[[Any], Sequence[Any]] = msgspec.structs.astuple

    def read(self, fields: bytes, rows: int) -> dict[str, pa.Array]:
        """By name, `rows` values of each field that is given. Raises Refused."""
        try:
            values = self._values(self._decode(fields))
        except _DECODE_ERRORS as error:
            if not self.names:
                hint = "leave `request` out"
                raise invalid("this service takes no request fields", field="request", hint=hint) from None
            _refuse(error, fields, "request", self.names)
        given = [i for i, value in enumerate(values) if value is not UNSET]
        if not _has_members(fields, len(given)):
            _refuse_duplicate(fields, "request")
        return {self.names[i]: self._column(i, values[i], rows) for i in given}

    def _column(self, i: int, value: Any, rows: int) -> pa.Array:
        if not isinstance(value, list):
            return pa.repeat(pa.scalar(value, self._types[i]), rows)
        if len(value) != rows:
            name = f"request.{self.names[i]}"
            hint = "row i is the i-th value of every column; one value alone, in no list, holds for every row"
            raise invalid(f"{name} has {len(value)} values for {rows} entities", field=name, hint=hint)
        return pa.array(value, self._types[i])


def _member(name: str, field: RequestField) -> tuple[str, Any] | tuple[str, Any, Any]:
    kind = _FIELD_TYPES[field.dtype]
    return (name, kind) if field.default is None else (name, kind | UnsetType, UNSET)


_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _bare(data: bytes) -> bytes:
    """JSON without its strings, in linear time whatever the bytes are."""
    return b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _check_depth(body: bytes) -> None:
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    steps = _STEP[np.frombuffer(_bare(body), np.uint8)]
    if int(np.cumsum(steps, dtype=np.int32).max(initial=0)) > MAX_DEPTH:
        raise invalid(f"the body nests deeper than {MAX_DEPTH} levels", hint="a lookup needs three")


def _has_members(data: bytes, expected: int) -> bool:
    """Whether a decoded object of `expected` distinct names has no more members than that: one colon each."""
    return data.count(b":") == expected or _bare(data).count(b":") == expected


def _check_members(body: bytes, inner: Sequence[bytes], parsed: _Body, quoted: int) -> None:
    # `service` and `entities` are always there.
    expected = 2 + (parsed.at is not UNSET) + (parsed.budget_ms is not UNSET) + (parsed.request is not UNSET)
    if body.count(b":") - sum(part.count(b":") for part in inner) - quoted == expected:
        return
    if _bare(body).count(b":") - sum(_bare(part).count(b":") for part in inner) != expected:
        _refuse_duplicate(body, "")


def _refuse_duplicate(data: bytes, parent: str) -> NoReturn:
    """Finds the name to tell, the slow way. Depth was bounded before."""
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.extend(name for name in set(names) if names.count(name) > 1)

    json.loads(data, object_pairs_hook=note)
    name = found[-1] if found else ""
    field = ".".join(part for part in (parent, name) if part)
    raise invalid(f"{field or 'a field'} is given twice", field=field, hint="give each field once")


def _instant(text: str | UnsetType | None) -> int | None:
    if text is None or text is UNSET:
        return None
    try:
        return parse_instant(text)
    except ValueError:
        detail = f"{text[:64]!r} is no instant; expected RFC 3339 with a zone, as 2026-03-01T12:00:00Z, or null"
        raise invalid(detail, field="at") from None


def _budget(budget: float | UnsetType | None) -> float | None:
    if budget is None or budget is UNSET:
        return None
    if not budget > 0:
        raise invalid(f"budget_ms is {budget:g}; expected milliseconds above 0", field="budget_ms")
    return budget


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_WRONG = re.compile(r"(?:Expected )?(?P<what>.+?)(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL)


def _refuse(error: Exception, data: bytes, parent: str, known: Sequence[str]) -> NoReturn:
    """The decoder's complaint → a problem that names the field in the client's terms."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        raise invalid("the body is no JSON in UTF-8", hint=_position(text)) from None
    if match := _UNKNOWN.fullmatch(text):
        name = match["name"][:64]
        raise invalid(
            f"{name!r} is no {_MEMBERS[parent]}",
            field=_path(parent, name),
            hint=f"expected {_listed(known)}",
            near=near_matches(name, known),
        ) from None
    if match := _MISSING.fullmatch(text):
        field = _path(parent, match["name"])
        raise invalid(f"{field} is missing", field=field, hint=f"expected {_listed(known)}") from None
    match = _WRONG.fullmatch(text)
    field = parent + match["path"] if match and match["path"] else parent
    expected = match["what"].replace("`", "") if match else "another type"
    field = field.lstrip(".")
    raise invalid(f"{field or 'the body'} is not as expected: {expected}", field=field) from None


_MEMBERS = {"": "field of a lookup", "entities": "key of this service", "request": "request field of this service"}


def _position(text: str) -> str:
    match = re.search(r"\(byte (\d+)\)", text)
    return f"it breaks off at byte {match[1]}" if match else "check quotes, commas and the encoding"


def _path(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
