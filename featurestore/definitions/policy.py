"""The fallback policy of a view: what stands in for values that are missing, and for those that nobody vouches for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from featurestore.types import parse_duration

ON_MISSING = ("default", "null", "error")
ON_STALE = ("serve", "last_known(5m)", "default", "null", "error")
"""As an author writes them; the age is the author's."""

_ACTIONS = {"serve", "default", "null", "error"}
_LAST_KNOWN = re.compile(r"last_known\((?P<age>[^()]*)\)")


@dataclass(frozen=True, slots=True)
class StalePolicy:
    """What an `on_stale` means."""

    action: str
    """`serve`, `last_known`, `default`, `null` or `error`."""
    within: int = 0
    """µs that a last known value may be old; 0 for the other actions."""


def parse_on_stale(text: str) -> StalePolicy:
    """Raises KeyError for no policy, and ValueError that says what is wrong with its age."""
    match = _LAST_KNOWN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        if text not in _ACTIONS:
            raise KeyError(text)
        return StalePolicy(text)
    within = parse_duration(match["age"].strip())
    if not within:
        raise ValueError(f"{match['age']!r} is no time at all")
    return StalePolicy("last_known", within)
