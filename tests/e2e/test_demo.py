"""The demo: its events, its brute force, and the whole of it on some thousand flights."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featurestore.cli.demo import definitions, stream
from featurestore.cli.demo.brute_force import APPROXIMATE, RULES, BruteForce
from featurestore.cli.demo.flights import KEYS, LABELS, events, load_flights
from featurestore.cli.demo.ledger import Account
from featurestore.cli.demo.proof import Tally, questions_now
from featurestore.cli.processes import child_environment
from featurestore.contracts.contract import Contract, load_contract
from featurestore.testing import LocalStore

SCHEMAS = Path(__file__).parents[2] / "schemas"
VIEWS: list[Any] = [
    definitions.AirportDelay,
    definitions.CarrierPunctuality,
    definitions.TailActivity,
    definitions.RouteTraffic,
]


@pytest.fixture(scope="module")
def year() -> Any:
    return load_flights()


@pytest.fixture(scope="module")
def contract() -> Contract:
    return load_contract(SCHEMAS, definitions.Departures.contract)


def test_the_year_has_every_departure_in_order(year: Any) -> None:
    assert 336_776 == len(year)
    assert year["departed_at"].is_monotonic_increasing
    assert 8_255 == year["cancelled"].sum()
    assert not year.duplicated(["departed_at", "carrier", "flight", "origin"]).any()


def test_a_flight_leaves_at_its_local_time_plus_its_delay_in_winter_and_in_summer(year: Any) -> None:
    """UA 1545 was to leave at 05:15 on 1 January and was 2 minutes late; 966 flights were to leave on 1 July."""
    first = year.iloc[0]
    local = year["departed_at"].dt.tz_convert("America/New_York") - pd.to_timedelta(year["dep_delay"].fillna(0), "min")
    summer = year[(local >= "2013-07-01") & (local < "2013-07-02")]

    assert ("UA", 1545, pd.Timestamp("2013-01-01T10:17:00Z")) == (first.carrier, first.flight, first.departed_at)
    assert 966 == len(summer)
    # Timetables are local: the first flights leave at five in the morning all year, before and after summer time.
    assert {5} == set(local[local.dt.hour > 1].dt.hour.groupby(local.dt.month).min())


def test_events_satisfy_the_contract_and_know_nothing_of_the_landing(year: Any, contract: Contract) -> None:
    table = events(contract, year.iloc[:1000])

    assert contract.names == tuple(table.column_names)
    assert not set(LABELS) & set(table.column_names)
    assert 0 == table["departed_at"].null_count
    assert int(year["dep_delay"].iloc[:1000].isna().sum()) == table["dep_delay"].null_count


def test_stages_cover_the_year_once_and_never_part_events_of_one_instant(year: Any) -> None:
    instants = year["departed_at"].to_numpy("datetime64[us]").astype(np.int64)
    for size in (1_000, 6_000, len(instants)):
        found = stream.stages(instants[:size])

        assert [0, *(stage.stop for stage in found[:-1])] == [stage.start for stage in found]
        assert size == found[-1].stop
        assert all(stage.following is not None and stage.last < stage.following for stage in found[:-1])
        assert found[-1].following is None


def test_brute_force_has_a_rule_for_every_feature() -> None:
    assert {view.name: {f.name for f in view.features} for view in VIEWS} == {
        view: set(rules) for view, (_, rules) in RULES.items()
    }
    assert {view.name: tuple(view.entity.keys) for view in VIEWS} == {view: keys for view, (keys, _) in RULES.items()}


def test_the_engine_agrees_with_brute_force_on_a_table(year: Any, contract: Contract) -> None:
    flights = year.iloc[:8_000].assign(_partition=0, _offset=range(8_000))
    store, truth = LocalStore(VIEWS, events(contract, flights), schemas=SCHEMAS), BruteForce(flights)
    rng, tally = random.Random(1), Tally()
    for later in ("0s", "20min", "3h", "40h", "-1us"):
        flight = flights.dropna().iloc[rng.randrange(7_000)]
        at, entity = flight.departed_at + pd.Timedelta(later), {key: flight[key] for key in KEYS}
        answer = store.lookup(entity, at=at.to_pydatetime())
        for feature in answer:
            tally.add(later, feature, {"engine": answer[feature]}, truth.value(feature, entity, at))

    assert [] == tally.wrong
    assert 5 * 31 == tally.cells


def _two_flights() -> Any:
    at = pd.to_datetime(["2013-01-01T12:00:00Z", "2013-01-01T12:30:00Z"]).as_unit("us")
    return pd.DataFrame(
        {
            "departed_at": at, "origin": "JFK", "dest": ["LAX", "SFO"], "carrier": "B6", "tailnum": "N1",
            "flight": [1, 2], "dep_delay": [10.0, 40.0], "distance": 2475.0, "cancelled": False, "_partition": 0,
            "_offset": [0, 1],
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("feature", "at", "expected"),
    [
        ("airport_delay.departures_1h", "2013-01-01T12:30:00Z", 2),
        ("airport_delay.departures_1h", "2013-01-01T12:29:59Z", 1),
        ("airport_delay.departures_1h", "2013-01-01T13:04:59Z", 2),  # the window begins at a multiple of 5 minutes
        ("airport_delay.departures_1h", "2013-01-01T13:05:00Z", 1),
        ("airport_delay.delay_mean_1h", "2013-01-01T12:30:00Z", 25.0),
        ("airport_delay.delay_mean_1h", "2013-01-02T12:30:00Z", 0.0),
        ("airport_delay.late_share_1h", "2013-01-01T12:30:00Z", 0.5),
        ("airport_delay.late_share_1h", "2013-01-02T12:30:00Z", None),
        ("airport_delay.delay_std_24h", "2013-01-01T12:00:00Z", None),
        ("carrier_punctuality.last_delays", "2013-01-09T00:00:00Z", [40.0, 10.0]),
        ("route_traffic.last_flight", "2013-01-09T00:00:00Z", 1),
    ],
)
def test_brute_force_on_two_flights(feature: str, at: str, expected: Any) -> None:
    entity = {"origin": "JFK", "dest": "LAX", "carrier": "B6", "tailnum": "N1"}

    assert expected == BruteForce(_two_flights()).value(feature, entity, pd.Timestamp(at))


@pytest.mark.parametrize(
    ("feature", "said", "truth", "right"),
    [
        ("airport_delay.late_1h", {"online": 3, "export": 3}, 3, True),
        ("airport_delay.late_1h", {"online": 3, "export": 4}, 3, False),
        ("airport_delay.late_1h", {"online": 3, "export": 3}, 4, False),
        ("airport_delay.late_1h", {"online": 3.0, "export": 3}, 3, False),  # of another type
        ("airport_delay.late_1h", {"online": None, "export": None}, 0, False),
        ("airport_delay.delay_mean_1h", {"online": 10.0, "export": 10.0 + 1e-10}, 10.0, True),
        ("airport_delay.delay_mean_1h", {"online": 10.0, "export": 10.0 + 1e-7}, 10.0, False),
        ("airport_delay.destinations_24h", {"online": 99, "export": 99}, 100, True),
        ("airport_delay.destinations_24h", {"online": 99, "export": 100}, 100, False),
        ("airport_delay.destinations_24h", {"online": 90, "export": 90}, 100, False),
    ],
)
def test_a_cell_is_right_only_where_every_path_says_the_same(
    feature: str, said: dict[str, Any], truth: Any, right: bool
) -> None:
    tally = Tally()
    tally.add("here", feature, said, truth)

    assert right == (not tally.wrong)
    assert 1 == tally.cells
    assert (feature in APPROXIMATE) == (feature == "airport_delay.destinations_24h")


def test_no_question_reaches_an_event_that_is_still_to_come(year: Any) -> None:
    asked = questions_now(random.Random(1), year.iloc[:5_000], 1_000_000, 91_000_000, 30)

    assert {1_000_000, 31_000_000, 90_999_999} == {question.at for question in asked}


@pytest.mark.parametrize(("late", "expected"), [(2, True), (1, False), (3, False)])
def test_an_account_adds_up_only_where_every_event_went_somewhere(late: int, expected: bool) -> None:
    account = Account("v@1", 0, published=10, applied=5, duplicate=4, late=late, dead_lettered=1, filtered=2)

    assert expected == account.balanced
    assert 14 == account.consumed


class Demo:
    """The verb as a process, with a temporary directory of its own in a path with a space."""

    def __init__(self, tmp_path: Path, *words: str) -> None:
        self.made = tmp_path / "with a space"
        self.made.mkdir()
        environment = {name: text for name, text in os.environ.items() if not name.startswith("FS_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "featurestore.cli", "demo", "--events", "3000", *words],
            cwd=self.made,
            env=child_environment(environment | {"TMPDIR": str(self.made)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""

    def read_until(self, text: str) -> None:
        assert self._process.stdout is not None
        while text not in self.said:
            line = self._process.stdout.readline()
            assert line, f"it ended without {text!r}:\n{self.said}"
            self.said += line

    def finish(self) -> int:
        assert self._process.stdout is not None
        self.said += self._process.stdout.read()
        self._process.stdout.close()
        return self._process.wait(60)

    def end(self) -> None:
        """Whatever became of the test; the demo's parts do not outlive it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def running(self) -> list[str]:
        """Processes that it started and that still run; a moment is given to the kernel."""
        pids = {pid: name for name, pid in re.findall(r"(\w+) \(pid (\d+)\)", self.said)}
        pids |= dict.fromkeys(re.findall(r"worker (\d+)", self.said), "worker")
        assert len(pids) >= 4, self.said
        deadline = time.monotonic() + 5
        while alive := [f"{name} {pid}" for pid, name in pids.items() if Path(f"/proc/{pid}").exists()]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return alive


@pytest.fixture
def run_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def run(*words: str) -> Demo:
        started.append(Demo(tmp_path, *words))
        return started[-1]

    yield run
    for demo in started:
        demo.end()


@pytest.mark.slow
def test_the_demo_proves_that_all_paths_agree_and_leaves_nothing(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo()
    code = demo.finish()

    assert 0 == code, demo.said
    cells = re.search(r"PROVED: online = export = brute force in all ([\d,]+) cells", demo.said)
    assert cells is not None, demo.said
    assert int(cells[1].replace(",", "")) >= 1_000
    assert "killed with -9" in demo.said
    assert "source lake" in demo.said
    for reason in ("empty", "future_event", "missing_field", "not_json", "wrong_type"):
        assert reason in demo.said
    assert [] == demo.running()
    assert [] == list(demo.made.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing(run_demo: Callable[..., Demo], number: int) -> None:
    demo = run_demo()
    demo.read_until("Stream, part 1")
    demo.send(number)

    assert 0 != demo.finish()
    assert "PROVED" not in demo.said
    assert [] == demo.running()
    assert [] == list(demo.made.iterdir())


@pytest.mark.slow
def test_a_kept_demo_answers_until_it_is_told_to_stop(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("--keep")
    demo.read_until("worker.log")
    command = next(line for line in demo.said.splitlines() if "curl" in line and "/v1/lookup" in line)
    answered = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True).stdout
    demo.send(signal.SIGINT)

    assert '"airport_delay.departures_24h"' in answered
    assert 0 == demo.finish(), demo.said
    assert [] == demo.running()


def test_too_few_flights_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "featurestore.cli", "demo", "--events", "10", "--directory", str(tmp_path / "d")],
        capture_output=True,
        text=True,
        env=child_environment(os.environ),
        check=False,
    )

    assert 2 == done.returncode
    assert "1000" in done.stderr
    assert not (tmp_path / "d").exists()
