"""Merged states of n entities → feature values at n instants: the last step of every path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from featurestore.definitions.compiled import CompiledAggregate, CompiledDerived, CompiledView
from featurestore.definitions.expressions import names
from featurestore.engine.array import Array, every, some
from featurestore.engine.columns import NEVER, NUMPY_DTYPES, Column, FeatureColumn, StringPool
from featurestore.engine.evaluate import evaluate
from featurestore.engine.layout import Layout
from featurestore.engine.operations import OPERATIONS, Finalized
from featurestore.engine.reduce import State
from featurestore.types import STATUS_CODES, Dtype, Status

Texts = Callable[[np.ndarray], np.ndarray]
"""Codes of text values (int64) → object array of str."""

OK, DEFAULT = STATUS_CODES[Status.OK], STATUS_CODES[Status.DEFAULT]
NOT_FOUND, EXPIRED = STATUS_CODES[Status.NOT_FOUND], STATUS_CODES[Status.EXPIRED]


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """The tiles of one group for n entities, k places each; a place without a tile has id `NO_TILE`."""

    ids: Array
    """`int64[n, k]`"""
    states: tuple[State, ...]
    """One per stored partial; arrays `[n, k, …]`."""


NO_TILE = -(2**63)
_BY_FOUND = np.array([NOT_FOUND, OK], np.uint8)


@dataclass(frozen=True, eq=False)
class Instants:
    """For whom and when values are asked (host arrays of n)."""

    at: np.ndarray
    latest: np.ndarray
    """The entity's latest event time; `NEVER` where it was not found."""
    found: np.ndarray

    @cached_property
    def status(self) -> np.ndarray:
        """`uint8[n]`: what a value is worth that has neither a default nor a ttl."""
        return _BY_FOUND[self.found.view(np.uint8)]

    @cached_property
    def everyone(self) -> np.ndarray:
        return np.ones(self.at.shape, np.bool_)


Folded = dict[tuple[int, int, int | None], State]
"""The merged state of n entities for each (group, partial of the group, window)."""


def features(layout: Layout, folded: Folded, instants: Instants, texts: Texts) -> list[FeatureColumn]:
    """Values of every feature of the view, in its order."""
    columns: dict[int, FeatureColumn] = {}
    aggregates = layout.view.aggregates
    for alike in _alike(layout):
        states = [folded[(*layout.places[i], aggregates[i].window)] for i in alike]
        if len(states) > 1:
            together = tuple([np.array(fields) for fields in zip(*states, strict=True)])
        else:
            together = tuple([field[None] for field in states[0]])
        final = OPERATIONS[aggregates[alike[0]].op].finalize(np, aggregates[alike[0]], together)
        for row, i in enumerate(alike):
            columns[i] = finish(aggregates[i], layout.view.ttl, _row(final, row), instants, texts)
    return with_derived(layout.view, [columns[i] for i in range(len(aggregates))], instants)


@lru_cache(maxsize=4096)
def _alike(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """The view's aggregates, by their places, in groups that are finalized together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, (aggregate, (group, place)) in enumerate(zip(layout.view.aggregates, layout.places, strict=True)):
        narrow = all(field.width == 1 for field in layout.groups[group].stored[place].partial.fields)
        groups.setdefault((aggregate.op, aggregate.input_dtype, None if narrow else i), []).append(i)
    return tuple(map(tuple, groups.values()))


def _row(final: Finalized, row: int) -> Finalized:
    return Finalized(
        final.values[row],
        final.valid[row],
        None if final.as_of is None else final.as_of[row],
        None if final.empty is None else final.empty[row],
    )


def finish(a: CompiledAggregate, ttl: int | None, final: Finalized, instants: Instants, texts: Texts) -> FeatureColumn:
    """Applies `ttl` and `default`, resolves text, and states what each value is worth."""
    values, valid, as_of = final.values, final.valid, final.as_of
    if a.many:
        exists, newest = valid[:, 0], None if as_of is None else as_of[:, 0]
        shown, valid = _lists(a, values, valid, texts), instants.everyone
    else:
        exists, newest = valid, as_of
        shown = _scalars(a.dtype, values, valid, texts)
    status = instants.status
    stands_on = instants.latest if newest is None else np.where(exists & instants.found, newest, NEVER)
    if a.latest and ttl is not None:
        expired = exists & (instants.at - stands_on > ttl)
        valid, status = valid & ~expired, np.where(expired & instants.found, EXPIRED, status)
    if a.default is not None:
        empty = ~exists if final.empty is None else final.empty
        if some(empty):
            shown = np.where(empty, np.array(a.default, shown.dtype), shown)
            valid, status = valid | empty, np.where(empty & instants.found, DEFAULT, status)
    return FeatureColumn(a.name, a.dtype, a.many, shown, valid, status, stands_on)


def _scalars(dtype: Dtype, values: np.ndarray, valid: np.ndarray, texts: Texts) -> np.ndarray:
    if dtype is Dtype.STRING:
        if every(valid):
            return texts(values)
        shown = np.full(values.shape, None, object)
        shown[valid] = texts(values[valid])
        return shown
    return values.astype(NUMPY_DTYPES[dtype], copy=False)


def _lists(a: CompiledAggregate, values: np.ndarray, valid: np.ndarray, texts: Texts) -> np.ndarray:
    flat = _scalars(a.dtype, values[valid], np.ones(int(valid.sum()), np.bool_), texts).tolist()
    sizes = valid.sum(axis=1)
    ends = np.cumsum(sizes)
    shown = np.empty(valid.shape[0], object)
    shown[:] = [flat[start:end] for start, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True)]
    return shown


def with_derived(view: CompiledView, columns: list[FeatureColumn], instants: Instants) -> list[FeatureColumn]:
    """Adds the features computed from others; returns all in the view's order, as the view's `on_missing` has them."""
    known = {c.name: c for c in columns}
    pool = StringPool()
    used = {name for derived in view.derived for name in inputs_of(derived)}
    leaves = {("feature", c.name): as_leaf(c, pool) for c in columns if c.name in used}
    for derived in view.derived:
        values, valid = derive(derived, leaves, instants.at.size, pool)
        known[derived.name] = FeatureColumn(
            derived.name,
            derived.dtype,
            False,
            values,
            valid,
            _worst([known[name].status for name in inputs_of(derived)], instants),
            instants.latest,
        )
    if view.on_missing == "null":
        return [replace(known[name], valid=known[name].valid & instants.found) for name in view.order]
    return [known[name] for name in view.order]


@lru_cache(maxsize=4096)
def inputs_of(derived: CompiledDerived) -> tuple[str, ...]:
    return names(derived.expr, "feature")


def _worst(statuses: list[np.ndarray], instants: Instants) -> np.ndarray:
    """`not_found`, else `expired` where any input is, else `default` where any input is."""
    result = instants.status
    telling = [status for status in statuses if status is not instants.status]
    for code in (DEFAULT, EXPIRED):
        for status in telling:
            result = np.where(status == code, code, result)
    return result


def derive(
    derived: CompiledDerived, leaves: dict[tuple[str, str], Column], rows: int, pool: StringPool
) -> tuple[np.ndarray, np.ndarray]:
    """Values, as a `FeatureColumn` has them, and which are not null. The feature is a leaf from then on."""
    column = evaluate(np, derived.expr, leaves, rows, pool)
    leaves["feature", derived.name] = Column(column.values, column.valid, derived.dtype)
    values = column.values.astype(NUMPY_DTYPES[derived.dtype])
    return _scalars(derived.dtype, values, column.valid, pool.texts), column.valid


def as_leaf(feature: FeatureColumn, pool: StringPool) -> Column:
    """The feature as expressions take it."""
    if feature.dtype is not Dtype.STRING:
        return Column(feature.values, feature.valid, feature.dtype)
    codes = np.full(feature.values.shape, -1, np.int64)
    texts = feature.values[feature.valid].tolist()
    codes[feature.valid] = np.fromiter(map(pool.code, texts), np.int64, len(texts))
    return Column(codes, feature.valid, feature.dtype)
