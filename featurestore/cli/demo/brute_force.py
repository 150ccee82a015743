"""What every feature of the demo should be, worked out by anyone who knows pandas: boolean masks over a data frame.

Nothing here knows of tiles, streams, sketches or the package's definitions. It is slow, and easy to check by eye.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

TIME = "departed_at"
ORDER = (TIME, "_partition", "_offset")
"""Of two flights at one instant the later one is the one that the topic has later."""

# A window's start moves in steps: the largest of these that is at most a twelfth of the window.
_STEPS = tuple(pd.Timedelta(step) for step in ("1s", "5s", "15s", "1min", "5min", "15min", "1h", "6h", "1D"))
_EPOCH = pd.Timestamp(0, tz="UTC")

_Mask = Callable[[Any], Any]


@dataclass(frozen=True)
class Rule:
    """How one feature is computed from the rows of an entity. `window` None means all of its history."""

    op: str
    column: str = ""
    window: str | None = None
    where: _Mask | None = None
    default: Any = None
    n: int = 0


@dataclass(frozen=True)
class Derived:
    """A feature computed from others of the same view; null where `needs` has a null."""

    needs: tuple[str, ...]
    compute: Callable[..., Any]


def _late(flights: Any) -> Any:
    return flights["dep_delay"] > 15


def _cancelled(flights: Any) -> Any:
    return flights["cancelled"]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


RULES: Mapping[str, tuple[tuple[str, ...], Mapping[str, Rule | Derived]]] = {
    "airport_delay": (
        ("origin",),
        {
            "departures_1h": Rule("rows", window="1h"),
            "departures_24h": Rule("rows", window="24h"),
            "delay_mean_1h": Rule("mean", "dep_delay", "1h", default=0.0),
            "delay_max_24h": Rule("max", "dep_delay", "24h"),
            "delay_std_24h": Rule("std", "dep_delay", "24h"),
            "late_1h": Rule("rows", window="1h", where=_late),
            "late_share_1h": Derived(("late_1h", "departures_1h"), _share),
            "destinations_24h": Rule("distinct", "dest", "24h"),
            "last_carrier": Rule("last", "carrier"),
        },
    ),
    "carrier_punctuality": (
        ("carrier",),
        {
            "flights_24h": Rule("rows", window="24h"),
            "cancelled_24h": Rule("rows", window="24h", where=_cancelled),
            "cancelled_share_24h": Derived(("cancelled_24h", "flights_24h"), _share),
            "delay_mean_1h": Rule("mean", "dep_delay", "1h"),
            "delay_mean_7d": Rule("mean", "dep_delay", "7D"),
            "delay_std_7d": Rule("std", "dep_delay", "7D"),
            "running_late": Derived(("delay_mean_1h", "delay_mean_7d"), lambda hour, week: hour > week),
            "last_delays": Rule("last_n", "dep_delay", n=5),
        },
    ),
    "tail_activity": (
        ("tailnum",),
        {
            "flights_24h": Rule("rows", window="24h"),
            "flights_7d": Rule("rows", window="7D"),
            "miles_7d": Rule("sum", "distance", "7D"),
            "delay_max_24h": Rule("max", "dep_delay", "24h"),
            "last_delay": Rule("last", "dep_delay"),
            "last_dests": Rule("last_n", "dest", n=3),
            "first_carrier": Rule("first", "carrier"),
        },
    ),
    "route_traffic": (
        ("origin", "dest"),
        {
            "departures_24h": Rule("rows", window="24h"),
            "departures_7d": Rule("rows", window="7D"),
            "cancelled_7d": Rule("rows", window="7D", where=_cancelled),
            "delay_min_7d": Rule("min", "dep_delay", "7D"),
            "delay_max_7d": Rule("max", "dep_delay", "7D"),
            "carriers_7d": Rule("distinct", "carrier", "7D"),
            "last_flight": Rule("last", "flight"),
        },
    ),
}
"""View → its entity's key columns, and feature → how to compute it."""

APPROXIMATE = frozenset({"airport_delay.destinations_24h", "route_traffic.carriers_7d"})
"""Estimates: the count here is the true one."""


def _only(value: Any) -> Any:
    """A plain Python value; pandas has NaN where there is none."""
    return None if pd.isna(value) else getattr(value, "item", lambda: value)()


_OPERATIONS: Mapping[str, Callable[[Any, int], Any]] = {
    "sum": lambda values, _: _only(values.sum()),
    "mean": lambda values, _: _only(values.mean()),
    "std": lambda values, _: _only(values.std()),
    "min": lambda values, _: _only(values.min()),
    "max": lambda values, _: _only(values.max()),
    "first": lambda values, _: _only(values.iloc[0]),
    "last": lambda values, _: _only(values.iloc[-1]),
    "last_n": lambda values, n: values.iloc[-n:].iloc[::-1].tolist(),
    "distinct": lambda values, _: int(values.nunique()),
}
_EMPTY: Mapping[str, Callable[[], Any]] = {"last_n": list, "distinct": int}


class BruteForce:
    """Values over a data frame of flights that has the columns of `ORDER` beside those of the events."""

    def __init__(self, flights: Any) -> None:
        self._flights = flights.sort_values(list(ORDER), ignore_index=True)
        self._rows = {
            view: self._flights.groupby(list(keys) if len(keys) > 1 else keys[0]).indices
            for view, (keys, _) in RULES.items()
        }
        self._of = lru_cache(maxsize=512)(self._look_up)

    def value(self, feature: str, entity: Mapping[str, str | None], at: Any) -> Any:
        """`feature` is `<view>.<feature>`; `entity` has all key columns of its view; `at` is a Timestamp, UTC."""
        view, _, name = feature.partition(".")
        keys, rules = RULES[view]
        rule = rules[name]
        if isinstance(rule, Derived):
            needed = [self.value(f"{view}.{need}", entity, at) for need in rule.needs]
            return None if None in needed else rule.compute(*needed)
        return _value(self._of(view, tuple(entity[key] for key in keys)), rule, at)

    def _look_up(self, view: str, key: Sequence[str | None]) -> Any:
        rows = self._rows[view].get(key if len(key) > 1 else key[0])
        return self._flights.iloc[[] if rows is None else rows]


def _value(flights: Any, rule: Rule, at: Any) -> Any:
    inside = flights[TIME] <= at
    if rule.window is not None:
        inside &= flights[TIME] >= window_start(at, pd.Timedelta(rule.window))
    if rule.where is not None:
        inside &= rule.where(flights)
    if rule.op == "rows":
        return int(inside.sum())
    values = flights.loc[inside, rule.column].dropna()
    if values.empty:
        return _EMPTY.get(rule.op, lambda: rule.default)()
    return _OPERATIONS[rule.op](values, rule.n)


def window_start(at: Any, window: Any) -> Any:
    """The window's length back from `at`, then down to a whole number of steps since 1970."""
    step = max((s for s in _STEPS if s * 12 <= window), default=_STEPS[0])
    return _EPOCH + (at - window - _EPOCH) // step * step
