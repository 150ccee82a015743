"""A small source and views that the streaming units are tried on."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from featurestore import Entity, Source, agg, col, feature_view
from featurestore.contracts.contract import Contract, parse_contract
from featurestore.definitions.compile import compile_view
from featurestore.definitions.compiled import CompiledSource, CompiledView

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Click",
    "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "user", "type": ["null", "string"], "default": None},
        {"name": "amount", "type": ["null", "double"], "default": None},
    ],
}

User = Entity("user", keys={"user": str})
Clicks = Source("clicks", topic="clicks", contract="clicks/v1", event_time="at", key=["user"])


@feature_view(entity=User, source=Clicks, version=1, owner="o@example.com")
class UserClicks:
    n_all = agg.count()
    total = agg.sum(col("amount"))
    n_5m = agg.count(window="5m")


@feature_view(entity=User, source=Clicks, version=1, owner="o@example.com")
class WindowsOnly:
    n_5m = agg.count(window="5m")


def contract(schema: dict[str, Any] | None = None, version: int = 1) -> Contract:
    return parse_contract(f"clicks/v{version}", json.dumps(schema or SCHEMA))


def compiled(view: Any = UserClicks) -> CompiledView:
    found, faults = compile_view(view, contract())
    assert found is not None, faults
    return found


def source() -> CompiledSource:
    return compiled().source


def records(values: Sequence[bytes | None], *, first: int = 0, timestamp_ms: int = 1_000, kind: int = 0) -> list[Any]:
    """Records as aiokafka hands them out; `kind` 1 is a topic whose timestamps are the broker's."""
    return [
        SimpleNamespace(
            offset=first + i, value=value, key=b"k", headers=(("h", b"1"),), timestamp=timestamp_ms,
            timestamp_type=kind, topic="clicks",
        )
        for i, value in enumerate(values)
    ]  # fmt: skip
