"""How long values hold while nothing new is stored: until a tile leaves a window, or a value is too old."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurestore.engine.columns import NEVER, FeatureColumn
from featurestore.engine.folds import spans_of
from featurestore.engine.layout import Layout

FOREVER = 2**62
"""µs."""


class Lasting:
    """Of one view. Safe to share."""

    def __init__(self, layout: Layout) -> None:
        spans = [(span.window or 0, span.group.hop) for span in spans_of(layout) if span.group.hop is not None]
        self._window, self._hop = np.array(spans, np.int64).reshape(-1, 2).T[:, :, None]
        expiring = {aggregate.name for aggregate in layout.view.aggregates if aggregate.latest}
        self._ttl = layout.view.ttl
        self._expiring = [i for i, name in enumerate(layout.view.order) if name in expiring]

    def until(self, at: np.ndarray, columns: Sequence[FeatureColumn]) -> np.ndarray:
        """For values that were evaluated at `at` (`int64[n]` µs), the first instant at which others may be right while
        the stored ones are the same."""
        until = np.full(at.shape, FOREVER, np.int64)
        if self._hop.size:
            oldest = (at - self._window) // self._hop
            until = ((oldest + 1) * self._hop + self._window).min(axis=0)
        if self._ttl is not None:
            for i in self._expiring:
                stands_on = columns[i].as_of
                end = stands_on + self._ttl + 1
                until = np.where((stands_on != NEVER) & (end > at), np.minimum(until, end), until)
        return until
