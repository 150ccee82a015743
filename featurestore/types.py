"""The vocabulary of values: dtypes and durations."""

import re
from enum import StrEnum

from featurestore.clock import DAY, HOUR, MINUTE, SECOND


class Dtype(StrEnum):
    """What a column or a feature holds. Every dtype is nullable."""

    BOOL = "bool"
    INT = "int"
    """int64"""
    FLOAT = "float"
    """float64, finite"""
    STRING = "string"
    TIMESTAMP = "timestamp"
    """int64 microseconds UTC"""

    @property
    def is_number(self) -> bool:
        return self in (Dtype.INT, Dtype.FLOAT)


class Status(StrEnum):
    """What an answered value is worth. `STATUS_CODES` numbers them for columns."""

    OK = "ok"
    DEFAULT = "default"
    NOT_FOUND = "not_found"
    EXPIRED = "expired"
    STALE = "stale"
    LATE_PIPELINE = "late_pipeline"
    LAST_KNOWN = "last_known"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"


STATUSES: tuple[Status, ...] = tuple(Status)
STATUS_CODES: dict[Status, int] = {status: code for code, status in enumerate(STATUSES)}
STATUS_SUFFIX = "__status"
"""Of a column that says what the feature's values are worth, in exports and in Arrow answers."""

AS_OF_SUFFIX = "__as_of"
"""Of a column that says which event time the feature's values stand on, in exports."""

PYTHON_DTYPES: dict[type, Dtype] = {bool: Dtype.BOOL, int: Dtype.INT, float: Dtype.FLOAT, str: Dtype.STRING}

_UNITS = {"ms": 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_DURATION = re.compile(r"(\d{1,9})(ms|s|m|h|d|w)")

HOP_LADDER = (SECOND, 5 * SECOND, 15 * SECOND, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY)


def parse_duration(text: str) -> int:
    """`"90s"`, `"5m"`, `"1h"`, `"30d"` → microseconds. Raises ValueError that shows the accepted form."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no duration; write a whole number and a unit, as 30s, 5m, 1h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def format_duration(micros: int) -> str:
    """Microseconds → the shortest text that `parse_duration` reads back."""
    for unit in ("d", "h", "m", "s", "ms"):
        if micros % _UNITS[unit] == 0 and (micros or unit == "s"):
            return f"{micros // _UNITS[unit]}{unit}"
    raise ValueError(f"{micros} µs is finer than a millisecond")


def default_hop(window: int) -> int:
    """The largest step of the ladder that is at most a twelfth of the window, at least one second (µs → µs)."""
    fitting = [step for step in HOP_LADDER if step * 12 <= window]
    return fitting[-1] if fitting else HOP_LADDER[0]
