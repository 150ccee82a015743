"""The worked cases as plain data: durations and instants in microseconds, conditions as functions."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.oracle.meaning import DAY, HOUR, MINUTE, SECOND, OracleEvent, OracleFeature, Value

CASES = Path(__file__).parent.parent / "golden" / "cases.json"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}


@dataclass(frozen=True)
class GoldenLookup:
    at: int
    values: dict[str, Value]


@dataclass(frozen=True)
class GoldenCase:
    """`specs` is the features as they stand in the file, for tests that build definitions of their own from them."""

    name: str
    why: str
    specs: dict[str, dict[str, Any]]
    features: tuple[OracleFeature, ...]
    events: tuple[OracleEvent, ...]
    lookups: tuple[GoldenLookup, ...]


def golden_cases() -> list[GoldenCase]:
    return [_case(raw) for raw in json.loads(CASES.read_text(encoding="utf-8"))]


def micros(text: str) -> int:
    """An RFC 3339 instant → µs since 1970 UTC."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def duration(text: str) -> int:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    assert match, text
    return int(match[1]) * _UNITS[match[2]]


def _case(raw: dict[str, Any]) -> GoldenCase:
    return GoldenCase(
        name=raw["name"],
        why=raw["why"],
        specs=raw["features"],
        features=tuple(_feature(name, spec) for name, spec in raw["features"].items()),
        events=tuple(_event(event, raw["events"]) for event in raw["events"]),
        lookups=tuple(GoldenLookup(micros(lookup["at"]), lookup["values"]) for lookup in raw["lookups"]),
    )


def _feature(name: str, spec: dict[str, Any]) -> OracleFeature:
    parsed: dict[str, Any] = {key: duration(spec[key]) for key in ("window", "hop", "ttl") if key in spec}
    if "where" in spec:
        column, bound = spec["where"]
        parsed["where"] = lambda event: None if event[column] is None else event[column] > bound
    return OracleFeature(name=name, **(spec | parsed))


def _event(raw: dict[str, Any], siblings: list[dict[str, Any]]) -> OracleEvent:
    columns = {column: None for sibling in siblings for column in sibling}
    return columns | raw | {"event_time": micros(raw["event_time"])}
