"""The comparison must fail where a value is wrong: a law is worth what its comparison refuses."""

import math
from typing import Any

import numpy as np
import pytest

from tests.oracle.compare import assert_same, assert_values
from tests.oracle.meaning import OracleFeature

SAME: list[tuple[str, Any, Any, float]] = [
    ("count", 3, np.int64(3), 0.0),
    ("sum", 1.0, 1.0 + 9e-10, 0.0),
    ("sum", 1e-20, 1e-20 * (1 + 9e-10), 1e9),
    ("sum", 0.0, 9e-10, 1.0),
    ("sum", 0.0, -0.0, 0.0),
    ("mean", None, None, 0.0),
    ("last_n", ["a", 1.5, None], ("a", 1.5, None), 0.0),
    ("last_n", [1, 2], np.array([1, 2]), 0.0),
    ("derived", 0.5, 0.5, 0.0),
]

DIFFERENT: list[tuple[str, Any, Any, float]] = [
    ("count", 3, 3.0, 0.0),
    ("count", 1, True, 0.0),
    ("sum", 2**53, 2**53 + 1, 0.0),
    ("sum", 2, 2.0, 0.0),
    ("sum", 1.0, 1.0 + 2e-9, 0.0),
    ("sum", 1e-20, 0.0, 1e9),
    ("sum", 0.0, 2e-9, 1.0),
    ("sum", 0.0, 1e-300, 0.0),
    ("mean", None, 0.0, 0.0),
    ("mean", 1.0, None, 0.0),
    ("std", 1.0, math.nan, 0.0),
    ("var", 0.0, math.nan, 1.0),
    ("max", 0.0, -0.0, 0.0),
    ("min", 1.0, math.nextafter(1.0, 2.0), 0.0),
    ("last", "é", "e\u0301", 0.0),
    ("last_n", [1, 2], [2, 1], 0.0),
    ("last_n", [1], [1, 1], 0.0),
    ("last_n", [], None, 0.0),
    ("approx_distinct", 100, 101, 0.0),
]


@pytest.mark.parametrize(("op", "expected", "got", "magnitude"), SAME)
def test_these_are_the_same(op: str, expected: Any, got: Any, magnitude: float) -> None:
    assert_same(expected, got, op, magnitude=magnitude)


@pytest.mark.parametrize(("op", "expected", "got", "magnitude"), DIFFERENT)
def test_these_are_not(op: str, expected: Any, got: Any, magnitude: float) -> None:
    with pytest.raises(AssertionError, match="expected"):
        assert_same(expected, got, op, magnitude=magnitude)


def test_the_caller_says_what_an_estimate_may_miss() -> None:
    assert_same(100, 103, "approx_distinct", relative=0.03)
    with pytest.raises(AssertionError):
        assert_same(100, 104, "approx_distinct", relative=0.03)


def test_a_missing_or_an_extra_feature_is_a_difference() -> None:
    features = [OracleFeature("a", "count")]
    assert_values(features, {"a": 1}, {"a": 1})
    with pytest.raises(AssertionError):
        assert_values(features, {"a": 1}, {})
    with pytest.raises(AssertionError):
        assert_values(features, {"a": 1}, {"a": 1, "b": 2})
