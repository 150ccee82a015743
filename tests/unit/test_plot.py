"""`View.plot`: what is drawn is what an export says and what the oracle computes."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

import featurestore
from featurestore import Entity, FeatureStoreError, Source, agg, col, feature_view
from featurestore.clock import HOUR, MINUTE, SECOND, format_instant
from featurestore.contracts.contract import parse_contract
from featurestore.definitions.compile import check
from featurestore.offline.lake import Lake
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.testing import LocalStore
from tests.oracle.meaning import OracleFeature, evaluate
from tests.unit.offline.flights import EVENTS, AirportDelay, Departures, GateUse, spine, stored, table_of
from tests.unit.offline.tables import CONTRACT, START

ORACLE = [
    OracleFeature("departures_1h", "count", window=HOUR),
    OracleFeature("delay_mean_1h", "mean", column="delay", window=HOUR),
    OracleFeature("delay_max", "max", column="delay", default=-1.0),
]


@pytest.fixture(autouse=True)
def figure() -> Iterator[None]:
    mpl.use("agg")
    pyplot.close("all")  # examples of the documentation leave theirs open
    yield
    pyplot.close("all")


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = str(tmp_path / "lake")
    stored(Lake(url))
    contracts = {"flights.departures/v1": parse_contract("flights.departures/v1", CONTRACT)}
    apply(Registry(url), check([AirportDelay], [], contracts), now=START)
    monkeypatch.setenv("FS_LAKE", url)
    return url


def drawn(axes: Axes, line: int = -1) -> tuple[list[int], list[float | None]]:
    """The instants (µs) and the values of a line, None for a gap."""
    x, y = axes.get_lines()[line].get_data()
    values = np.asarray(y, np.float64).tolist()
    return np.asarray(x).astype(np.int64).tolist(), [None if np.isnan(v) else v for v in values]


def by_oracle(name: str, at: list[int], origin: str = "JFK") -> list[Any]:
    features = [feature for feature in ORACLE if feature.name == name]
    events = [
        {**event, "event_time": event["departed_at"], "partition": 0, "offset": offset}
        for offset, event in enumerate(EVENTS)
        if event["origin"] == origin
    ]
    return [evaluate(features, events, instant)[name] for instant in at]


@pytest.mark.parametrize("name", [feature.name for feature in ORACLE])
def test_what_is_drawn_is_what_the_oracle_computes(name: str, lake: str) -> None:
    axes = AirportDelay.plot(name, origin="JFK")
    axes.figure.canvas.draw()

    at, values = drawn(axes)
    assert len(at) == 500
    assert (at[0], at[-1]) == (START, START + 2 * HOUR)
    assert values == pytest.approx(by_oracle(name, at))
    assert len(set(values)) > 1
    assert axes.get_title() == f"airport_delay@1: {name}"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["origin='JFK'"]
    assert axes.get_lines()[0].get_drawstyle() == "steps-post"


def test_what_is_drawn_is_what_an_export_says(lake: str, tmp_path: Path) -> None:
    at, values = drawn(AirportDelay.plot("share", origin="JFK", points=50))
    rows = spine(*[("JFK", 1, instant) for instant in at])
    exported = featurestore.export(["airport_delay.share"], rows, tmp_path / "out").to_arrow()
    assert values == exported["airport_delay.share"].to_pylist()
    assert None in values


def test_start_end_and_steps(lake: str) -> None:
    start, end = datetime.fromtimestamp((START - HOUR) / SECOND, UTC), format_instant(START + 100 * MINUTE)
    at, values = drawn(AirportDelay.plot("departures_1h", origin="JFK", start=start, end=end, every="15m"))
    assert at == [START - HOUR + step * 15 * MINUTE for step in range(11)]
    assert values[:4] == [None] * 4
    assert values[4:] == by_oracle("departures_1h", at[4:])


def test_lines_share_the_axes_that_they_are_given(lake: str) -> None:
    _, axes = pyplot.subplots()
    assert AirportDelay.plot("delay_max", origin="JFK", ax=axes) is axes
    assert AirportDelay.plot("delay_max", origin="LGA", ax=axes, start=START, end=START + HOUR) is axes
    at, values = drawn(axes)
    assert [v for v in values if v is not None] == by_oracle("delay_max", [t for t in at if t >= START + 20 * MINUTE],
                                                             "LGA")  # fmt: skip
    assert len(axes.get_lines()) == 2


def test_a_table_of_events_is_drawn_with_nothing_published() -> None:
    store = LocalStore([AirportDelay, GateUse], table_of(EVENTS))
    at, values = drawn(AirportDelay.plot("delay_mean_1h", origin="JFK", store=store))
    assert values == pytest.approx(by_oracle("delay_mean_1h", at))
    at, values = drawn(GateUse.plot("departures", {"origin": "JFK", "gate": 7}, store=store))
    assert values[0] == 1.0
    assert values[-1] == 2.0
    with pytest.raises(FeatureStoreError, match="unknown view 'shops@1'"):
        feature_view(entity=GateUse.entity, source=Departures, version=1)(type("Shops", (), {"n": agg.count()})).plot(
            "n", origin="JFK", gate=7, store=store
        )


def test_a_definition_is_drawn_before_it_is_published(lake: str) -> None:
    body = {"delay_max": agg.max(col("delay"), window="1h")}
    tried = feature_view(entity=AirportDelay.entity, source=Departures, version=9)(type("AirportDelay", (), body))
    _, values = drawn(tried.plot("delay_max", origin="JFK", every="30m"))
    assert values == [10.0, 10.0, 10.0, None, 30.0]


def test_texts_and_instants_have_axes_of_their_own(lake: str) -> None:
    axes = AirportDelay.plot("last_time", origin="JFK", points=3)
    assert np.asarray(axes.get_lines()[0].get_ydata()).astype(np.int64).tolist() == [
        START,
        START + 10 * MINUTE,
        START + 2 * HOUR,
    ]
    pyplot.close("all")

    body = {"place": agg.last(col("origin"), where=col("delay").is_null())}
    view = feature_view(entity=Entity("gate", keys={"gate": int}), source=Departures, version=1)
    axes = view(type("GatePlace", (), body)).plot("place", gate=8, start=START, every="5m")
    axes.figure.canvas.draw()
    assert drawn(axes)[1] == [None, None, 0.0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["JFK"]


def test_without_matplotlib_it_is_said_what_to_install(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(FeatureStoreError, match="matplotlib is not installed") as error:
        AirportDelay.plot("delay_max", origin="JFK")
    assert error.value.hint == "pip install 'featurestore[plot]'"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"feature": "delay_maxx"}, "unknown feature 'delay_maxx'; did you mean 'delay_max'"),
        ({"feature": "last_gates"}, "last_gates is a list, which has no place on an axis"),
        ({"origin": "JFX"}, "there are no events of origin='JFX'"),
        ({"origin": 7}, "origin is 7, expected string"),
        ({"gate": 7}, "unknown entity key 'gate'"),
        ({"start": "2024-01-01"}, "start: "),
        ({"start": START + 3 * HOUR}, "`end` is before `start`"),
        ({"end": START - 1}, "there are no events of origin='JFK' until `end`"),
        ({"points": 1}, "points is 1, expected 2 to 100,000"),
        ({"every": "1ms"}, "every is 1ms, and from start to end that is more than 100,000 points"),
        ({"every": "0s"}, "every is 0s"),
        ({"every": "soon"}, "every: 'soon' is no duration"),
    ],
)
def test_mistakes_are_named(words: dict[str, Any], says: str, lake: str) -> None:
    given = {"feature": "delay_max", "origin": "JFK"} | words
    with pytest.raises(FeatureStoreError) as error:
        AirportDelay.plot(given.pop("feature"), **given)
    assert says in str(error.value)


def test_a_source_of_which_nothing_is_published_is_named(tmp_path: Path) -> None:
    other = Source("other", topic="other", contract="other/v1", event_time="at")
    view = feature_view(entity=AirportDelay.entity, source=other, version=1)(type("Other", (), {"n": agg.count()}))
    with pytest.raises(FeatureStoreError, match="unknown contract 'other/v1'"):
        view.plot("n", origin="JFK", lake=str(tmp_path))
