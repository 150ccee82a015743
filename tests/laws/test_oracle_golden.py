"""The oracle agrees with every worked case, to the bit."""

import pytest

from tests.oracle.compare import is_identical
from tests.oracle.golden import GoldenCase, golden_cases
from tests.oracle.meaning import evaluate, status_of

CASES = golden_cases()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_oracle_answers_the_worked_case(case: GoldenCase) -> None:
    assert case.lookups, "a case without lookups proves nothing"
    for lookup in case.lookups:
        got = evaluate(case.features, case.events, lookup.at)
        assert set(lookup.values) == set(got)
        for name, expected in lookup.values.items():
            assert is_identical(expected, got[name]), f"{name} at {lookup.at}: expected {expected!r}, got {got[name]!r}"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_order_of_arrival_changes_no_worked_case(case: GoldenCase) -> None:
    for lookup in case.lookups:
        assert evaluate(case.features, case.events, lookup.at) == evaluate(case.features, case.events[::-1], lookup.at)


def test_the_file_holds_the_cases_that_the_rule_needs() -> None:
    needed = {"head is exact", "tail moves in hops", "before 1970", "ties", "nulls", "variance", "time to live"}
    assert needed <= {case.name for case in CASES}


def test_the_case_of_the_time_to_live_is_expired_a_microsecond_later() -> None:
    (case,) = [case for case in CASES if case.name == "time to live"]
    (feature,) = case.features
    assert [status_of(feature, case.events, lookup.at) for lookup in case.lookups] == ["ok", "expired"]
