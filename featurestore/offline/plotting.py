"""A feature over time, drawn with matplotlib (`pip install 'featurestore[plot]'`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from featurestore.clock import Instant, to_instant
from featurestore.config import load_settings
from featurestore.definitions.model import FeatureView
from featurestore.engine.columns import FeatureColumn
from featurestore.errors import InvalidRequest, UsageError
from featurestore.offline.frame import imported
from featurestore.offline.series import Histories, LakeHistories
from featurestore.types import STATUS_CODES, Dtype, Status, parse_duration

MAX_POINTS = 100_000
MAX_TEXTS = 30
"""Distinct texts that an axis has room for."""

_INSTALL = "pip install 'featurestore[plot]'"


def plot(  # noqa: PLR0913 - the words of `FeatureView.plot`
    view: FeatureView,
    feature: str,
    entity: Mapping[str, Any],
    *,
    start: Instant | None = None,
    end: Instant | None = None,
    points: int = 500,
    every: str | None = None,
    ax: Any = None,
    store: Histories | None = None,
    lake: str = "",
) -> Any:
    """As `FeatureView.plot` says."""
    pyplot = None if ax is not None else imported("matplotlib.pyplot", _INSTALL)
    first, last = _instant(start, "start"), _instant(end, "end")
    series = (store or LakeHistories(lake or load_settings().lake)).series(view, feature, entity, last)
    label = ", ".join(f"{name}={value!r}" for name, value in entity.items())
    times = series.times()
    if not times.size:
        raise UsageError(f"there are no events of {label}" + (" until `end`" if last is not None else ""),
                         hint="is the key written as the events have it?", field=next(iter(entity), ""))  # fmt: skip
    first, last = int(times[0]) if first is None else first, int(times[-1]) if last is None else last
    at = _instants(first, last, points, every)
    column = series.at(at)
    axes = ax if pyplot is None else pyplot.gca()
    _draw(axes, at, column, label)
    axes.set_title(f"{view.id}: {feature}")
    axes.set_xlabel("UTC")
    axes.legend()
    return axes


def _instant(given: Instant | None, field: str) -> int | None:
    try:
        return None if given is None else to_instant(given)
    except ValueError as problem:
        raise InvalidRequest(f"{field}: {problem}", field=field) from problem


def _instants(first: int, last: int, points: int, every: str | None) -> np.ndarray:
    """Where values are asked: `points` from end to end, or all steps of `every` between them."""
    if last < first:
        raise InvalidRequest("`end` is before `start`", field="end")
    if every is None:
        if not 2 <= points <= MAX_POINTS:
            raise InvalidRequest(f"points is {points}, expected 2 to {MAX_POINTS:,}", field="points")
        return first + np.unique(np.linspace(0, last - first, points).astype(np.int64))
    try:
        step = parse_duration(every)
    except ValueError as problem:
        raise InvalidRequest(f"every: {problem}", field="every") from None
    if not step or (last - first) // step >= MAX_POINTS:
        raise InvalidRequest(f"every is {every}, and from start to end that is more than {MAX_POINTS:,} points",
                             hint="take a longer step, or a shorter time", field="every")  # fmt: skip
    return np.arange(first, last + 1, step)


def _draw(axes: Any, at: np.ndarray, column: FeatureColumn, label: str) -> None:
    """Each value until the next instant that was asked; a gap where it is null, or its entity not seen yet."""
    shown = None if column.many else _SHOWN.get(column.dtype)
    if shown is None:
        raise UsageError(f"{column.name} is a list, which has no place on an axis", hint="draw a feature of one value",
                         field=column.name)  # fmt: skip
    gap = ~column.valid | (column.status == STATUS_CODES[Status.NOT_FOUND])
    axes.plot(at.astype("datetime64[us]"), shown(axes, column, gap), drawstyle="steps-post", label=label)


def _numbers(axes: Any, column: FeatureColumn, gap: np.ndarray) -> np.ndarray:
    return np.where(gap, np.nan, column.values.astype(np.float64))


def _instants_shown(axes: Any, column: FeatureColumn, gap: np.ndarray) -> np.ndarray:
    return np.where(gap, np.datetime64("NaT"), column.values.astype("datetime64[us]"))


def _texts(axes: Any, column: FeatureColumn, gap: np.ndarray) -> np.ndarray:
    """The texts' places on the axis, which matplotlib gives them."""
    texts = column.values[~gap].tolist()
    if len(set(texts)) > MAX_TEXTS:
        raise UsageError(f"{column.name} has {len(set(texts))} texts from start to end, and an axis has room for "
                         f"{MAX_TEXTS}", hint="draw a shorter time", field=column.name)  # fmt: skip
    places = np.full(gap.size, np.nan)
    if texts:
        axes.yaxis.update_units(texts)
        places[~gap] = axes.yaxis.convert_units(texts)
    return places


_SHOWN: dict[Dtype, Callable[[Any, FeatureColumn, np.ndarray], np.ndarray]] = {
    Dtype.BOOL: _numbers,
    Dtype.INT: _numbers,
    Dtype.FLOAT: _numbers,
    Dtype.TIMESTAMP: _instants_shown,
    Dtype.STRING: _texts,
}
