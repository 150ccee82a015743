import json
import re
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Entity, agg, col, feature, when
from featurestore.definitions import codec, expressions
from featurestore.definitions.expressions import Expr, lit
from featurestore.definitions.jsontext import dumps, loads
from featurestore.definitions.services import compile_service
from tests.unit.definitions.flights import Departures, compiled, delays, service, view

NUMBERS = st.sampled_from([col("dep_delay"), col("distance")]) | st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
).map(lit)


def _combined(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    binary = st.sampled_from(["add", "sub", "mul", "div", "mod", "fill_null"])
    return st.one_of(
        st.builds(lambda op, a, b: Expr(op, (a, b)), binary, inner, inner),
        st.builds(lambda a: -a, inner),
        st.builds(lambda a, b, c: when(a > b).then(c).otherwise(None), inner, inner, inner),
    )


NUMERIC = st.recursive(NUMBERS, _combined, max_leaves=12).filter(lambda e: expressions.names(e, "col") != ())
CONDITIONS = st.one_of(
    st.builds(lambda a, b: a < b, NUMERIC, NUMERIC),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5).map(col("carrier").is_in),
    st.builds(lambda a: ~a.is_null() & col("cancelled"), NUMERIC),
)
WINDOWS = st.sampled_from([None, "5s", "15m", "1h", "60m", "7d"])
AGGREGATES = st.one_of(
    st.builds(lambda w, c: agg.count(window=w, where=c), WINDOWS, st.none() | CONDITIONS),
    st.builds(lambda x, w, d: agg.mean(x, window=w, default=d), NUMERIC, WINDOWS, st.none() | st.integers(-9, 9)),
    st.builds(lambda n, w: agg.last_n("carrier", n=n, window=w), st.integers(1, 100), WINDOWS),
    st.builds(lambda w: agg.last(col("scheduled_at"), window=w, default="2026-03-01T12:00:00Z"), WINDOWS),
)


@given(aggregate=AGGREGATES, where=st.none() | CONDITIONS, ttl=st.sampled_from([None, "1d", "24h"]))
def test_a_view_read_back_is_the_same_view(aggregate: Any, where: Expr | None, ttl: str | None) -> None:
    raw = view(features={"n": agg.count(), "f": aggregate, "d": feature("n") * 2}, where=where, ttl=ttl, owner="é")
    data = codec.view_to_data(raw)
    again = codec.view_from_data(loads(dumps(data), 1 << 20))
    assert compiled(again).fingerprint == compiled(raw).fingerprint
    assert codec.view_to_data(again) == data


def test_entities_and_sources_read_back_are_equal() -> None:
    route = Entity("route", keys={"origin": str, "n": int, "b": bool}, description="where")
    assert codec.entity_from_data(codec.entity_to_data(route)) == route
    assert list(codec.entity_from_data(codec.entity_to_data(route)).keys) == ["origin", "n", "b"]
    source = codec.source_from_data(codec.source_to_data(Departures))
    assert (source.topic, tuple(source.key)) == (Departures.topic, tuple(Departures.key))


def test_a_service_read_back_has_the_same_fingerprint() -> None:
    views = {("airport_delay", 1): delays()}
    ready = {("airport_delay", 1): compiled(delays())}
    raw = service(views["airport_delay", 1].pick("late_1h", "departures_1h"), budget_ms=20)
    again = codec.service_from_data(loads(dumps(codec.service_to_data(raw)), 1 << 20), views)
    before, after = compile_service(raw, ready)[0], compile_service(again, ready)[0]
    assert before is not None
    assert after is not None
    assert before.fingerprint == after.fingerprint


def test_a_whole_view_is_written_feature_by_feature() -> None:
    written = codec.service_to_data(service(view()))["views"]
    assert written == [{"view": "airport_delay", "version": 1, "features": ["departures_1h"]}]


def nested(levels: int) -> list[Any]:
    return ["neg", None, nested(levels - 1)] if levels else ["col", "x"]


def bent(path: list[Any], value: Any) -> dict[str, Any]:
    data = deepcopy(codec.view_to_data(delays()))
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return data


HOSTILE: dict[str, tuple[list[Any], Any, str]] = {
    "unknown field": (["code"], "import os", "view has other fields than expected: 'code'"),
    "unknown operation": (["features", 0, "aggregate", "op"], "exec", "aggregate.op: unknown operation 'exec'"),
    "unknown expression": (["where"], ["call", "os.system"], "is no expression"),
    "expression as text": (["where"], "__import__('os')", "is no expression"),
    "expression without constant": (["where"], ["col"], "is no expression"),
    "column that is no text": (["where"], ["col", 5], "col has the constant 5"),
    "constant that is a list": (["where"], ["lit", [1]], "lit has the constant"),
    "constant on an operation": (["where"], ["neg", 1, ["col", "x"]], "neg has the constant 1"),
    "operands missing": (["where"], ["add", None, ["col", "x"]], "add has 1 operands"),
    "members that are no list": (["where"], ["is_in", "abc", ["col", "x"]], "is_in has the constant"),
    "deep expression": (["where"], nested(64), "nested deeper than 64"),
    "version as text": (["version"], "1", "view.version: '1' is no int"),
    "version as bool": (["version"], True, "view.version: True is no int"),
    "features as text": (["features"], "all", "'all' is no list"),
    "feature of two kinds": (["features", 0, "expression"], ["col", "x"], "is no feature"),
    "key of a strange type": (["entity", "keys"], [["origin", "object"]], "'origin' is 'object'"),
    "key twice": (["entity", "keys"], [["origin", "string"]] * 2, "is there twice"),
    "tags as a list": (["tags"], [], "view.tags: [] is no mapping"),
    "default that is a list": (["features", 0, "aggregate", "default"], [1], "aggregate.default: [1] is no bool"),
    "too many features": (["features"], [{}] * 10_001, "is no list of at most 10000"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_data_is_refused_with_its_place(case: str) -> None:
    path, value, expected = HOSTILE[case]
    with pytest.raises(ValueError, match=re.escape(expected)):
        codec.view_from_data(bent(path, value))


@pytest.mark.parametrize("data", [None, [], "view", {}])
def test_what_is_no_view_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="view"):
        codec.view_from_data(data)


def test_a_service_over_a_view_that_is_not_published_is_refused() -> None:
    with pytest.raises(ValueError, match="no view airport_delay@1"):
        codec.service_from_data(codec.service_to_data(service(view())), {})


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert dumps({"b": [1, "é"], "a": None}) == b'{"a":null,"b":[1,"\\u00e9"]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps(float("nan"))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"a":1,"a":2}', "a key is repeated"),
        (b"[NaN]", "NaN is no JSON value"),
        (b"[" * 100_000, "nested too deep"),
        (b" " * (1 << 20) + b"1", "more than 1048576"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_is_read_strictly_and_within_bounds(raw: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        loads(raw, 1 << 20)


def test_written_views_are_plain_json() -> None:
    assert json.loads(json.dumps(codec.view_to_data(delays()))) == codec.view_to_data(delays())
