"""Values over a table of flights by boolean masks alone: a check that anyone who knows pandas can read.

Nothing here knows of tiles, streams or the package under test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

_LADDER = [pd.Timedelta(step) for step in ("1s", "5s", "15s", "1min", "5min", "15min", "1h", "6h", "1D")]
_MICROSECOND = pd.Timedelta(1, unit="us")
_EPOCH = pd.Timestamp(0, tz="UTC")


@dataclass(frozen=True)
class FlightFeature:
    """One aggregate; `window` and `hop` as pandas writes durations (`"1h"`), `where` as a mask over the table."""

    op: str
    column: str | None = None
    window: str | None = None
    hop: str | None = None
    where: Callable[[pd.DataFrame], Any] | None = None
    default: float | str | None = None


def flight_value(
    df: pd.DataFrame,
    feature: FlightFeature,
    entity: Mapping[str, Any],
    at: pd.Timestamp,
    *,
    time: str = "departed_at",
    order: tuple[str, ...] = ("_partition", "_offset"),
) -> Any:
    """The value of `feature` for the rows where every column of `entity` has the value given, at the instant `at`.

    `df[time]` and `at` carry a zone. `order` breaks ties of `last` between rows of one instant; with `()` the later row
    of the table is the later flight. Returns int, float, str or None.
    """
    mask = df[time] <= at
    if feature.window is not None:
        mask &= df[time] >= window_start(at, pd.Timedelta(feature.window), feature.hop)
    for column, value in entity.items():
        mask &= df[column] == value
    rows = df[mask]
    if feature.where is not None:
        rows = rows[feature.where(rows)]
    if feature.op == "count":
        return len(rows) if feature.column is None else int(rows[feature.column].count())
    present = rows.dropna(subset=[feature.column]).sort_values([time, *order], kind="stable")
    values = present[feature.column]
    if values.empty:
        return feature.default
    answer = values.iloc[-1] if feature.op == "last" else getattr(values, feature.op)()
    return None if pd.isna(answer) else getattr(answer, "item", lambda: answer)()


def window_start(at: pd.Timestamp, window: pd.Timedelta, hop: str | None = None) -> pd.Timestamp:
    """The first instant inside: the window's length back from `at`, then down to a multiple of the hop since 1970."""
    step = max([s for s in _LADDER if s * 12 <= window], default=_LADDER[0]) if hop is None else pd.Timedelta(hop)
    micros = (at - window - _EPOCH) // _MICROSECOND
    width = step // _MICROSECOND
    return _EPOCH + micros // width * width * _MICROSECOND
