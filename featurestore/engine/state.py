"""Worker state of one view: dense tiles on the compute device, a cache of what Redis holds.

Everything kept is a function of the log up to each entity's applied offset, so the cache can be dropped at any time
and filled again on first touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from featurestore.definitions.compiled import CompiledView
from featurestore.engine import packing, sections
from featurestore.engine.array import Array, to_host
from featurestore.engine.columns import NEVER, EventBatch, StringPool
from featurestore.engine.evaluate import Leaves
from featurestore.engine.gather import concerned, events_of, leaves_of, take_leaves
from featurestore.engine.layout import Group, layout_of
from featurestore.engine.opening import Unpacked, unpack
from featurestore.engine.reduce import Segments, State, take
from featurestore.engine.text import intern_references, pool_encoder
from featurestore.engine.windows import NO_TILE, Tiles


class Outcome(IntEnum):
    """What became of an event in a view. Every event has exactly one."""

    APPLIED = 0
    LATE = 1
    """Older than every window's retention: latest and lifetime values took it, no window did."""
    FILTERED = 2
    """No concern of the view: a null key, or its `where` does not hold."""
    DUPLICATE = 3
    """At or below the entity's applied offset: its effect is in the stored value already."""


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    slots: np.ndarray
    """`int64[m]`, entities whose value changed."""
    keys: list[str]
    outcome: np.ndarray
    """`uint8[n]`, an `Outcome` per event of the batch."""
    latest: np.ndarray
    """`int64[m]` µs, their latest event times."""


MIN_SLOTS = 1024
"""Cached at least, whatever the budget."""
FIRST_SLOTS = 16
MAX_TEXTS = 1 << 20
"""Distinct texts interned before those that no state uses are forgotten."""


class ViewState:
    """State of one view for the entities of one partition."""

    def __init__(self, view: CompiledView, *, budget_bytes: int = 1 << 30, xp: Any = np) -> None:
        """`budget_bytes` bounds the cache; the least recently touched entities leave first."""
        self.view = view
        self.layout = layout_of(view)
        self._xp = xp
        per_slot = sum(
            g.ring * (8 + sum(f.width * np.dtype(f.dtype).itemsize for s in g.stored for f in s.partial.fields))
            for g in self.layout.groups
        )
        self._limit = max(MIN_SLOTS, budget_bytes // (per_slot + 200))
        self.clear()

    def clear(self) -> None:
        """Forgets everything, as after losing a partition or finding that Redis lost writes."""
        self._pool = StringPool()
        self._slots: dict[str, int] = {}
        self._keys: list[str] = []
        self._touched = 0
        self._capacity = 0
        self._applied = np.empty(0, np.int64)
        self._latest = np.empty(0, np.int64)
        self._used = np.empty(0, np.int64)
        self._tiles: list[Tiles] = [self._empty_tiles(group, 0) for group in self.layout.groups]
        self._resize(FIRST_SLOTS)

    def __len__(self) -> int:
        """Entities cached."""
        return len(self._keys)

    @property
    def limit(self) -> int:
        """Entities that the budget has room for: with more, some are evicted."""
        limit: int = self._limit
        return limit

    def unknown(self, batch: EventBatch) -> list[str]:
        """Distinct keys of the batch that must be loaded before it is folded."""
        return [key for key in batch.entities.names if key not in self._slots]

    def load(self, keys: Sequence[str], values: Sequence[bytes | None], partition: int) -> list[str]:
        """Takes in stored values (None: never stored). Returns keys whose value belongs to another partition;
        those are not cached.

        Everything cached must have been written before this is called, since entities may be evicted to make room.
        """
        fresh = [k for k, value in zip(keys, values, strict=True) if value is None]
        stored = [(k, value) for k, value in zip(keys, values, strict=True) if value is not None]
        unpacked = unpack(self.layout, [value for _, value in stored])
        mine = np.isin(unpacked.header[:, sections.PARTITION], (partition, sections.NOBODY))
        known = [k for (k, _), ok in zip(stored, mine.tolist(), strict=True) if ok]
        self._make_room(len(fresh) + len(known))
        if len(self._pool) > MAX_TEXTS:
            self._forget_texts(len(self._keys))
        self._admit(fresh)
        self._fill(self._admit(known), unpacked, mine)
        return [k for (k, _), ok in zip(stored, mine.tolist(), strict=True) if not ok]

    def fold(self, batch: EventBatch, offsets: np.ndarray) -> Folded:
        """Applies n events; `offsets` (`int64[n]`, ascending) are their offsets in the log the view reads.

        Every non-null key must be cached (see `unknown`). The result does not depend on how the log is cut into
        batches, except that float sums may differ far below 1e-9.
        """
        xp = self._xp
        with np.errstate(all="ignore"):
            leaves = leaves_of(xp, self.view, self.layout.columns, batch, self._pool)
            mine = to_host(concerned(self.view, leaves, batch, xp, self._pool))
            slots = self._slots_of(batch)
            outcome = np.full(len(batch), Outcome.FILTERED, np.uint8)
            outcome[mine & (offsets <= self._applied[slots])] = Outcome.DUPLICATE
            rows = np.nonzero(mine & (offsets > self._applied[slots]))[0]
            rows = rows[_by_slot_and_time(slots[rows], batch.time[rows])]
            slot, time = slots[rows], batch.time[rows]
            touched = slot[_heads(slot)]
            before = self._latest[slot]
            np.maximum.at(self._latest, slot, time)
            outcome[rows] = self._lateness(rows, slot, time, before)
            self._apply(slot, time, xp.asarray(batch.seq[rows]), take_leaves(leaves, xp.asarray(rows)))
        self._touched += 1
        self._used[touched] = self._touched
        if rows.size:
            self._applied[touched] = offsets[-1]
        return Folded(touched, [self._keys[s] for s in touched.tolist()], outcome, self._latest[touched])

    def encode(self, slots: np.ndarray, *, generation: int, partition: int, offset: int) -> list[bytes]:
        """The packed values of some entities, valid for `offset`."""
        header = np.zeros((slots.size, sections.HEADER_WORDS), np.int64)
        header[:, sections.MAGIC] = sections.FORMAT
        header[:, sections.FINGERPRINT] = sections.fingerprint_word(self.view.fingerprint)
        header[:, sections.GENERATION], header[:, sections.OFFSET] = generation, offset
        header[:, sections.PARTITION], header[:, sections.LATEST] = partition, self._latest[slots]
        groups = [self._live_rows(g, t, slots) for g, t in zip(self.layout.groups, self._tiles, strict=True)]
        return packing.pack(self.layout, header, groups, lambda codes: pool_encoder(self._pool, codes))

    def _slots_of(self, batch: EventBatch) -> np.ndarray:
        entities = batch.entities
        table = np.fromiter(map(self._slots.__getitem__, entities.names), np.int64, len(entities.names))
        # An event without a key is never folded: any slot will do.
        return table[entities.codes] if table.size else np.zeros(len(batch), np.int64)

    def _lateness(self, rows: np.ndarray, slot: np.ndarray, time: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Outcome of each event, judged by the entity's latest event time when the event's turn came.

        `rows` are the events' places in the batch, `before` the entity's latest event time before it.
        """
        outcome = np.full(slot.size, Outcome.APPLIED, np.uint8)
        # What is inside the retention of the latest time of all was inside it all along: then nothing need be ordered.
        doubtful = time < self._kept_from(self._latest[slot])
        if doubtful.any():
            chosen = np.nonzero(np.isin(slot, slot[doubtful]))[0]
            chosen = chosen[np.lexsort((rows[chosen], slot[chosen]))]
            latest = np.maximum(_running_maximum(slot[chosen], time[chosen]), before[chosen])
            outcome[chosen[time[chosen] < self._kept_from(latest)]] = Outcome.LATE
        return outcome

    def _kept_from(self, latest: np.ndarray) -> np.ndarray:
        """The instant from which on some window still has events of an entity with this latest event time."""
        hops = [(g.hop, g.reach) for g in self.layout.groups if g.hop is not None]
        starts = [(latest - reach) // hop * hop for hop, reach in hops]
        return np.min(starts, axis=0) if starts else np.full(latest.size, NEVER)

    def _apply(self, slot: np.ndarray, time: np.ndarray, seq: Array, leaves: Leaves) -> None:
        """Folds events, sorted by slot and time, into every group: all deltas first, then the writes, so nothing is
        half applied."""
        xp = self._xp
        writes = []
        for group, tiles in zip(self.layout.groups, self._tiles, strict=True):
            chosen, (owner, tile, moments) = self._live_events(group, slot, time)
            if not owner.size:
                continue
            index = xp.asarray(chosen)
            here, seqs = (leaves, seq) if owner.size == slot.size else (take_leaves(leaves, index), seq[index])
            starts = _heads(owner) | _heads(tile)
            heads = np.nonzero(starts)[0]
            segments = Segments(xp, xp.asarray(np.cumsum(starts) - 1), heads.size)
            place = (xp.asarray(owner[heads]), xp.asarray(tile[heads] % group.ring))
            same = tiles.ids[place] == xp.asarray(tile[heads])
            for stored, state in zip(group.stored, tiles.states, strict=True):
                events = events_of(xp, stored, here, xp.asarray(moments), seqs, self._pool)
                delta = stored.partial.reduce(xp, events, segments)
                writes.append((state, place, self._merged(stored.partial, state, place, same, delta)))
            writes.append(((tiles.ids,), place, (xp.asarray(tile[heads]),)))
        for fields, place, values in writes:
            for field, value in zip(fields, values, strict=True):
                field[place] = value

    def _live_events(
        self, group: Group, slot: np.ndarray, time: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Which events fall into tiles that the group keeps; their slots, tile ids and times."""
        if group.hop is None:
            return np.arange(slot.size), (slot, np.zeros(slot.size, np.int64), time)
        tile = time // group.hop
        live = tile >= (self._latest[slot] - group.reach) // group.hop
        if live.all():
            return np.arange(slot.size), (slot, tile, time)
        return np.nonzero(live)[0], (slot[live], tile[live], time[live])

    def _merged(self, partial: Any, state: State, place: Any, same: Array, delta: State) -> State:
        """Stored tiles merged with new ones; a ring place that holds an older tile starts afresh."""
        xp = self._xp
        merged = partial.merge(xp, take(state, place), delta)
        return tuple(
            xp.where(same.reshape((-1,) + (1,) * (new.ndim - 1)), both, new)
            for both, new in zip(merged, delta, strict=True)
        )

    def _live_rows(self, group: Group, tiles: Tiles, slots: np.ndarray) -> packing.TileRows:
        """Tiles inside the retention of each entity, by entity and tile id (host)."""
        xp = self._xp
        if group.hop is None:
            oldest = place = np.zeros((slots.size, 1), np.int64)
            live = to_host(tiles.ids[xp.asarray(slots)]) != NO_TILE
        else:
            # The ring read from each entity's oldest tile on: what is live comes in the order of its id.
            oldest = ((self._latest[slots] - group.reach) // group.hop)[:, None]
            place = (oldest + np.arange(group.ring)) % group.ring
            live = to_host(tiles.ids[xp.asarray(slots[:, None]), xp.asarray(place)]) >= oldest
        entity, step = np.nonzero(live)
        at = (xp.asarray(slots[entity]), xp.asarray(place[entity, step]))
        states = tuple(tuple(to_host(field[at]) for field in state) for state in tiles.states)
        return packing.TileRows(entity, oldest[entity, 0] + step, states)

    def _fill(self, slots: np.ndarray, unpacked: Unpacked, mine: np.ndarray) -> None:
        """Writes decoded values into the slots; `slots[i]` is for the i-th value that is `mine`."""
        xp = self._xp
        target = np.full(mine.size, -1, np.int64)
        target[mine] = slots
        header = unpacked.header[mine]
        self._applied[slots], self._latest[slots] = header[:, sections.OFFSET], header[:, sections.LATEST]
        for group, tiles, stored_tiles in zip(self.layout.groups, self._tiles, unpacked.groups, strict=True):
            wanted = np.nonzero((stored_tiles.ids != NO_TILE) & mine[:, None])
            ids = stored_tiles.ids[wanted]
            place = (xp.asarray(target[wanted[0]]), xp.asarray(ids % group.ring))
            tiles.ids[place] = xp.asarray(ids)
            for stored, state, decoded in zip(group.stored, tiles.states, stored_tiles.states, strict=True):
                for spec, field, values in zip(stored.partial.fields, state, decoded, strict=True):
                    chosen = values[wanted]
                    if spec.kind == "text":
                        chosen = intern_references(unpacked.buffer, chosen, self._pool)
                    field[place] = xp.asarray(chosen)

    def _admit(self, keys: list[str]) -> np.ndarray:
        slots = np.arange(len(self._keys), len(self._keys) + len(keys))
        self._slots.update(zip(keys, slots.tolist(), strict=True))
        self._keys += keys
        self._touched += 1
        self._used[slots], self._applied[slots], self._latest[slots] = self._touched, -1, NEVER
        index = self._xp.asarray(slots)
        for tiles in self._tiles:
            tiles.ids[index] = NO_TILE
        for group, tiles in zip(self.layout.groups, self._tiles, strict=True):
            for stored, state in zip(group.stored, tiles.states, strict=True):
                for spec, field in zip(stored.partial.fields, state, strict=True):
                    field[index] = spec.empty
        return slots

    def _make_room(self, more: int) -> None:
        """Evicts the least recently used when the budget is spent, then grows the arrays as needed."""
        if len(self._keys) + more > self._limit and self._keys:
            keep = max(0, min(len(self._keys), self._limit - more, self._limit // 2))
            self._compact(np.sort(np.argsort(-self._used[: len(self._keys)], kind="stable")[:keep]))
        needed = len(self._keys) + more
        if needed <= self._capacity:
            return
        self._resize(max(needed, min(2 * self._capacity, self._limit)))

    def _resize(self, capacity: int) -> None:
        xp, kept = self._xp, len(self._keys)

        def grown(old: Array, empty: Any, module: Any) -> Array:
            new = module.full((capacity, *old.shape[1:]), empty, old.dtype)
            new[:kept] = old[:kept]
            return new

        self._applied, self._latest = grown(self._applied, -1, np), grown(self._latest, NEVER, np)
        self._used = grown(self._used, 0, np)
        self._tiles = [
            Tiles(
                grown(t.ids, NO_TILE, xp),
                tuple(
                    tuple(
                        grown(field, spec.empty, xp) for field, spec in zip(state, stored.partial.fields, strict=True)
                    )
                    for state, stored in zip(t.states, g.stored, strict=True)
                ),
            )
            for g, t in zip(self.layout.groups, self._tiles, strict=True)
        ]
        self._capacity = capacity

    def _compact(self, slots: np.ndarray) -> None:
        """Keeps only these slots, in order, and the texts they use."""
        self._keys = [self._keys[s] for s in slots.tolist()]
        self._slots = {key: slot for slot, key in enumerate(self._keys)}
        for array in (self._applied, self._latest, self._used):
            array[: slots.size] = array[slots]
        index = self._xp.asarray(slots)
        for tiles in self._tiles:
            for field in (tiles.ids, *(f for state in tiles.states for f in state)):
                field[: slots.size] = field[index]
        self._forget_texts(slots.size)

    def _forget_texts(self, kept: int) -> None:
        fields = [
            field
            for group, tiles in zip(self.layout.groups, self._tiles, strict=True)
            for stored, state in zip(group.stored, tiles.states, strict=True)
            for spec, field in zip(stored.partial.fields, state, strict=True)
            if spec.kind == "text"
        ]
        codes = [to_host(field[:kept]).reshape(-1) for field in fields]
        table = self._xp.asarray(self._pool.keep(np.concatenate([*codes, np.empty(0, np.int64)])))
        for field in fields:
            field[:kept] = table[field[:kept]]

    def _empty_tiles(self, group: Group, slots: int) -> Tiles:
        ids = self._xp.full((slots, group.ring), NO_TILE, np.int64)
        return Tiles(ids, tuple(stored.partial.identity(self._xp, slots, group.ring) for stored in group.stored))


def _heads(ordered: np.ndarray) -> np.ndarray:
    """`bool[n]`: where a value differs from the one before it; the first does."""
    return np.concatenate([np.ones(min(1, ordered.size), np.bool_), ordered[1:] != ordered[:-1]])


def _by_slot_and_time(slot: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The order of events by slot, then time. Tiles of any hop are then in order too."""
    if not slot.size:
        return np.empty(0, np.int64)
    start, end = int(time.min()), int(time.max())
    if (int(slot.max()) + 1) * (end - start + 1) >= 2**63:
        return np.lexsort((time, slot))
    # One key sorts several times faster than two.
    return np.argsort(slot * (end - start + 1) + (time - start))


def _running_maximum(slot: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The greatest time so far within each slot; `slot` is sorted."""
    ordered, rank = np.unique(time, return_inverse=True)
    base = np.cumsum(_heads(slot)) * (rank.size + 1)
    found: np.ndarray = ordered[np.maximum.accumulate(base + rank) - base]
    return found
