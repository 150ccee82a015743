"""A service with a feature of every type, and keys of every type."""

from typing import Any

from featurestore.definitions.aggregates import agg
from featurestore.definitions.compile import Definitions, check
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.expressions import col, feature
from featurestore.definitions.model import Entity, FeatureService, feature_view
from tests.unit.serving.flights import CONTRACT, Departures

Leg = Entity("leg", keys={"origin": str, "flight": int})


@feature_view(entity=Leg, source=Departures, version=1)
class LegKinds:
    """Whole numbers, fractions, texts, truths, instants, and lists of them."""

    departures = agg.count()
    delay_mean = agg.mean(col("dep_delay"), window="24h", default=0.0)
    carrier = agg.last(col("carrier"))
    late = feature("delay_mean") > 15
    departed_at = agg.last(col("departed_at"))
    carriers = agg.last_n(col("carrier"), n=3)
    instants = agg.last_n(col("departed_at"), n=2)


_view: Any = LegKinds
leg_kinds = FeatureService("leg_kinds", views=[_view])


def definitions() -> Definitions:
    return check([_view], [leg_kinds], {CONTRACT.id: CONTRACT})


def view() -> CompiledView:
    [found] = definitions().views
    return found
