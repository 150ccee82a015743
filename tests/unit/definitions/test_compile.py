from dataclasses import replace
from typing import Any

import pytest

from featurestore import Entity, FeatureService, Source, agg, col, feature, feature_view, when
from featurestore.clock import HOUR, MINUTE, SECOND, parse_instant
from featurestore.definitions.compile import check
from featurestore.definitions.compiled import CompiledAggregate
from featurestore.definitions.expressions import Expr
from featurestore.definitions.model import Feature, FeatureView
from featurestore.definitions.services import compile_service
from featurestore.errors import ContractError, DefinitionError, Fault, NotFound
from featurestore.types import Dtype
from tests.unit.definitions.flights import (
    CONTRACT_ID,
    SCHEMA,
    Airport,
    Departures,
    compiled,
    contract,
    delays,
    faults_of,
    service,
    view,
)


def only_fault(raw: FeatureView) -> Fault:
    faults = faults_of(raw)
    assert len(faults) == 1, faults
    return faults[0]


def aggregate(spec: Any) -> CompiledAggregate:
    return compiled(view(features={"f": spec})).aggregates[0]


def deep(levels: int) -> Expr:
    expr = col("distance")
    for _ in range(levels):
        expr = -expr
    return expr


def wide(levels: int) -> Expr:
    expr = col("distance")
    for _ in range(levels):
        expr = expr + expr
    return expr


DELAY = col("dep_delay")

FEATURE_FAULTS: dict[str, tuple[Any, str]] = {
    "unknown operation": (agg.maen(DELAY), "unknown operation 'maen'; did you mean 'mean'?"),
    "no column": (agg.sum(window="1h"), "sum needs a column"),
    "unknown column": (agg.sum(col("dep_dealy")), "unknown column 'dep_dealy'; did you mean 'dep_delay'?"),
    "unknown column by bare name": (agg.sum("dep_dealy"), "unknown column 'dep_dealy'"),
    "unknown column in where": (agg.count(where=col("dely") > 1), "unknown column 'dely'"),
    "column of another type": (agg.sum(5), "column is 5; expected an expression"),
    "column name that is no text": (agg.sum(col(3)), "column has col(3); expected a name"),  # type: ignore[arg-type]
    "sum of strings": (agg.sum(col("carrier")), "sum of col('carrier'), which is string; expected float or int"),
    "mean of timestamps": (agg.mean(col("scheduled_at")), "which is timestamp; expected float or int"),
    "max of bools": (agg.max(col("cancelled")), "which is bool; expected float or int or timestamp"),
    "constant column": (agg.sum(Expr("lit", (), 1)), "column 1 refers to no column"),
    "empty window": (agg.count(window="0s"), "window '0s' is no time at all"),
    "misspelt window": (agg.count(window="5 minuts"), "window '5 minuts' is no duration; expected a whole number and a"
                                                      " unit, as 30s, 5m, 1h or 7d; did you mean '5m'?"),
    "window that is a number": (agg.count(window=60), "window 60 is no duration"),
    "window of centuries": (agg.count(window="99999d"), "window '99999d' is too long; expected at most 36500d"),
    "window shorter than the least hop": (agg.count(window="500ms"), "window 500ms is shorter than its hop 1s"),
    "window shorter than its hop": (agg.count(window="1m", hop="5m"), "window 1m is shorter than its hop 5m"),
    "hop below a second": (agg.count(window="1m", hop="100ms"), "hop 100ms is too short; expected at least 1s"),
    "misspelt hop": (agg.count(window="1m", hop="1 sec"), "hop '1 sec' is no duration"),
    "hop without window": (agg.count(hop="1m"), "hop '1m' has no window"),
    "too many tiles": (agg.count(window="1d", hop="1s"), "window 1d in hops of 1s makes 86400 tiles; expected at most"),
    "string default of a float": (agg.mean(DELAY, default="x"), "default 'x' does not fit type float"),
    "bool default of a float": (agg.mean(DELAY, default=True), "default True does not fit type float"),
    "infinite default": (agg.mean(DELAY, default=float("inf")), "default inf does not fit"),
    "float default of an int": (agg.sum(col("distance"), default=0.5), "default 0.5 does not fit type int"),
    "int default beyond int64": (agg.sum(col("distance"), default=2**63), "does not fit type int"),
    "default that is no instant": (agg.last(col("scheduled_at"), default="soon"), "does not fit type timestamp"),
    "default of a count": (agg.count(default=1), "expected no default=: an empty window gives 0"),
    "default of a list": (agg.last_n(DELAY, n=2, default=[]), "last_n takes no default"),
    "list without a length": (agg.last_n(DELAY), "n is missing; expected n=, a whole number from 1 to 100"),
    "length of nothing": (agg.last_n(DELAY, n=0), "n is 0"),
    "length beyond the bound": (agg.last_n(DELAY, n=101), "n is 101"),
    "length that is a bool": (agg.last_n(DELAY, n=True), "n is True"),
    "unknown parameter": (agg.count(windw="1h"), "unknown argument of agg.count 'windw'; did you mean 'window'?"),
    "parameter of another operation": (agg.sum(DELAY, n=3), "unknown argument of agg.sum 'n'"),
    "second positional argument": (agg.sum(DELAY, "1h"), "agg.sum takes one positional argument, the column; also got"
                                                         " '1h'"),
    "where that is a number": (agg.count(where=DELAY), "where is float; expected a condition"),
    "where that is Python's bool": (agg.count(where=True), "where is True; expected an expression"),
    "where over features": (agg.count(where=feature("other") > 1), "where refers to feature('other')"),
    "order of strings": (agg.count(where=col("carrier") > "AA"), "(col('carrier') > 'AA') orders string values"),
    "mixed types": (agg.count(where=col("carrier") == 5), "(col('carrier') == 5) mixes string and int"),
    "mixed branches": (agg.sum(when(DELAY > 0).then(1).otherwise("x")), "mixes int and string"),
    "arithmetic on strings": (agg.last(col("carrier") + 1), "does arithmetic on string"),
    "condition that is a number": (agg.count(where=DELAY & True), "uses float as a condition"),
    "comparison with None": (agg.count(where=col("carrier") == None), "use .is_null()"),  # noqa: E711
    "membership of letters": (agg.count(where=col("carrier").is_in("AA")), "is_in takes a list of constants"),
    "membership of None": (agg.count(where=col("carrier").is_in(["AA", None])), "lists None"),
    "membership of mixed types": (agg.count(where=col("carrier").is_in(["AA", 1])), "mixes string and int"),
    "constant of an odd type": (agg.sum(DELAY + {}), "the constant {} is no bool, int, float, str or None"),  # type: ignore[operator]
    "constant that is not finite": (agg.sum(DELAY + float("nan")), "the constant nan is not finite"),
    "constant beyond int64": (agg.sum(DELAY + 2**63), "is no int64"),
    "deep expression": (agg.sum(deep(80)), "column is nested deeper than 64"),
    "wide expression": (agg.sum(wide(50)), "column has more than 2000 parts"),
    "feature in an aggregate": (agg.sum(feature("other")), "column refers to feature('other')"),
    "always null": (agg.last(when(DELAY > 0).then(None).otherwise(None)), "is always null"),
    "unknown feature": (feature("othr") + 1, "unknown feature 'othr'; did you mean 'other'?"),
    "list in arithmetic": (feature("recent") + 1, "expression uses 'recent', which is a list"),
    "column in a derived feature": (feature("other") + DELAY, "expression refers to col('dep_delay')"),
    "derived from nothing": (Expr("lit", (), 1), "expression 1 refers to no feature"),
    "derived from itself": (feature("f") + 1, "needs itself: f -> f"),
    "aggregate in an expression": (feature("other") / agg.count(), "has an aggregate inside an expression"),  # type: ignore[operator]
    "derived by order of strings": (feature("carrier") < "B", "orders string values"),
    "unfinished when": (when(DELAY > 1), "is a when(…) without an end; expected .then(a).otherwise(b)"),
    "unfinished then": (when(DELAY > 1).then(2), "is a when(…) without an end"),
    "operation that was not called": (agg.count, "is an operation that was not called; expected agg.count(…)"),
    "attribute that is no feature": (5, "5 is no feature"),
}  # fmt: skip


@pytest.mark.parametrize("case", FEATURE_FAULTS)
def test_a_faulty_feature_is_named_with_what_was_expected(case: str) -> None:
    spec, expected = FEATURE_FAULTS[case]
    sound = {"other": agg.count(), "recent": agg.last_n(DELAY, n=3), "carrier": agg.last(col("carrier"))}
    fault = only_fault(view(features={**sound, "f": spec}))
    assert fault.where == "AirportDelay.f"
    assert expected in str(fault)


VIEW_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "version 0": ({"version": 0}, "AirportDelay: version is 0; expected a whole number, 1 or more"),
    "version as text": ({"version": "1"}, "version is '1'"),
    "version as bool": ({"version": True}, "version is True"),
    "no features": ({"features": {}}, "AirportDelay: has no features"),
    "no entity": ({"entity": "airport"}, "AirportDelay: entity is 'airport'; expected Entity(…)"),
    "no source": ({"source": None}, "AirportDelay: source is None; expected Source(…)"),
    "freshness": ({"freshness": "30 secs"}, "freshness '30 secs' is no duration"),
    "ttl": ({"ttl": "0s"}, "ttl '0s' is no time at all"),
    "where on a string": ({"where": col("carrier")}, "AirportDelay: where is string; expected a condition"),
    "where on an unknown column": ({"where": col("carier") == "AA"}, "unknown column 'carier'; did you mean"),
    "on_missing": ({"on_missing": "defualt"}, "unknown on_missing 'defualt'; did you mean 'default'?"),
    "on_stale": ({"on_stale": "ignore"}, "unknown on_stale 'ignore'; expected one of default, error, last_known(5m)"),
    "on_stale without an age": ({"on_stale": "last_known"}, "on_stale 'last_known'; did you mean 'last_known(5m)'?"),
    "on_stale with a strange age": ({"on_stale": "last_known(5 min)"}, "'last_known(5 min)': '5 min' is no duration"),
    "on_stale of no age": ({"on_stale": "last_known(0s)"}, "'last_known(0s)': '0s' is no time at all"),
    "owner": ({"owner": 5}, "owner is 5; expected a string"),
    "tag": ({"tags": {"team": 5}}, "tag 'team' is 5; expected a string"),
    "upper-case feature": ({"features": {"Late": agg.count()}}, "AirportDelay.Late: 'Late' is no feature name"),
    "private aggregate": ({"features": {"_late": agg.count()}}, "AirportDelay._late: '_late' is no feature name"),
    "name of an entity": ({"entity": replace(Airport, name="Air port")}, "'Air port' is no entity name"),
    "no keys": ({"entity": replace(Airport, keys={})}, "airport.keys: keys is {}; expected columns and their types"),
    "unknown key": ({"entity": Entity("airport", {"orign": str})}, "airport.keys.orign: unknown column 'orign'"),
    "key of another type": ({"entity": Entity("airport", {"origin": int})}, "declared int, but contract"
                                                                           " flights.departures/v1 has string"),
    "float key": ({"entity": Entity("airport", {"origin": float})}, "a key cannot be float; expected str, int or bool"),
    "key on a float column": ({"entity": Entity("airport", {"dep_delay": str})}, "column 'dep_delay' is float, which"
                                                                                " cannot be a key"),
    "name of a source": ({"source": replace(Departures, name="my-source")}, "'my-source' is no source name"),
    "topic": ({"source": replace(Departures, topic="flights departures")}, "'flights departures' is no topic"),
    "long topic": ({"source": replace(Departures, topic="t" * 246)}, "is no topic; expected 1 to 245"),
    "unknown event_time": ({"source": replace(Departures, event_time="departed")}, "did you mean 'departed_at'?"),
    "event_time of another type": ({"source": replace(Departures, event_time="origin")}, "column 'origin' is string;"
                                                                                        " expected a timestamp"),
    "event_time that can be null": ({"source": replace(Departures, event_time="scheduled_at")}, "can be null"),
    "unknown message key": ({"source": replace(Departures, key=["tailnumm"])}, "unknown column 'tailnumm'"),
    "message key as text": ({"source": replace(Departures, key="tailnum")}, "key is 'tailnum'; expected a list"),
    "message key twice": ({"source": replace(Departures, key=["origin", "origin"])}, "repeats a column"),
    "float message key": ({"source": replace(Departures, key=["dep_delay"])}, "is float, which cannot be a key"),
    "lateness": ({"source": replace(Departures, lateness="-1s")}, "lateness '-1s' is no duration"),
    "max_future_skew": ({"source": replace(Departures, max_future_skew="5")}, "max_future_skew '5' is no duration"),
}  # fmt: skip


@pytest.mark.parametrize("case", VIEW_FAULTS)
def test_a_faulty_view_entity_or_source_is_named_with_what_was_expected(case: str) -> None:
    given, expected = VIEW_FAULTS[case]
    assert expected in str(only_fault(view(**given)))


def test_a_class_name_that_gives_no_view_name_is_a_fault() -> None:
    assert "'größe' is no view name" in str(only_fault(view("Größe")))


def test_lateness_counts_towards_the_tiles_of_a_window() -> None:
    late = replace(Departures, lateness="10000s")
    assert "tiles" in str(only_fault(view(source=late, features={"f": agg.count(window="10s", hop="1s")})))


def test_an_annotation_without_a_value_is_a_fault() -> None:
    raw = view(features={"__annotations__": {"f": "agg.count()"}, "g": agg.count()})
    assert "AirportDelay.f: is annotated and has no value" in str(only_fault(raw))


def test_inherited_features_are_a_fault_and_not_lost() -> None:
    base = type("Base", (), {"f": agg.count()})
    from_base = type("AirportDelay", (base,), {"g": agg.count()})
    settings: dict[str, Any] = {"entity": Airport, "source": Departures, "version": 1}
    assert "features are not inherited" in str(only_fault(feature_view(**settings)(from_base)))


def test_a_private_expression_is_a_part_and_no_feature() -> None:
    late = DELAY > 15
    assert compiled(view(features={"_late": late, "late_1h": agg.count(where=late)})).order == ("late_1h",)


def test_a_feature_that_is_there_twice_is_a_fault() -> None:
    raw = view()
    assert "AirportDelay.departures_1h: is defined twice" in str(only_fault(replace(raw, features=raw.features * 2)))


def test_a_column_that_the_store_adds_is_reserved() -> None:
    field = {"name": "event_time", "type": "string"}
    taken = contract(schema={**SCHEMA, "fields": [*SCHEMA["fields"], field]})
    with pytest.raises(DefinitionError, match="has a column 'event_time', and the store adds one"):
        check([view()], [], {CONTRACT_ID: taken})


def test_a_shuffle_topic_that_kafka_would_refuse_is_a_fault() -> None:
    long = "c" * 240
    schema = {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": long, "type": "string"}]}
    with pytest.raises(DefinitionError, match=r"its shuffle topic .* has a name of 262 characters"):
        check([view(entity=Entity("thing", {long: str}))], [], {CONTRACT_ID: contract(schema=schema)})


def test_one_cycle_is_reported_once_and_what_depends_on_it_not_at_all() -> None:
    features = {"a": feature("b") + 1, "b": feature("a") + 1, "c": feature("a") * 2, "d": agg.count()}
    assert [str(f) for f in faults_of(view(features=features))] == [
        "AirportDelay.a: needs itself: a -> b -> a; expected features that do not lead back to themselves"
    ]


def test_two_cycles_are_both_reported() -> None:
    features = {"a": feature("b"), "b": feature("a"), "c": feature("d"), "d": feature("c")}
    assert {f.where for f in faults_of(view(features=features))} == {"AirportDelay.a", "AirportDelay.c"}


def test_a_feature_over_a_faulty_one_has_no_fault_of_its_own() -> None:
    features = {"a": agg.sum(col("nothing")), "b": feature("a") + 1}
    assert only_fault(view(features=features)).where == "AirportDelay.a"


CONTRACT_FAULTS: dict[str, tuple[Any, str]] = {
    "missing": (None, "departures.contract: unknown contract 'flights.departures/v1'"),
    "near": (NotFound("contract", CONTRACT_ID, ["flights.departures/v2"]), "did you mean 'flights.departures/v2'?"),
    "unreadable": (ContractError("contract x: the schema is not JSON", hint="write JSON"), "JSON; expected write"),
}


@pytest.mark.parametrize("case", CONTRACT_FAULTS)
def test_a_contract_that_cannot_be_used_is_a_fault_beside_the_others(case: str) -> None:
    given, expected = CONTRACT_FAULTS[case]
    raw = view(features={"f": agg.sum(col("anything"), window="0s")})
    with pytest.raises(DefinitionError) as caught:
        check([raw], [], {CONTRACT_ID: given})
    assert expected in str(caught.value)
    assert "AirportDelay.f: window '0s'" in str(caught.value)
    assert len(caught.value.faults) == 2


SERVICE_FAULTS: dict[str, tuple[FeatureService, str]] = {
    "no views": (service(), "flight_delay: views is []; expected a list of feature views"),
    "views as a view": (FeatureService("s", views=delays()), "expected a list of feature views"),  # type: ignore[arg-type]
    "class without decorator": (service(int), "views has <class 'int'>; expected a class under @feature_view"),
    "name": (service(delays(), name="flight-delay"), "'flight-delay' is no service name"),
    "unknown pick": (service(delays().pick("late_2h")), "flight_delay.AirportDelay: unknown feature 'late_2h'"),
    "pick twice": (service(delays().pick("late_1h", "late_1h")), "has airport_delay.late_1h twice"),
    "empty pick": (service(delays().pick()), "picks nothing of AirportDelay"),
    "two versions": (service(delays(), view(version=2).pick("departures_1h")), "has versions 1 and 2 of AirportDelay"),
    "budget": (service(delays(), budget_ms=0), "budget_ms is 0; expected milliseconds"),
    "owner": (service(delays(), owner=None), "owner is None; expected a string"),
}


@pytest.mark.parametrize("case", SERVICE_FAULTS)
def test_a_faulty_service_is_named_with_what_was_expected(case: str) -> None:
    raw, expected = SERVICE_FAULTS[case]
    with pytest.raises(DefinitionError) as caught:
        check([], [raw], {CONTRACT_ID: contract()})
    assert expected in str(caught.value)


@pytest.mark.parametrize(("count", "faults"), [(500, 0), (501, 1)])
def test_a_service_has_a_bounded_number_of_features(count: int, faults: int) -> None:
    wide = view(features={f"f{i}": agg.count() for i in range(count)})
    found, said = compile_service(service(wide), {("airport_delay", 1): compiled(wide)})

    assert faults == len(said) == (found is None)
    assert [f"flight_delay: has {count} features"] * faults == [str(f).partition(";")[0] for f in said]


def test_a_view_and_a_pick_of_it_share_no_feature() -> None:
    raw = service(delays(), delays().pick("late_1h"))
    found, faults = compile_service(raw, {("airport_delay", 1): compiled(delays())})
    assert found is None
    assert [str(f) for f in faults] == ["flight_delay: has airport_delay.late_1h twice; expected each feature once"]


def test_one_key_column_has_one_type_in_a_service() -> None:
    fields = [{**f, "type": "long"} if f["name"] == "origin" else f for f in SCHEMA["fields"]]
    other = replace(Departures, name="others", contract="others/v1")
    numbered = view("Numbered", source=other, entity=Entity("place", {"origin": int}))
    contracts = {CONTRACT_ID: contract(), "others/v1": contract("others/v1", {**SCHEMA, "fields": fields})}
    with pytest.raises(DefinitionError, match="key 'origin' is string in airport_delay@1 and int in numbered@1"):
        check([], [service(view(), numbered)], contracts)


def test_a_class_without_its_decorator_is_no_view() -> None:
    with pytest.raises(DefinitionError, match=r"int: is no feature view; expected @feature_view\(…\) above the class"):
        check([int], [], {})


CLASHES: dict[str, tuple[list[FeatureView], list[FeatureService], str]] = {
    "views": ([view(), view()], [], "AirportDelay: a second view airport_delay@1; expected another name"),
    "sources": ([view(), view("B", source=replace(Departures, lateness="1h"))], [], "B: a second source 'departures'"),
    "entities": ([view(), view("B", entity=Entity("airport", {"carrier": str}))], [], "B: a second entity 'airport'"),
    "services": ([], [service(v := view()), service(v)], "flight_delay: a second service of that name"),
}


@pytest.mark.parametrize("case", CLASHES)
def test_one_name_for_two_things_is_a_fault(case: str) -> None:
    views, services, expected = CLASHES[case]
    with pytest.raises(DefinitionError) as caught:
        check(views, services, {CONTRACT_ID: contract()})
    assert [expected in str(fault) for fault in caught.value.faults] == [True]


def test_all_faults_of_a_file_come_at_once_and_each_once() -> None:
    bent = replace(Departures, event_time="departed", topic="a b")
    first = view("First", source=bent, features={"a": agg.maen(DELAY), "b": agg.count(window="0s")})
    second = view("Second", source=bent, version=0, features={"c": feature("d")})
    with pytest.raises(DefinitionError) as caught:
        check([first, second], [service(first.pick("z"), budget_ms=-1)], {CONTRACT_ID: contract()})
    assert sorted(fault.where for fault in caught.value.faults) == [
        "First.a", "First.b", "Second", "Second.c", "departures.event_time", "departures.topic", "flight_delay",
        "flight_delay.First",
    ]  # fmt: skip
    assert str(caught.value).startswith("8 faults in the definitions\n")


def test_a_sound_view_compiles_to_microseconds_and_types() -> None:
    found = compiled(delays(freshness="30s", ttl="7d", where=~col("cancelled"), tags=["gold"]))
    assert found.id == "airport_delay@1"
    assert found.keys == {"origin": Dtype.STRING}
    assert (found.freshness, found.ttl, found.longest_window) == (30 * SECOND, 7 * 24 * HOUR, 24 * HOUR)
    assert found.types == {
        "departures_1h": (Dtype.INT, False),
        "delay_mean_1h": (Dtype.FLOAT, False),
        "delay_max_24h": (Dtype.FLOAT, False),
        "late_1h": (Dtype.INT, False),
        "late_share_1h": (Dtype.FLOAT, False),
        "last_carrier": (Dtype.STRING, False),
    }
    assert found.tags == {"gold": ""}
    assert not found.aligned


def test_hops_follow_from_windows_and_can_be_set() -> None:
    assert (aggregate(agg.count(window="1h")).window, aggregate(agg.count(window="1h")).hop) == (HOUR, 5 * MINUTE)
    assert aggregate(agg.count(window="1h", hop="7m")).hop == 7 * MINUTE
    assert (aggregate(agg.count()).window, aggregate(agg.count()).hop) == (None, None)
    assert aggregate(agg.count(window="10000s", hop="1s")).hop == SECOND


def test_an_int_is_a_fine_default_of_a_float_feature() -> None:
    default = aggregate(agg.mean(DELAY, default=0)).default
    assert (default, type(default)) == (0.0, float)


def test_a_timestamp_default_becomes_microseconds() -> None:
    instant = "2026-03-01T12:00:00Z"
    assert aggregate(agg.last(col("scheduled_at"), default=instant)).default == parse_instant(instant)


def test_ttl_applies_to_latest_values_without_a_window_only() -> None:
    assert aggregate(agg.last(DELAY)).latest
    assert not aggregate(agg.last(DELAY, window="1h")).latest
    assert not aggregate(agg.max(DELAY)).latest


def test_a_list_knows_its_length_and_element_type() -> None:
    found = aggregate(agg.last_n("carrier", n=100))
    assert (found.n, found.dtype, found.many) == (100, Dtype.STRING, True)


def test_derived_features_follow_those_they_need() -> None:
    features = {"c": feature("b") + 1, "b": feature("a") + 1, "a": agg.count(), "z": feature("a") > 2}
    found = compiled(view(features=features))
    assert [d.name for d in found.derived] == ["b", "z", "c"]
    assert found.order == ("c", "b", "a", "z")


def test_a_service_lists_its_columns_in_order_and_reaches_views_of_its_own() -> None:
    other = view("Other", features={"n": agg.count()})
    found = check([], [service(delays().pick("late_1h", "departures_1h"), other)], {CONTRACT_ID: contract()})
    assert found.services[0].feature_names == ("airport_delay.late_1h", "airport_delay.departures_1h", "other.n")
    assert found.services[0].views == (("airport_delay", 1), ("other", 1))
    assert [v.id for v in found.views] == ["airport_delay@1", "other@1"]


def test_an_aligned_source_needs_the_keys_in_their_order() -> None:
    route = Entity("route", {"origin": str, "carrier": str})
    assert compiled(view(entity=route, source=replace(Departures, key=["origin", "carrier"]))).aligned
    assert not compiled(view(entity=route, source=replace(Departures, key=["carrier", "origin"]))).aligned


def test_features_read_back_from_hostile_names_are_still_checked() -> None:
    raw = replace(view(), features=(Feature("a b", agg.count()),))
    assert "'a b' is no feature name" in str(only_fault(raw))


def test_a_source_is_sound_without_a_key() -> None:
    assert compiled(view(source=Source("s", "t", CONTRACT_ID, "departed_at"))).source.key == ()


def test_an_unknown_operation_does_not_hide_what_else_is_wrong_with_the_feature() -> None:
    spec = agg.maen(col("dep_dely"), window="5 minuts", where=col("dep_delay") + 1)
    problems = [fault.problem for fault in faults_of(view(features={"f": spec}))]

    assert 4 == len(problems), problems
