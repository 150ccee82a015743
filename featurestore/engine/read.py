"""Stored values → features: what the read API does with the answer of one MGET."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featurestore.definitions.compiled import CompiledView
from featurestore.engine import packing, windows
from featurestore.engine.columns import NEVER, FeatureColumn
from featurestore.engine.layout import Group, layout_of
from featurestore.engine.text import resolve
from featurestore.engine.windows import NO_TILE, Instants, Tiles


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """n entities of one view at n instants."""

    columns: list[FeatureColumn]
    """Every feature, in the view's order. Right only where `answerable`."""
    at: np.ndarray
    """`int64[n]` µs, the instants answered for."""
    latest: np.ndarray
    """`int64[n]` µs, latest applied event; `NEVER` where not found."""
    found: np.ndarray
    answerable: np.ndarray
    """`bool[n]`: the instant is not before the latest event, so the tiles answer it exactly."""
    partition: np.ndarray
    """`int64[n]`: the partition that feeds the entity, -1 where not found."""


class ViewReader:
    """Evaluates stored values of one view. Holds no state; safe to share."""

    def __init__(self, view: CompiledView) -> None:
        self.view = view
        self.layout = layout_of(view)

    def read(self, values: Sequence[bytes | None], at: np.ndarray | None, now: int) -> Reading:
        """Values as read (None: not found) → features at `at` (`int64[n]` µs), or at max(now, latest) where None.

        Raises Corrupt for bytes that this view did not write.
        """
        found = np.fromiter((value is not None for value in values), np.bool_, len(values))
        unpacked = packing.unpack(self.layout, [value for value in values if value is not None])
        latest, partition = np.full(found.size, NEVER, np.int64), np.full(found.size, -1, np.int64)
        latest[found] = unpacked.header[:, packing.LATEST]
        partition[found] = unpacked.header[:, packing.PARTITION]
        asked = np.maximum(latest, now) if at is None else at
        place = np.nonzero(found)[0]
        tiles = [
            _tiles(group, rows, place, found.size)
            for group, rows in zip(self.layout.groups, unpacked.groups, strict=True)
        ]
        with np.errstate(all="ignore"):
            columns = windows.features(
                np, self.layout, tiles, Instants(asked, latest, found), lambda refs: resolve(unpacked.buffer, refs)
            )
        return Reading(columns, asked, latest, found, ~found | (asked >= latest), partition)


def _tiles(group: Group, rows: packing.TileRows, place: np.ndarray, entities: int) -> Tiles:
    """Sparse tile rows → `[entities, k]`, k the most tiles any of them has."""
    counts = np.bincount(rows.entity, minlength=place.size)
    width = max(1, int(counts.max(initial=0)))
    column = np.arange(rows.entity.size) - (np.cumsum(counts) - counts)[rows.entity]
    index = (place[rows.entity], column)
    ids = np.full((entities, width), NO_TILE, np.int64)
    ids[index] = rows.ids
    states = []
    for stored, state in zip(group.stored, rows.states, strict=True):
        dense = stored.partial.identity(np, entities, width)
        for field, values in zip(dense, state, strict=True):
            field[index] = values
        states.append(dense)
    return Tiles(ids, tuple(states))
