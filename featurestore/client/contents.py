"""The two ways in which an answer travels: lean JSON, which is quicker for rows, and Arrow, which is for tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from featurestore.client.result import LookupResult
from featurestore.clock import parse_instant

if TYPE_CHECKING:
    import pyarrow as pa


class NoAnswer(Exception):
    """The bytes are not the answer of a lookup."""


class _Row(msgspec.Struct, gc=False):
    values: list[Any]
    status: str | list[str]


class _Answer(msgspec.Struct, gc=False):
    """Members that are new to this client are left aside."""

    service: str
    version: int
    revision: int
    at: str
    spent_ms: float
    source: str
    features: list[str]
    types: dict[str, str]
    rows: list[_Row]


_decode = msgspec.json.Decoder(_Answer).decode


@dataclass(frozen=True, slots=True, eq=False)
class LeanContent:
    answer: _Answer
    entities: bytes = field(repr=False)
    """As they were asked for, in JSON."""

    def __len__(self) -> int:
        return len(self.answer.rows)

    def values(self) -> list[dict[str, Any]]:
        names = self.answer.features
        return [dict(zip(names, row.values, strict=True)) for row in self.answer.rows]

    def statuses(self) -> list[dict[str, str]]:
        names = self.answer.features
        return [dict(zip(names, statuses, strict=True)) for statuses in self._spread()]

    def table(self) -> pa.Table:
        from featurestore.client.tables import typed_table  # noqa: PLC0415 — only here is pyarrow needed

        names = self.answer.features
        values = _columns([row.values for row in self.answer.rows], len(names))
        statuses = _columns(self._spread(), len(names))
        features = dict(zip(names, zip(values, statuses, strict=True), strict=True))
        return typed_table(self.answer.types, msgspec.json.decode(self.entities), features)

    def _spread(self) -> list[list[str]]:
        """One status per value, also where a row has one for all."""
        width = len(self.answer.features)
        return [row.status if isinstance(row.status, list) else [row.status] * width for row in self.answer.rows]


@dataclass(frozen=True, slots=True, eq=False)
class ArrowContent:
    features: tuple[str, ...]
    arrow: pa.Table

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def values(self) -> list[dict[str, Any]]:
        from featurestore.client.tables import plain_values  # noqa: PLC0415 — as above

        columns = [plain_values(self.arrow, name) for name in self.features]
        return [dict(zip(self.features, row, strict=True)) for row in zip(*columns, strict=True)]

    def statuses(self) -> list[dict[str, str]]:
        from featurestore.client.tables import statuses  # noqa: PLC0415 — as above

        columns = [statuses(self.arrow, name) for name in self.features]
        return [dict(zip(self.features, row, strict=True)) for row in zip(*columns, strict=True)]

    def table(self) -> pa.Table:
        return self.arrow


def _columns(rows: list[list[Any]], width: int) -> list[list[Any]]:
    """Turned round; `width` empty columns where there is no row."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def read_lean(body: bytes, entities: bytes) -> LookupResult:
    """Raises NoAnswer."""
    try:
        answer = _decode(body)
        at = parse_instant(answer.at)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise NoAnswer(str(error)) from error
    return LookupResult(
        service=answer.service,
        version=answer.version,
        revision=answer.revision,
        at=at,
        spent_ms=answer.spent_ms,
        source=answer.source,
        features=tuple(answer.features),
        content=LeanContent(answer, entities),
    )


def read_arrow(body: bytes) -> LookupResult:
    """Raises NoAnswer."""
    from featurestore.client.tables import MALFORMED, features_of, read_stream  # noqa: PLC0415 — as above

    try:
        envelope, table = read_stream(body)
        features = features_of(table)
        return LookupResult(
            service=envelope["service"],
            version=int(envelope["version"]),
            revision=int(envelope["revision"]),
            at=parse_instant(envelope["at"]),
            spent_ms=float(envelope["spent_ms"]),
            source=envelope["source"],
            features=features,
            content=ArrowContent(features, table),
        )
    except MALFORMED as error:
        raise NoAnswer(str(error)) from error
