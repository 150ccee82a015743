"""Views that differ in their fallback policy only, each with a service of its name."""

from typing import Any

import pyarrow as pa

from featurestore import Entity, FeatureService, FeatureView, Source, agg, col, feature, feature_view
from featurestore.clock import SECOND
from featurestore.definitions.compile import Definitions, check
from featurestore.definitions.compiled import CompiledView
from featurestore.online.store import Beat, Fence
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.unit.serving import flights
from tests.unit.serving.api import Api

POLICIES: dict[str, dict[str, str]] = {
    "served": {},
    "defaulted": {"on_stale": "default"},
    "nulled": {"on_stale": "null"},
    "refused": {"on_stale": "error"},
    "remembered": {"on_stale": "last_known(1m)"},
    "missing_null": {"on_missing": "null"},
    "missing_error": {"on_missing": "error"},
}
AIRPORT = Entity("airport", keys={"origin": str})
DEPARTURES = Source("departures", "flights.departures", "flights.departures/v1", "departed_at")


def _view(name: str, policy: dict[str, str]) -> FeatureView:
    class Body:
        departures_1h = agg.count(window="1h")
        delay_mean_1h = agg.mean(col("dep_delay"), window="1h", default=0.0)
        delay_max_24h = agg.max(col("dep_delay"), window="24h")
        twice = feature("departures_1h") * 2

    Body.__name__ = name.title().replace("_", "")
    return feature_view(entity=AIRPORT, source=DEPARTURES, version=1, freshness="30s", **policy)(Body)  # type: ignore[arg-type]


def definitions() -> Definitions:
    views = {name: _view(name, policy) for name, policy in POLICIES.items()}
    services: list[Any] = [FeatureService(f"of_{name}", views=[view]) for name, view in views.items()]
    services.append(FeatureService("of_two", views=[views["served"], views["remembered"]]))
    return check(list(views.values()), services, {flights.CONTRACT.id: flights.CONTRACT})


def views() -> dict[str, CompiledView]:
    return {view.name: view for view in definitions().views}


def two_departures(now: int) -> pa.Table:
    return flights.departures([(now - 600 * SECOND, "JFK", "UA", 1, 5.0), (now - 60 * SECOND, "JFK", "UA", 2, 7.0)])


async def publish(api: Api, table: pa.Table | None = None) -> None:
    """Applies the definitions, stores departures (two of JFK), and waits until lookups know of them."""
    apply(Registry(str(api.lake)), definitions(), now=api.clock.now())
    table = two_departures(api.clock.now()) if table is None else table
    for view in definitions().views:
        await api.write(view, flights.stored(view, table))
    await beat(api)
    for name in POLICIES:
        await api.status_becomes({"origin": ["JFK"]}, "ok", f"of_{name}")


async def beat(api: Api, **changed: Any) -> None:
    """Signs of life of workers that keep up, apart from what `changed` says of fold."""
    now = api.clock.now()
    sound: dict[str, Any] = {"at": now, "position": 10, "end": 10, "behind_seconds": 0.0}
    await api.store.put_beats("intake:departures", {0: Beat(**sound)})
    for view in definitions().views:
        await api.store.put_beats(f"fold:{view.id}", {0: Beat(**(sound | changed))})
        await api.store.put_fence(view.id, 0, Fence(0, 9, {0: 9}, {}, now, now, now))
