import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurestore import agg, col
from featurestore.definitions.compile import Definitions
from featurestore.errors import BreakingChange, NotFound, UsageError
from featurestore.registry.catalog import Catalog
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply, plan, set_alias
from tests.unit.definitions.flights import SCHEMA, Departures, contract, delays, service, view
from tests.unit.registry.published import NOW, definitions


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "lake"))


def steps(catalog: Catalog | None, wanted: Definitions, **given: Any) -> list[str]:
    return [str(step) for step in plan(catalog, wanted, **given).steps]


def refused(catalog: Catalog, wanted: Definitions) -> str:
    with pytest.raises(BreakingChange) as caught:
        plan(catalog, wanted).require_safe()
    return str(caught.value)


def test_the_first_plan_makes_everything(registry: Registry) -> None:
    expected = [
        "contract flights.departures/v1: new, 8 fields",
        "source departures: new, from topic flights.departures",
        "view airport_delay@1: new, 6 features of airport",
        "service flight_delay: new version 1: 6 features",
        "alias flight_delay@prod: none -> 1",
    ]
    assert steps(None, definitions()) == expected
    assert steps(registry.head(), definitions()) == expected


def test_planning_writes_nothing(registry: Registry, tmp_path: Path) -> None:
    plan(registry.head(), definitions())
    assert list(tmp_path.iterdir()) == []


def test_what_was_applied_is_what_is_read(registry: Registry) -> None:
    applied = apply(registry, definitions(), now=NOW)
    read = registry.head()
    assert (read.revision, read.digest, read.created_at) == (1, applied.digest, NOW)
    assert read.views["airport_delay", 1].fingerprint == definitions().views[0].fingerprint
    assert read.resolve("flight_delay")[0].columns == definitions().services[0].columns
    assert read.sources["departures"].topic == "flights.departures"
    assert read.aliases == {"flight_delay": {"prod": 1}}
    assert read.splits == {}


def test_applying_again_makes_no_revision(registry: Registry) -> None:
    apply(registry, definitions(), now=NOW)
    assert plan(registry.head(), definitions()).steps == ()
    assert apply(registry, definitions(), now=NOW + 1).revision == 1
    assert registry.latest() == 1


def test_a_changed_meaning_under_the_same_version_is_refused_by_feature(registry: Registry) -> None:
    catalog = apply(registry, definitions(), now=NOW)
    changed = delays(more={"delay_mean_1h": agg.mean(col("dep_delay"), window="2h"), "extra": agg.count()})
    assert refused(catalog, definitions(changed)) == (
        "this would change what is published\n"
        "  - view airport_delay@1: delay_mean_1h: window 1h -> 2h, default 0.0 -> none; extra: added\n"
        "  hint: give AirportDelay version=2, and airport_delay@1 keeps its meaning"
    )
    with pytest.raises(BreakingChange):
        apply(registry, definitions(changed), now=NOW)
    assert registry.latest() == 1


def test_a_new_version_says_what_it_changes_and_leaves_prod(registry: Registry) -> None:
    catalog = apply(registry, definitions(), now=NOW)
    second = definitions(delays(version=2, more={"late_1h": agg.count(window="1h", where=col("dep_delay") > 30)}))
    assert steps(catalog, second) == [
        "view airport_delay@2: new version; since airport_delay@1: late_1h: where (col('dep_delay') > 15) -> "
        "(col('dep_delay') > 30)",
        "service flight_delay: new version 2: 6 features; since version 1: view airport_delay: 1 -> 2",
    ]
    after = apply(registry, second, now=NOW)
    assert after.aliases == {"flight_delay": {"prod": 1}}
    assert after.resolve("flight_delay")[0].views == (("airport_delay", 1),)
    assert after.resolve("flight_delay@2")[0].views == (("airport_delay", 2),)
    assert ("airport_delay", 1) in after.views


def test_promote_moves_prod_and_old_content_moves_it_back(registry: Registry) -> None:
    apply(registry, definitions(), now=NOW)
    second = definitions(delays(version=2))
    assert apply(registry, second, now=NOW, promote=True).aliases == {"flight_delay": {"prod": 2}}
    back = apply(registry, definitions(), now=NOW, promote=True)
    assert (back.aliases, sorted(back.services["flight_delay"])) == ({"flight_delay": {"prod": 1}}, [1, 2])


def test_texts_change_in_place(registry: Registry) -> None:
    catalog = apply(registry, definitions(), now=NOW)
    told = definitions(delays(owner="ml@example.com", freshness="10s"))
    assert steps(catalog, told) == ["view airport_delay@1: same values; other owner, freshness"]
    after = apply(registry, told, now=NOW)
    assert (after.revision, after.views["airport_delay", 1].owner) == (2, "ml@example.com")


def test_a_service_of_other_content_is_a_new_version_and_other_texts_are_not(registry: Registry) -> None:
    catalog = apply(registry, definitions(), now=NOW)
    picked = definitions(services=[service(delays().pick("late_1h"))])
    assert steps(catalog, picked) == [
        "service flight_delay: new version 2: 1 features; since version 1: airport_delay.departures_1h: removed; "
        "airport_delay.delay_mean_1h: removed; airport_delay.delay_max_24h: removed; "
        "airport_delay.late_share_1h: removed; airport_delay.last_carrier: removed"
    ]
    owned = definitions(services=[service(delays(), owner="ml@example.com")])
    assert steps(catalog, owned) == ["service flight_delay: version 1: other owner"]


def test_what_the_file_leaves_out_stays_published(registry: Registry) -> None:
    apply(registry, definitions(), now=NOW)
    after = apply(registry, definitions(view("Other"), services=[]), now=NOW)
    assert set(after.views) == {("airport_delay", 1), ("other", 1)}
    assert after.resolve("flight_delay")[1] == 1


def test_another_contract_under_the_same_id_is_refused_by_field(registry: Registry) -> None:
    catalog = apply(registry, definitions(), now=NOW)
    fields = [{**f, "type": "int"} if f["name"] == "distance" else f for f in SCHEMA["fields"]]
    wider = contract(schema={**SCHEMA, "fields": [*fields, {"name": "gate", "type": "string"}]})
    told = refused(catalog, definitions(contracts=[wider]))
    assert "contract flights.departures/v1: field distance changed, field gate added" in told
    assert "publish it as flights.departures/v2" in told


def test_documentation_of_a_contract_may_change(registry: Registry) -> None:
    catalog = apply(registry, definitions(), now=NOW)
    documented = definitions(contracts=[contract(schema={**SCHEMA, "doc": "A departure."})])
    assert steps(catalog, documented) == ["contract flights.departures/v1: other text, same meaning"]
    assert "A departure." in apply(registry, documented, now=NOW).contracts["flights.departures/v1"].schema_json


def test_a_contract_that_cannot_read_its_elder_is_refused(registry: Registry) -> None:
    catalog = apply(registry, definitions(), now=NOW)
    newer = contract(
        "flights.departures/v2", {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "gate", "type": "string"}]}
    )
    second = delays(version=2, source=replace(Departures, contract=newer.id))
    told = refused(catalog, definitions(second, contracts=[newer]))
    assert "flights.departures/v2 cannot read flights.departures/v1: gate" in told


@pytest.mark.parametrize("given", [{"topic": "elsewhere"}, {"event_time": "arrived_at"}, {"key": ["origin"]}])
def test_a_source_keeps_what_its_history_hangs_on(registry: Registry, given: dict[str, Any]) -> None:
    arrival = {"name": "arrived_at", "type": {"type": "long", "logicalType": "timestamp-micros"}}
    wider = contract(schema={**SCHEMA, "fields": [*SCHEMA["fields"], arrival]})
    catalog = apply(registry, definitions(contracts=[wider]), now=NOW)
    moved = definitions(delays(version=2, source=replace(Departures, **given)), contracts=[wider])
    told = refused(catalog, moved)
    assert f"source departures: {next(iter(given))} " in told
    assert "give the source another name" in told


def test_a_source_may_widen_its_lateness_with_new_versions_of_its_views(registry: Registry) -> None:
    catalog = apply(registry, definitions(), now=NOW)
    late = replace(Departures, lateness="1h")
    assert "source lateness 0s -> 1h" in refused(catalog, definitions(delays(source=late)))
    after = apply(registry, definitions(delays(version=2, source=late)), now=NOW)
    assert after.sources["departures"].lateness == 3_600_000_000
    assert after.views["airport_delay", 1].source.lateness == 0


def test_an_alias_leads_where_it_is_set(registry: Registry) -> None:
    apply(registry, definitions(), now=NOW)
    apply(registry, definitions(delays(version=2)), now=NOW)
    after = set_alias(registry, "flight_delay", "canary", 2, now=NOW)
    assert after.resolve("flight_delay@canary")[1] == 2
    assert set_alias(registry, "flight_delay", "canary", 2, now=NOW).revision == after.revision
    assert set_alias(registry, "flight_delay", "prod", 2, now=NOW).resolve("flight_delay")[1] == 2


def test_an_alias_leads_to_published_versions_only(registry: Registry) -> None:
    apply(registry, definitions(), now=NOW)
    with pytest.raises(NotFound, match="unknown version 'flight_delay@2'"):
        set_alias(registry, "flight_delay", "prod", 2, now=NOW)
    with pytest.raises(NotFound, match="unknown service 'flight_dely'; did you mean 'flight_delay'"):
        set_alias(registry, "flight_dely", "prod", 1, now=NOW)


@pytest.mark.parametrize("alias", ["", "3", "Prod", "a b", "a@b", "é"])
def test_an_alias_is_a_name_and_no_number(registry: Registry, alias: str) -> None:
    apply(registry, definitions(), now=NOW)
    with pytest.raises(UsageError, match="is no alias"):
        set_alias(registry, "flight_delay", alias, 1, now=NOW)


def test_writers_at_once_all_succeed_and_nothing_is_lost(registry: Registry) -> None:
    started = threading.Barrier(4)
    failed: list[Exception] = []

    def publish(number: int) -> None:
        try:
            started.wait()
            apply(Registry(registry.url), definitions(view(f"View{number}"), services=[]), now=NOW)
        except Exception as error:  # noqa: BLE001 - the main thread asserts that there was none
            failed.append(error)

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {name for name, _ in registry.head().views} == {"view0", "view1", "view2", "view3"}
    assert registry.latest() == 4
