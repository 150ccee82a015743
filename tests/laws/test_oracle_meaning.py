"""The oracle itself, on what the worked cases leave out; expected values are worked out by hand."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracle.compare import assert_same
from tests.oracle.meaning import (
    DAY,
    HOUR,
    INT64_MAX,
    MINUTE,
    OracleEvent,
    OracleFeature,
    divide,
    evaluate,
    magnitude,
    nearest_square_root,
    status_of,
    value_of,
)


def events_with(*values: object) -> list[OracleEvent]:
    """One event a minute, from 1970 on."""
    return [{"event_time": i * MINUTE, "partition": 0, "offset": i, "x": value} for i, value in enumerate(values)]


def value(op: str, *values: object, **more: object) -> object:
    return value_of(OracleFeature("f", op, "x", **more), events_with(*values), HOUR)  # type: ignore[arg-type]


def test_float_sums_do_not_cancel() -> None:
    assert value("sum", 1e10, 1e-3, -1e10) == 1e-3
    assert value("mean", 1e16, 1.0, -1e16, 1.0) == 0.5


def test_integer_sums_stay_integers_and_are_null_where_no_int64_holds_them() -> None:
    assert value("sum", INT64_MAX, 1) is None
    assert value("sum", INT64_MAX, 1, -2) == INT64_MAX - 1
    assert value("sum", 2.0, 3) == 5.0
    assert value("sum", True, True, False) == 2


def test_a_float_sum_that_no_double_holds_is_null() -> None:
    assert value("sum", 1.7e308, 1.7e308) is None
    assert value("mean", 1.7e308, 1.7e308) == 1.7e308
    assert value("var", 1e200, -1e200) is None
    assert value("std", 1e200, -1e200) == math.sqrt(2) * 1e200


def test_one_value_has_no_variance_and_the_default_does_not_stand_in() -> None:
    assert value("var", 3.0, default=0.0) is None
    assert value("var", None, default=0.0) == 0.0
    assert value("std", 3.0, 3.0) == 0.0


def test_the_latest_is_the_latest_that_is_not_null() -> None:
    assert value("last", "a", "b", None) == "b"
    assert value("first", None, "a", "b") == "a"
    assert value("last_n", 1, None, 3, 4, n=2) == [4, 3]


def test_negative_zero_is_below_zero() -> None:
    assert_same(-0.0, value("min", 0.0, -0.0), "min")
    assert_same(0.0, value("max", 0.0, -0.0), "max")


def test_distinct_values_are_counted_once() -> None:
    assert value("approx_distinct", "é", "e\u0301", "é", None) == 2


def test_an_expression_with_null_is_skipped() -> None:
    doubled = OracleFeature("f", "sum", expression=lambda event: None if event["x"] is None else event["x"] * 2)
    assert value_of(doubled, events_with(1, None, 3), HOUR) == 8


def test_a_condition_that_is_null_is_false() -> None:
    chosen = OracleFeature("f", "count", where=lambda event: event["x"])
    assert value_of(chosen, events_with(True, None, False), HOUR) == 1


def test_the_oracle_refuses_an_event_given_twice() -> None:
    twice = events_with(1.0) * 2
    with pytest.raises(ValueError, match="twice"):
        evaluate([OracleFeature("f", "count")], twice, HOUR)


def test_each_status_has_its_case() -> None:
    last = OracleFeature("last", "last", "x", ttl=HOUR, default="none")
    mean = OracleFeature("mean", "mean", "x", window=HOUR, default=0.0)
    count = OracleFeature("count", "count", window=HOUR, default=7)
    events = events_with(1.0)
    assert [status_of(f, events, -1) for f in (last, mean, count)] == ["not_found"] * 3
    assert [status_of(f, events, HOUR) for f in (last, mean, count)] == ["ok"] * 3
    assert [status_of(f, events, DAY) for f in (last, mean, count)] == ["expired", "default", "ok"]
    assert evaluate([last, mean, count], events, DAY) == {"last": None, "mean": 0.0, "count": 0}
    assert evaluate([last, mean, count], [], DAY) == {"last": "none", "mean": 0.0, "count": 0}


def test_the_time_to_live_of_a_list_is_that_of_its_newest_value() -> None:
    newest = OracleFeature("f", "last_n", "x", n=2, ttl=HOUR)
    assert value_of(newest, events_with("a", "b"), HOUR + MINUTE) == ["b", "a"]
    assert value_of(newest, events_with("a", "b"), HOUR + MINUTE + 1) is None
    assert status_of(newest, events_with("a", "b"), HOUR + MINUTE + 1) == "expired"


def test_division_by_nothing_is_null() -> None:
    assert divide(1, 4) == 0.25
    assert [divide(None, 1), divide(1, None), divide(1, 0), divide(0.0, 0.0), divide(1e308, 1e-308)] == [None] * 5


def test_the_magnitude_is_in_the_unit_of_the_result() -> None:
    sizes = {
        op: magnitude(OracleFeature("f", op, "x"), events_with(3.0, -4.0, None), HOUR) for op in ("sum", "var", "std")
    }
    assert sizes == {"sum": 7.0, "var": 25.0, "std": 5.0}


@given(st.fractions(min_value=0), st.integers(-300, 300))
def test_the_square_root_is_the_nearest_double(base: Fraction, exponent: int) -> None:
    exact = base * Fraction(2) ** exponent
    with localcontext() as context:
        context.prec = 400
        root = (Decimal(exact.numerator) / Decimal(exact.denominator)).sqrt()
    assert nearest_square_root(exact) == float(root)
