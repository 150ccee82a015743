"""Bad data or a bad deploy? Watches the share of refused records and says where to stop."""

from __future__ import annotations

import numpy as np

WINDOW = 200
"""Records that the share is taken of; as few as MINIMUM where there were not more yet."""
MINIMUM = 100


class RejectWatch:
    """Of one source partition."""

    def __init__(self, share: float) -> None:
        """A partition stops when more than `share` of the last records are refused."""
        self._share = share
        self._recent = np.empty(0, np.bool_)

    def cut(self, refused: np.ndarray) -> int | None:
        """`bool[n]`, whether each next record is refused → how many of them may still be taken; None for all.

        The records that tip the balance stay unread, all of them that are in this batch.
        """
        seen = np.concatenate([self._recent, refused])
        before = np.concatenate([[0], np.cumsum(seen)])
        end = np.arange(len(self._recent) + 1, len(seen) + 1)
        start = np.maximum(end - WINDOW, 0)
        size = end - start
        over = (size >= MINIMUM) & (before[end] - before[start] > self._share * size)
        if over.any():
            tipped = int(start[int(np.argmax(over))])
            first = tipped + int(np.argmax(seen[tipped:]))
            return max(0, first - len(self._recent))
        self._recent = seen[-(WINDOW - 1) :]
        return None
