"""Canonical JSON: one text for one value, so that digests can be compared; read strictly and within bounds."""

from __future__ import annotations

import json
from typing import Any


def dumps(value: Any) -> bytes:
    """Keys sorted, no spaces, ASCII only. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def loads(raw: bytes, max_bytes: int) -> Any:
    """Raises ValueError for anything longer, and for text that is no JSON or that repeats a key."""
    if len(raw) > max_bytes:
        raise ValueError(f"{len(raw)} bytes, more than {max_bytes}")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON value")
