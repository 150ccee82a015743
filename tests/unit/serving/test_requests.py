"""Bodies of lookups: what is read, and how everything else is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.serving.problems import Problem, Refused
from featurestore.serving.requests import MAX_BODY, MAX_ROWS, EntityColumns, RequestFields, parse_lookup
from featurestore.types import Dtype

COLUMNS = EntityColumns({"origin": Dtype.STRING, "flight": Dtype.INT, "late": Dtype.BOOL})
SOUND: dict[str, Any] = {
    "service": "flight_delay",
    "entities": {"origin": ["JFK", None], "flight": [1, 2], "late": [True, None]},
}


def read(body: bytes) -> list[list[Any]]:
    request = parse_lookup(body)
    columns = list(COLUMNS.read(request.entities))
    RequestFields(()).read(request.fields, len(columns[0]))
    return columns


def refusal(body: bytes | dict[str, Any]) -> Problem:
    with pytest.raises(Refused) as caught:
        read(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value.problem


def with_entities(**changed: Any) -> dict[str, Any]:
    return SOUND | {"entities": SOUND["entities"] | changed}


def test_a_sound_body_gives_columns_in_the_order_of_the_plan() -> None:
    assert read(json.dumps(SOUND).encode()) == [["JFK", None], [1, 2], [True, None]]


def test_optional_fields_are_read() -> None:
    request = parse_lookup(json.dumps(SOUND | {"at": "2026-03-01T12:00:00Z", "budget_ms": 20, "request": {}}).encode())

    assert (request.at, request.budget_ms) == (1_772_366_400_000_000, 20.0)


@pytest.mark.parametrize("at", ["yesterday", "2026-03-01", "2026-03-01T12:00:00", "", "2026-02-30T00:00:00Z"])
def test_an_at_that_is_no_instant_with_a_zone_is_refused(at: str) -> None:
    problem = refusal(SOUND | {"at": at})

    assert (problem.status, problem.field) == (422, "at")
    assert "RFC 3339" in problem.detail


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (SOUND | {"at": 1772366400}, "at"),
        (SOUND | {"at": True}, "at"),
        (SOUND | {"service": 1}, "service"),
        (SOUND | {"budget_ms": 0}, "budget_ms"),
        (SOUND | {"budget_ms": -1.5}, "budget_ms"),
        (SOUND | {"budget_ms": "20"}, "budget_ms"),
        (SOUND | {"request": {"amount": 3}}, "request"),
        (SOUND | {"entities": []}, "entities"),
        (SOUND | {"servce": "x"}, "servce"),
        ({"service": "flight_delay"}, "entities"),
        ({"entities": {}}, "service"),
        (with_entities(origin="JFK"), "entities.origin"),
        (with_entities(origin=["JFK", 3]), "entities.origin[1]"),
        (with_entities(flight=["1", 2]), "entities.flight[0]"),
        (with_entities(flight=[1.0, 2]), "entities.flight[0]"),
        (with_entities(flight=[True, 2]), "entities.flight[0]"),
        (with_entities(flight=[2**63, 2]), "entities.flight[0]"),
        (with_entities(late=[1, None]), "entities.late[0]"),
        (with_entities(flight=[1]), "entities.flight"),
        (with_entities(tailnum=["N1", "N2"]), "entities.tailnum"),
        (SOUND | {"entities": {"origin": ["JFK"], "late": [True]}}, "entities.flight"),
    ],
)
def test_a_refusal_names_the_field(body: dict[str, Any], field: str) -> None:
    problem = refusal(body)

    assert (problem.status, problem.field) == (422, field)


def test_a_field_that_nearly_is_one_is_recognised() -> None:
    assert refusal(SOUND | {"servce": "x"}).near == ("service",)
    assert refusal(with_entities(orgin=["JFK", "LGA"])).near == ("origin",)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"service": "\xff", "entities": {}}', b'{"service": NaN}', b"[]", b"1", b"null"],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(body).status == 422


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_json_does_not_have_are_refused(value: bytes) -> None:
    body = b'{"service": "s", "entities": {"origin": ["a"], "flight": [%s], "late": [true]}}' % value

    assert refusal(body).status == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"service": "a", "service": "b", "entities": {}}', "service"),
        (b'{"service": "a", "entities": {}, "at": "2026-03-01T12:00:00Z", "at": null}', "at"),
        (b'{"service": ":", "entities": {"flight": [], "origin": [], "late": [], "flight": []}}', "entities.flight"),
        (b'{"service": "a", "entities": {"origin": []}, "entities": {"origin": []}}', "entities"),
        (b'{"service": "a", "entities": {"origin": [], "flight": [], "late": [], "late": []}}', "entities.late"),
    ],
)  # fmt: skip
def test_a_field_that_is_given_twice_is_refused(body: bytes, field: str) -> None:
    assert refusal(body).field == field


def test_colons_and_quotes_in_values_are_no_duplicates() -> None:
    entities = {"origin": ['a:"b\\":{[', "::"], "flight": [1, 2], "late": [None, None]}
    body = json.dumps({"service": "a:b", "entities": entities, "at": "2026-03-01T12:00:00+01:00"}).encode()

    assert read(body)[0] == ['a:"b\\":{[', "::"]


def test_more_rows_than_are_answered_at_a_time_are_refused() -> None:
    body = {"service": "s", "entities": {"origin": ["a"] * 10_000, "flight": [1] * 10_000, "late": [None] * 10_000}}
    problem = refusal(body)

    assert (problem.status, problem.field) == (422, "entities.origin")
    assert str(MAX_ROWS) in problem.detail


def test_a_body_that_is_too_large_is_not_even_parsed() -> None:
    assert refusal(b"[" * (MAX_BODY + 1)).status == 413


@pytest.mark.parametrize("body", [b"[" * MAX_BODY, b'{"a":[' + b'\\"' * 400_000 + b"[" * 20, b'{"a":' * 200_000])
def test_depth_is_bounded_before_parsing(body: bytes) -> None:
    assert "deeper" in refusal(body).detail


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["service", "entities", "at", "budget_ms", "request", "x"]), _JSON))
def test_any_object_is_read_or_refused_with_a_problem(body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    try:
        read(data)
    except Refused:
        problem = refusal(data)
        assert problem.status == 422
        assert json.loads(problem.encode())["code"] == "invalid_request"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_problem(body: bytes) -> None:
    assert refusal(body).status == 422


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=5))
def test_texts_are_read_as_they_were_sent(origins: list[str]) -> None:
    entities = {"origin": origins, "flight": [7] * len(origins), "late": [False] * len(origins)}

    assert read(json.dumps({"service": "s", "entities": entities}).encode())[0] == origins
