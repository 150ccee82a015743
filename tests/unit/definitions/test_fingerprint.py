import hashlib
from dataclasses import replace
from typing import Any

import pytest

from featurestore import Entity, FeatureView, agg, col, feature
from featurestore.definitions.compile import compile_view
from featurestore.definitions.fingerprint import differences, meaning
from featurestore.definitions.jsontext import dumps
from tests.unit.definitions.flights import CONTRACT_ID, SCHEMA, Airport, Departures, compiled, contract, delays, view

DELAY = col("dep_delay")
BASE: dict[str, Any] = {"n": agg.count(window="1h"), "m": agg.mean(DELAY, window="1h"), "d": feature("n") + 1}


def fingerprint(**given: Any) -> str:
    return compiled(view(**{"features": BASE, **given})).fingerprint


SAME_MEANING: dict[str, dict[str, Any]] = {
    "texts": {"owner": "ml@example.com", "tags": ["gold"]},
    "objectives": {"freshness": "10s", "on_missing": "error", "on_stale": "last_known(5m)"},
    "version": {"version": 2},
    "order of lines": {"features": dict(reversed(BASE.items()))},
    "spelling of a window": {"features": {**BASE, "n": agg.count(window="60m")}},
    "hop written out": {"features": {**BASE, "n": agg.count(window="1h", hop="300s")}},
    "bare column name": {"features": {**BASE, "m": agg.mean("dep_delay", window="1h")}},
    "message key": {"source": replace(Departures, key=[])},
    "texts of the source": {"source": replace(Departures, owner="x", description="y", name="other")},
    "spelling of the source's durations": {"source": replace(Departures, lateness="0m", max_future_skew="300s")},
    "name of the entity": {"entity": replace(Airport, name="field", description="z")},
}


@pytest.mark.parametrize("case", SAME_MEANING)
def test_what_decides_no_value_leaves_the_fingerprint(case: str) -> None:
    assert fingerprint() == fingerprint(**SAME_MEANING[case])


OTHER_MEANING: dict[str, tuple[dict[str, Any], str]] = {
    "window": ({"features": {**BASE, "n": agg.count(window="3h")}}, "n: window 1h -> 3h, hop 5m -> 15m"),
    "hop": ({"features": {**BASE, "n": agg.count(window="1h", hop="1m")}}, "n: hop 5m -> 1m"),
    "lifetime": ({"features": {**BASE, "n": agg.count()}}, "n: window 1h -> none, hop 5m -> none"),
    "operation": ({"features": {**BASE, "m": agg.std(DELAY, window="1h")}}, "m: op mean -> std"),
    "column": ({"features": {**BASE, "m": agg.mean(DELAY * 2, window="1h")}},
               "m: column col('dep_delay') -> (col('dep_delay') * 2)"),
    "condition": ({"features": {**BASE, "n": agg.count(window="1h", where=DELAY > 5)}},
                  "n: where none -> (col('dep_delay') > 5)"),
    "default": ({"features": {**BASE, "m": agg.mean(DELAY, window="1h", default=0)}}, "m: default none -> 0.0"),
    "derived": ({"features": {**BASE, "d": feature("n") + 2}},
                "d: expression (feature('n') + 1) -> (feature('n') + 2)"),
    "kind": ({"features": {**BASE, "d": agg.count()}}, "d: op expression -> count"),
    "more": ({"features": {**BASE, "x": agg.count()}}, "x: added"),
    "fewer": ({"features": {"n": BASE["n"], "m": BASE["m"]}}, "d: removed"),
    "view's condition": ({"where": col("cancelled")}, "where none -> col('cancelled')"),
    "ttl": ({"ttl": "7d"}, "ttl none -> 7d"),
    "nulls for the missing": ({"on_missing": "null"}, "on_missing none -> null"),
    "keys": ({"entity": Entity("airport", {"carrier": str})}, "keys origin string -> carrier string"),
    "topic": ({"source": replace(Departures, topic="flights.v2")}, "source topic flights.departures -> flights.v2"),
    "lateness": ({"source": replace(Departures, lateness="1h")}, "source lateness 0s -> 1h"),
    "skew": ({"source": replace(Departures, max_future_skew="1h")}, "source max_future_skew 5m -> 1h"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_MEANING)
def test_what_decides_a_value_changes_the_fingerprint_and_is_told(case: str) -> None:
    given, told = OTHER_MEANING[case]
    before, after = compiled(view(features=BASE)), compiled(view(**{"features": BASE, **given}))
    assert before.fingerprint != after.fingerprint
    assert any(line.startswith(told) for line in differences(before, after)), differences(before, after)


def test_another_contract_is_another_meaning() -> None:
    wider = contract(CONTRACT_ID, {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "x", "type": "string"}]})
    found, _ = compile_view(view(features=BASE), wider)
    assert found is not None
    assert found.fingerprint != fingerprint()
    assert differences(compiled(view(features=BASE)), found)[0].startswith("source contract ")


def test_key_order_is_part_of_the_meaning() -> None:
    def by(*columns: str) -> FeatureView:
        return view(entity=Entity("route", dict.fromkeys(columns, str)))

    assert compiled(by("origin", "carrier")).fingerprint != compiled(by("carrier", "origin")).fingerprint


def test_members_of_a_set_have_no_order() -> None:
    def among(*carriers: str) -> FeatureView:
        return view(features={"n": agg.count(where=col("carrier").is_in(carriers))})

    one, other = compiled(among("AA", "DL")), compiled(among("DL", "AA"))
    assert one.fingerprint == other.fingerprint
    assert repr(one.aggregates[0].where) == repr(other.aggregates[0].where)


def test_equal_fingerprints_have_aggregates_in_equal_order() -> None:
    forwards, backwards = compiled(view(features=BASE)), compiled(view(features=dict(reversed(BASE.items()))))
    assert [a.name for a in forwards.aggregates] == [a.name for a in backwards.aggregates] == ["m", "n"]


def test_a_view_does_not_differ_from_itself() -> None:
    assert differences(compiled(delays()), compiled(delays())) == ()


def test_a_release_that_would_change_every_fingerprint_is_noticed() -> None:
    document = meaning(compiled(delays(where=~col("cancelled"), ttl="7d")))
    document["source"]["contract"] = ""
    assert (
        hashlib.sha256(dumps(document)).hexdigest()
        == "366b92d6a4bf51a3dee3bfb28557b66f07deb3efbaa614e990816980d0c05fa4"
    )
