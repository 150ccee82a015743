"""Which status a value has for which several hold."""

from __future__ import annotations

import numpy as np

from featurestore.types import STATUS_CODES, STATUSES, Status

_WORST_FIRST = (
    Status.UNAVAILABLE,
    Status.DEADLINE,
    Status.STALE,
    Status.LATE_PIPELINE,
    Status.LAST_KNOWN,
    Status.NOT_FOUND,
    Status.EXPIRED,
    Status.DEFAULT,
    Status.OK,
)
"""Which status is told where several hold.

What could not be read at all comes first, then what nobody vouches for, then what is known to be behind: the event
that would make a `not_found` or `expired` untrue may be the one that is still on its way.
"""
_RANKS = np.zeros(len(STATUSES), np.uint8)
_RANKS[[STATUS_CODES[status] for status in _WORST_FIRST]] = np.arange(len(STATUSES), 0, -1)


def overlaid(status: np.ndarray, overlay: np.ndarray) -> np.ndarray:
    """The worse of two statuses, row by row (codes, uint8)."""
    return np.where(_RANKS[overlay] > _RANKS[status], overlay, status)
