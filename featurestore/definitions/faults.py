"""Collecting everything that is wrong with a set of definitions before saying anything."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

from featurestore.clock import DAY
from featurestore.errors import Fault, near_matches
from featurestore.types import format_duration, parse_duration

MAX_DURATION = 36_500 * DAY
"""A hundred years; sums of a few durations and an instant stay far inside int64."""

NAME = re.compile(r"[a-z][a-z0-9_]{0,99}", re.ASCII)
NAME_FORM = "a lower-case letter, then lower-case letters, digits and _, at most 100"

_DURATION_FORM = "a whole number and a unit, as 30s, 5m, 1h or 7d"
_WORDS = {"milliseconds": "ms", "seconds": "s", "minutes": "m", "hours": "h", "days": "d", "weeks": "w"}


class Unresolved(Exception):
    """A type that cannot be known because of a fault that is reported where it belongs."""


class Faults:
    def __init__(self) -> None:
        self.found: list[Fault] = []

    def add(self, where: str, problem: str, expected: str = "", near: Iterable[str] = ()) -> None:
        self.found.append(Fault(where, problem, expected, tuple(near)))

    def unknown(self, where: str, kind: str, name: Any, known: Iterable[str]) -> None:
        """A name that nothing goes by; shows near ones, or where there are none what there is."""
        options = sorted(known)
        near = near_matches(name, options) if isinstance(name, str) else ()
        expected = "" if near or not options else f"one of {', '.join(options[:20])}"
        self.add(where, f"unknown {kind} {shown(name)}", expected, near)

    def name(self, where: str, kind: str, name: Any) -> bool:
        """Whether `name` can be the name of an entity, source, view, feature or service."""
        if isinstance(name, str) and NAME.fullmatch(name):
            return True
        self.add(where, f"{shown(name)} is no {kind} name", NAME_FORM)
        return False

    def text(self, where: str, field: str, value: Any) -> None:
        if not isinstance(value, str):
            self.add(where, f"{field} is {shown(value)}", "a string")

    def duration(self, where: str, field: str, value: Any, *, zero: bool = False) -> int | None:
        """Microseconds, or None after reporting why not."""
        try:
            micros = parse_duration(value)
        except ValueError:
            self.add(where, f"{field} {shown(value)} is no duration", _DURATION_FORM, _meant(value))
            return None
        if micros == 0 and not zero:
            self.add(where, f"{field} {shown(value)} is no time at all", "a duration of more than 0")
            return None
        if micros > MAX_DURATION:
            self.add(where, f"{field} {shown(value)} is too long", f"at most {format_duration(MAX_DURATION)}")
            return None
        return micros


def shown(value: Any) -> str:
    """A value as its author wrote it, cut where it is long."""
    return reprlib.repr(value)


def _meant(value: Any) -> tuple[str, ...]:
    """`"5 minuts"` → `("5m",)`."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*([A-Za-z]+)\s*", value) if isinstance(value, str) else None
    if match is None:
        return ()
    word = match[2].lower()
    starts = [full for full in _WORDS if full.startswith(word)]
    guesses = starts or difflib.get_close_matches(word, _WORDS, n=1, cutoff=0.6)
    return (match[1] + _WORDS[guesses[0]],) if guesses else ()
