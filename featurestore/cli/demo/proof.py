"""The proof: what the API answered, what an export says and what brute force finds, cell by cell."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from featurestore.cli import http
from featurestore.cli.demo.brute_force import APPROXIMATE, BruteForce
from featurestore.cli.demo.flights import KEYS
from featurestore.clock import HOUR, MINUTE, SECOND, format_instant
from featurestore.errors import FeatureStoreError, Unavailable

TOLERANCE = 1e-9
"""Relative; of float sums, whose order of addition is nobody's promise."""
ESTIMATE_SLACK, ESTIMATE_SHARE = 2, 0.05
"""How far a distinct count may be from the true one: two, or five per cent."""
LATER = (0, 30 * SECOND, 20 * MINUTE, 3 * HOUR, 26 * HOUR, 150 * HOUR)
"""How long after the newest event of all a question may ask: windows empty by themselves when nothing happens."""

_FRESH = frozenset({"ok", "default", "not_found", "expired"})
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Question:
    """The features of one flight's airport, carrier, aircraft and route at an instant (µs)."""

    entity: Mapping[str, str]
    at: int
    sources: frozenset[str]
    """Where the API may take the answer from."""


@dataclass(frozen=True, slots=True)
class Answer:
    question: Question
    values: Mapping[str, Any]
    """By `<view>.<feature>`."""
    source: str
    """`online`, `lake` or `mixed`, as the API said."""


ONLINE, PAST = frozenset({"online"}), frozenset({"lake", "mixed"})


def questions_now(rng: random.Random, flights: Any, until: int, following: int | None, count: int) -> list[Question]:
    """Questions at or after the newest event `until` (µs), about entities of `flights`, which has all events so far.

    No instant reaches `following`, the time of the first event that is still to come: so the answer of today is also
    the answer of any later export.
    """
    instants = [until + later for later in LATER if following is None or until + later < following]
    if following is not None:
        instants.append(following - 1)
    recent = max(1, len(flights) // 50)
    rows = [_pick(rng, flights.iloc[-recent:] if i % 3 else flights) for i in range(count - 1)]
    asked = [Question(row, instants[i % len(instants)], ONLINE) for i, row in enumerate(rows)]
    # Never seen, and it never will be: only the lake can say so for an instant that has passed.
    return [*asked, Question({**rows[0], "tailnum": "N00000", "dest": "XXX"}, instants[0], PAST)]


def questions_past(rng: random.Random, flights: Any, count: int) -> list[Question]:
    """Questions at an instant of the first half of `flights`, about entities that have flown since."""
    earlier, later = flights.iloc[: len(flights) // 2], flights.iloc[len(flights) // 2 :]
    instants = [_micros(earlier["departed_at"].iloc[rng.randrange(len(earlier))]) for _ in range(3)]
    return [Question(_pick(rng, later), instants[i % len(instants)], PAST) for i in range(count)]


def _pick(rng: random.Random, flights: Any) -> dict[str, str]:
    while True:
        flight = flights.iloc[rng.randrange(len(flights))]
        if not any(pd.isna(flight[key]) for key in KEYS):
            return {key: str(flight[key]) for key in KEYS}


def _micros(instant: Any) -> int:
    return int(instant.value) // 1000  # a Timestamp's value is in nanoseconds, whatever its unit


def ask(url: str, questions: Sequence[Question]) -> list[Answer]:
    """Asks the API, one request for each instant, and returns the answers in the order of the questions.

    Raises Unavailable, and FeatureStoreError where an answer does not come from where it should.
    """
    answers: dict[int, Answer] = {}
    for at, sources in dict.fromkeys((question.at, question.sources) for question in questions):
        places = [i for i, question in enumerate(questions) if (question.at, question.sources) == (at, sources)]
        said = look_up(url, [questions[i].entity for i in places], at)
        if said["source"] not in sources:
            wanted = " or ".join(sorted(sources))
            raise FeatureStoreError(
                f"at {format_instant(at)} the API answered from {said['source']}; expected {wanted}"
            )
        for place, row in zip(places, said["rows"], strict=True):
            values = dict(zip(said["features"], row["values"], strict=True))
            answers[place] = Answer(questions[place], values, said["source"])
    return [answers[i] for i in range(len(questions))]


def look_up(url: str, entities: Sequence[Mapping[str, str]], at: int | None) -> Any:
    """The API's answer, once it vouches for every value. Raises Unavailable where it does not in the end."""
    body = {
        "service": "flight_delay",
        "entities": {key: [entity[key] for entity in entities] for key in KEYS},
        "at": None if at is None else format_instant(at),
    }
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        said = http.post(f"{url}/v1/lookup", body)
        doubtful = {status for row in said["rows"] for status in _statuses(row["status"])} - _FRESH
        if not doubtful:
            return said
        if time.monotonic() > deadline:
            raise Unavailable("api", f"answers are still {', '.join(sorted(doubtful))}, although all events are in")
        time.sleep(0.2)


def _statuses(status: str | list[str]) -> list[str]:
    return [status] if isinstance(status, str) else status


def spine_of(answers: Sequence[Answer]) -> pa.Table:
    """A spine that asks an export exactly what the API was asked."""
    keys = {key: [answer.question.entity[key] for answer in answers] for key in KEYS}
    at = pa.array([answer.question.at for answer in answers], pa.timestamp("us", "UTC"))
    return pa.table({"event_time": at, **keys})


@dataclass(slots=True)
class Tally:
    """How cells compared. `exact` were equal to the bit, `close` are floats within `TOLERANCE`, `estimates` near."""

    exact: int = 0
    close: int = 0
    estimates: int = 0
    furthest: float = 0.0
    """The largest relative difference of floats."""
    widest: int = 0
    """The largest error of a distinct count."""
    wrong: list[str] = field(default_factory=list)

    @property
    def cells(self) -> int:
        return self.exact + self.close + self.estimates + len(self.wrong)

    def add(self, where: str, feature: str, values: Mapping[str, Any], truth: Any) -> None:
        """One cell: `values` are what each path says (at least one), `truth` what brute force found."""
        said = list(values.values())
        if feature in APPROXIMATE:
            error = max(abs(value - truth) for value in said)
            right = len(set(said)) == 1 and error <= max(ESTIMATE_SLACK, ESTIMATE_SHARE * truth)
            self.widest = max(self.widest, error)
            self.estimates += right
        else:
            distance = max(_distance(value, truth) for value in said)
            right = distance <= TOLERANCE
            self.furthest = max(self.furthest, distance if right else 0.0)
            self.exact += distance == 0
            self.close += right and distance > 0
        if not right:
            told = ", ".join(f"{path} {value!r}" for path, value in values.items())
            self.wrong.append(f"{feature} of {where}: {told}, brute force {truth!r}")


def _distance(value: Any, truth: Any) -> float:
    """0 for equal values of one type, a relative difference for floats, else infinite."""
    if type(value) is type(truth) and value == truth:
        return 0.0
    if type(value) is type(truth) is float:
        return abs(value - truth) / max(1.0, abs(value), abs(truth))
    return math.inf


def compare_all(answers: Sequence[Answer], exported: pa.Table, truth: BruteForce) -> Tally:
    """Every feature of every answer: online = export = brute force."""
    tally = Tally()
    rows: Iterable[Mapping[str, Any]] = exported.to_pylist()
    for answer, row in zip(answers, rows, strict=True):
        question = answer.question
        at = pd.Timestamp(question.at, unit="us", tz="UTC")
        where = f"{_named(question.entity)} at {format_instant(question.at)}"
        for feature, value in answer.values.items():
            expected = truth.value(feature, question.entity, at)
            tally.add(where, feature, {answer.source: value, "export": row[feature]}, expected)
    return tally


def compare_sample(exported: pa.Table, features: Sequence[str], truth: BruteForce, rng: random.Random,
                   count: int) -> Tally:  # fmt: skip
    """`count` random cells of a training set: export = brute force."""
    tally = Tally()
    for _ in range(count):
        place, feature = rng.randrange(exported.num_rows), rng.choice(features)
        row = exported.select([*KEYS, "event_time", feature]).slice(place, 1).to_pylist()[0]
        entity = {key: row[key] for key in KEYS}
        at = pd.Timestamp(row["event_time"]).as_unit("us")
        where = f"row {place}, {_named(entity)}"
        tally.add(where, feature, {"export": row[feature]}, truth.value(feature, entity, at))
    return tally


def _named(entity: Mapping[str, str | None]) -> str:
    return " ".join(f"{key}={value}" for key, value in entity.items())
