"""Time as an argument: the only module that reads a clock.

All instants inside the package are int64 microseconds since 1970-01-01 UTC; `datetime` and RFC 3339 text exist at
the edges only.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

MIN_INSTANT = -62_135_596_800 * SECOND
"""0001-01-01T00:00:00Z, the first instant RFC 3339 can print."""
MAX_INSTANT = 253_402_300_800 * SECOND - 1
"""9999-12-31T23:59:59.999999Z."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

Instant = int | str | datetime
"""Microseconds since 1970 UTC, RFC 3339 text with a zone, or an aware datetime."""


class Clock(Protocol):
    def now(self) -> int:
        """Microseconds since the epoch, UTC."""
        ...


class SystemClock:
    def now(self) -> int:
        return time.time_ns() // 1_000


class ManualClock:
    """A clock that moves when told to, for tests and simulations."""

    def __init__(self, start: int = 0) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def advance(self, micros: int) -> None:
        self._now += micros


def parse_instant(text: str) -> int:
    """RFC 3339 with a zone → microseconds.

    Digits past the microsecond are refused when they are not zero, since dropping them would move the instant.
    Raises ValueError that says what is wrong.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not RFC 3339 with a zone, as 2026-03-01T12:00:00Z")
    year, month, day, hour, minute, second = (int(g) for g in match.groups()[:6])
    fraction = (match[7] or "").ljust(6, "0")
    if fraction[6:].strip("0"):
        raise ValueError(f"{text!r} is finer than a microsecond")
    zone = 0
    if match[8] not in "Zz":
        zone_hours, zone_minutes = int(match[8][1:3]), int(match[8][4:6])
        if zone_hours > 23 or zone_minutes > 59:
            raise ValueError(f"{text!r} has no such zone")
        zone = (zone_hours * 60 + zone_minutes) * (1 if match[8][0] == "+" else -1)
    moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    micros = (moment - _EPOCH) // timedelta(microseconds=1) + int(fraction[:6]) - zone * MINUTE
    if not MIN_INSTANT <= micros <= MAX_INSTANT:
        raise ValueError(f"{text!r} is outside the years 1 to 9999")
    return micros


def to_instant(value: Instant) -> int:
    """Microseconds, whichever way an instant is given. Raises ValueError that says what is wrong."""
    for kind, read in _READERS.items():
        if isinstance(value, kind):
            return read(value)
    raise ValueError(f"{value!r} is neither microseconds nor RFC 3339 text nor a datetime")


def from_datetime(moment: datetime) -> int:
    """Aware datetime → microseconds. Raises ValueError where the zone is missing."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no zone; use an aware datetime")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def format_instant(micros: int) -> str:
    """Microseconds → RFC 3339 with `Z`, six digits only where there is a fraction."""
    moment = _EPOCH + timedelta(microseconds=micros)
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


_READERS: dict[type, Callable[[Any], int]] = {int: int, str: parse_instant, datetime: from_datetime}
