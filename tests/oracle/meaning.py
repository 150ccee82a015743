"""What a feature's value is, by direct reading of the rule: no tiles, no state, no rounding before the end.

Events are dicts with `event_time` (int, µs since 1970 UTC), `partition` and `offset` (of the source), and the columns.
`evaluate` is given the events of one entity, each once; order does not matter. Duplicated delivery is not modelled
here: the value is a function of which events there are.

Where the rule leaves a choice, the oracle takes these readings:

- The default stands in only where no value was aggregated. One value has no variance: null, not the default.
- `ttl` concerns `last`, `first` and `last_n` without a window. The age is that of the value's own event (of the newest
  one for `last_n`); an expired value is null, whatever the default.
- A sum, variance or deviation that fits no finite double, or an integer sum that fits no int64, is null. Only the exact
  total counts: a total that fits is right even where a partial sum would not fit.
- A boolean is summed as 0 or 1, and its sum is an integer.
- Negative zero is below positive zero for `min` and `max`. Strings compare by code point.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

Value: TypeAlias = bool | int | float | str | list[Any] | None
OracleEvent = dict[str, Any]

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class OracleFeature:
    """One aggregate. Durations are microseconds; no `window` means the whole history.

    The input is `expression(event)` where given, else `column`, else nothing (for a plain count).
    """

    name: str
    op: str
    column: str | None = None
    window: int | None = None
    hop: int | None = None
    where: Callable[[OracleEvent], bool | None] | None = None
    default: Value = None
    ttl: int | None = None
    n: int | None = None
    expression: Callable[[OracleEvent], Value] | None = None


def evaluate(features: Iterable[OracleFeature], events: Sequence[OracleEvent], at: int) -> dict[str, Value]:
    """The value of each feature at the instant `at`, by name. ValueError when an event is given twice."""
    positions = [(event["partition"], event["offset"]) for event in events]
    if len(set(positions)) != len(positions):
        raise ValueError("an event is given twice; the oracle takes each (partition, offset) once")
    return {feature.name: value_of(feature, events, at) for feature in features}


def value_of(feature: OracleFeature, events: Iterable[OracleEvent], at: int) -> Value:
    """One feature's value at `at`."""
    chosen = inputs(feature, events, at)
    if is_expired(feature, chosen, at):
        return None
    values = [value for _, value in chosen]
    if not values and feature.op not in EMPTY:
        return feature.default
    if not values:
        return EMPTY[feature.op]()
    if feature.op == "last_n":
        assert feature.n is not None, "last_n needs n"
        return values[::-1][: feature.n]
    return AGGREGATES[feature.op](values)


def status_of(feature: OracleFeature, events: Iterable[OracleEvent], at: int) -> str:
    """`not_found`, `expired`, `default` or `ok`: what a healthy store says of the value at `at`.

    `not_found` is about the entity: none of its events is at or before `at`. A null for any other reason is `ok`.
    """
    happened = [event for event in events if event["event_time"] <= at]
    if not happened:
        return "not_found"
    chosen = inputs(feature, happened, at)
    if is_expired(feature, chosen, at):
        return "expired"
    if not chosen and feature.op not in EMPTY and feature.default is not None:
        return "default"
    return "ok"


def inputs(feature: OracleFeature, events: Iterable[OracleEvent], at: int) -> list[tuple[OracleEvent, Any]]:
    """The events that take part and what each contributes, oldest first; nulls are already left out."""
    chosen = [
        (event, input_of(feature, event))
        for event in sorted(events, key=order_of)
        if in_window(event["event_time"], at, feature.window, feature.hop)
        and (feature.where is None or feature.where(event) is True)
    ]
    return [(event, value) for event, value in chosen if value is not None]


def input_of(feature: OracleFeature, event: OracleEvent) -> Any:
    if feature.expression is not None:
        return feature.expression(event)
    if feature.column is not None:
        return event[feature.column]
    assert feature.op == "count", f"{feature.op} needs a column"
    return True


def order_of(event: OracleEvent) -> tuple[int, int, int]:
    """Equal event times are ordered by source partition, then by offset."""
    return event["event_time"], event["partition"], event["offset"]


def in_window(event_time: int, at: int, window: int | None, hop: int | None = None) -> bool:
    """Exact at the head; at the tail the window begins on a multiple of the hop, counted from 1970 downwards too."""
    if window is None:
        return event_time <= at
    return window_start(at, window, hop) <= event_time <= at


def window_start(at: int, window: int, hop: int | None = None) -> int:
    hop = default_hop(window) if hop is None else hop
    return (at - window) // hop * hop


def default_hop(window: int) -> int:
    """The largest round step that fits twelve times into the window; one second where none does."""
    steps = [SECOND, 5 * SECOND, 15 * SECOND, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY]
    return max((step for step in steps if 12 * step <= window), default=SECOND)


def is_expired(feature: OracleFeature, chosen: Sequence[tuple[OracleEvent, Any]], at: int) -> bool:
    """Whether the value is older than the `ttl`; exactly as old is still alive."""
    if feature.ttl is None or feature.window is not None or not chosen:
        return False
    if feature.op not in ("last", "first", "last_n"):
        return False
    source, _ = chosen[0] if feature.op == "first" else chosen[-1]
    return bool(at - source["event_time"] > feature.ttl)


def exact_sum(values: Sequence[float]) -> int | float | None:
    if all(isinstance(value, int) for value in values):
        total = sum(int(value) for value in values)
        return total if INT64_MIN <= total <= INT64_MAX else None
    return nearest_double(sum(map(Fraction, values), Fraction(0)))


def exact_mean(values: Sequence[float]) -> float | None:
    return nearest_double(mean_fraction(values))


def exact_variance(values: Sequence[float]) -> float | None:
    variance = variance_fraction(values)
    return None if variance is None else nearest_double(variance)


def exact_deviation(values: Sequence[float]) -> float | None:
    variance = variance_fraction(values)
    return None if variance is None else nearest_square_root(variance)


def mean_fraction(values: Sequence[float]) -> Fraction:
    return sum(map(Fraction, values), Fraction(0)) / len(values)


def variance_fraction(values: Sequence[float]) -> Fraction | None:
    if len(values) < 2:
        return None
    mean = mean_fraction(values)
    return sum(((Fraction(value) - mean) ** 2 for value in values), Fraction(0)) / (len(values) - 1)


def nearest_double(exact: Fraction) -> float | None:
    try:
        return float(exact)
    except OverflowError:
        return None


def nearest_square_root(exact: Fraction) -> float | None:
    """The double nearest to the root: 128 bits of it, and one more that says whether anything was cut off."""
    if exact == 0:
        return 0.0
    shift = max(0, 128 - exact.numerator.bit_length() + exact.denominator.bit_length())
    scaled = exact * 4**shift
    root = math.isqrt(math.floor(scaled))
    sticky = 0 if root * root == scaled else 1
    return nearest_double(Fraction(2 * root + sticky, 2 ** (shift + 1)))


def rank(value: Any) -> tuple[Any, float]:
    """A total order for `min` and `max`, in which the two zeros differ."""
    return value, math.copysign(1.0, value) if isinstance(value, float) else 0.0


AGGREGATES: Mapping[str, Callable[[list[Any]], Value]] = {
    "count": len,
    "sum": exact_sum,
    "mean": exact_mean,
    "var": exact_variance,
    "std": exact_deviation,
    "min": lambda values: min(values, key=rank),
    "max": lambda values: max(values, key=rank),
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "approx_distinct": lambda values: len(set(values)),
}

EMPTY: Mapping[str, Callable[[], Value]] = {"count": int, "approx_distinct": int, "last_n": list}


def divide(a: float | None, b: float | None) -> float | None:
    """Division of derived features: null where either side is null, where `b` is zero, and where no double holds it."""
    if a is None or b is None or b == 0:
        return None
    return nearest_double(Fraction(a) / Fraction(b))


def magnitude(feature: OracleFeature, events: Iterable[OracleEvent], at: int) -> float:
    """How large the inputs are, in the unit of the result: what `compare.assert_same` scales its floor by.

    Σ|x| for `sum` and `mean`, Σx² for `var`, √Σx² for `std`.
    """
    values = [Fraction(value) for _, value in inputs(feature, events, at)]
    squares = sum((value * value for value in values), Fraction(0))
    measures: Mapping[str, Callable[[], float | None]] = {
        "sum": lambda: nearest_double(sum(map(abs, values), Fraction(0))),
        "mean": lambda: nearest_double(sum(map(abs, values), Fraction(0))),
        "var": lambda: nearest_double(squares),
        "std": lambda: nearest_square_root(squares),
    }
    size = measures[feature.op]()
    return math.inf if size is None else size


def events_of(events: Iterable[OracleEvent], key: Mapping[str, Any]) -> list[OracleEvent]:
    """The events of one entity. An event with a null in a key column belongs to no entity."""
    assert None not in key.values(), "no entity has a null in its key"
    return [event for event in events if all(event[column] == part for column, part in key.items())]


def latest_time(events: Iterable[OracleEvent]) -> int | None:
    """The greatest event time; from there on every order of arrival gives the same online values."""
    return max((event["event_time"] for event in events), default=None)
