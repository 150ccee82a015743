"""The golden law from topic to answer: online = lake = export = oracle, through real parts, also when killed."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from featurestore.clock import SystemClock, from_datetime, parse_instant
from streams.embedded import PARTITIONS, EmbeddedBroker
from streams.folding import Count, totals
from tests.e2e.golden import SHAPES, Answer, Golden, cut, shuffled
from tests.e2e.golden_streams import Case, Key, newest_allowed, random_case
from tests.e2e.golden_views import FEATURES, VIEWS
from tests.oracle.compare import assert_same
from tests.oracle.meaning import DAY, HOUR, MINUTE, Value, latest_time, status_of
from tests.oracle.streams import ANCHORS
from tests.parts.kafka import KafkaServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

INSTANTS = 12
ROWS = 8
_DUE = {f.name for f in FEATURES if f.column == "due"}
_OPS = {f.name: f.op for f in FEATURES} | {"per_event": "derived", "scaled": "derived"}
_INPUTS = {"per_event": ("total", "events"), "scaled": ("std_score", "events")}


def cases_of(tier: str, seed: int, anchors: Sequence[int], create: Callable[[str, int], None]) -> list[Case]:
    """One case per anchor, and one around the present; on a real broker with different numbers of partitions."""
    now = SystemClock().now()
    counts = {"embedded": (PARTITIONS,) * 3, "kafka": (3, 1, 5)}[tier]
    cases = [
        random_case(
            f"c{i}", f"golden.{tier}.{seed}.{i}", seed + i, anchor=anchor, partitions=counts[i],
            lateness=(0, HOUR, 0)[i], newest=newest_allowed(now),
        )
        for i, anchor in enumerate((*anchors, now))
    ]  # fmt: skip
    for case in cases:
        create(case.topic, case.partitions)
    return cases


def run_steadily(golden: Golden, rng: random.Random) -> None:
    """One worker, which is left alone."""
    golden.start_worker("a")
    golden.publish(cut(shuffled(golden.cases, rng), 3))
    golden.settle()


def run_with_kills(golden: Golden, rng: random.Random) -> None:
    """Two workers; every part of the stream meets a SIGKILL, and one of the workers does not come back."""
    first, second, third = cut(shuffled(golden.cases, rng), 3)
    golden.start_worker("a")
    publish_and_kill(golden, rng, first, "a", golden.restart_worker)
    golden.start_worker("b")
    golden.until_beating(SystemClock().now())
    publish_and_kill(golden, rng, second, "b", golden.kill_worker)
    publish_and_kill(golden, rng, third, "a", golden.restart_worker)
    golden.settle()


def publish_and_kill(golden: Golden, rng: random.Random, part: Any, name: str, kill: Callable[[str], None]) -> None:
    """Kills somewhere between the first effect of the part and some hundred effects later."""
    before = golden.applied()
    golden.publish([part])
    golden.until_applied(before + rng.randrange(1000))
    kill(name)


RUNS: Mapping[str, tuple[int, tuple[int, int], dict[str, str], Callable[[Golden, random.Random], None]]] = {
    "steady": (100, (ANCHORS[0], ANCHORS[2]), {}, run_steadily),
    "killed": (
        200, (ANCHORS[1], ANCHORS[3]), {"FS_BATCH_RECORDS": "20", "FS_STATE_BYTES": str(1 << 20)}, run_with_kills,
    ),
}  # fmt: skip


class Broker:
    """An address, and how a topic is made there."""

    def __init__(self, tier: str, bootstrap: str, create: Callable[[str, int], None]) -> None:
        self.tier, self.bootstrap, self.create = tier, bootstrap, create


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "kafka":
        kafka: KafkaServer = request.getfixturevalue("kafka")
        yield Broker("kafka", kafka.bootstrap, lambda topic, count: kafka.create_topic(topic, partitions=count))
        return
    with EmbeddedBroker() as embedded:
        yield Broker("embedded", embedded.bootstrap, lambda topic, count: None)


@pytest.fixture(scope="module", params=list(RUNS))
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def golden(broker: Broker, how: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    """Streams that went through everything and came to rest; the API and a worker still run."""
    seed, anchors, environment, run = RUNS[how]
    cases = cases_of(broker.tier, seed, anchors, broker.create)
    directory: Path = tmp_path_factory.mktemp("golden")
    with Golden(broker.bootstrap, directory, cases, **environment) as running:
        run(running, random.Random(seed))
        yield running


class Truth:
    """The oracle's answers for a case, each computed once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.expected = cache(self._expected)

    def _expected(
        self, view: str, key: tuple[Any, ...], at: int
    ) -> tuple[dict[str, Value], dict[str, float], dict[str, str]]:
        mine = self.case.of(view, dict(zip(VIEWS[view].keys, key, strict=True)))
        values, sizes = VIEWS[view].expected(mine, at)
        statuses = {f.name: status_of(f, mine, at) for f in VIEWS[view].features}
        for name, inputs in _INPUTS.items():
            statuses[name] = worst(statuses[feature] for feature in inputs)
        return values, sizes, statuses

    def assert_row(self, row: Key, at: int, values: Mapping[str, Any], statuses: Mapping[str, str], label: str) -> None:
        """Every value of every view, and what it is said to be worth; timestamps as µs."""
        seen = 0
        for view, spec in VIEWS.items():
            expected, sizes, worth = self.expected(view, tuple(row[name] for name in spec.keys), at)
            for name, value in expected.items():
                full = f"{self.case.name}_{view}.{name}"
                where = f"{label} {full} {row} at {at}"
                assert_value(value, values[full], _OPS[name], sizes.get(name, 0.0), where)
                assert worth[name] == statuses[full], where
                seen += 1
        assert seen == len(values) == len(statuses)

    def online(self, row: Key, at: int, now: int) -> bool | None:
        """Whether the online state owes the row's answer; None where it depends on the very instant."""
        latest = [latest_time(self.case.of(view, row)) for view, spec in VIEWS.items() if _keyed(row, spec.keys)]
        if any(when is None for when in latest):
            if abs(at - now) < 5 * MINUTE:
                return None
            if at < now:
                return False
        return all(when is None or when <= at for when in latest)


def _keyed(row: Key, keys: Sequence[str]) -> bool:
    return all(row[key] is not None for key in keys)


def worst(statuses: Iterator[str]) -> str:
    found = set(statuses)
    return next((status for status in ("not_found", "expired", "default") if status in found), "ok")


def assert_value(expected: Value, got: Any, op: str, size: float, where: str) -> None:
    if op != "approx_distinct":
        assert_same(expected, got, op, magnitude=size, label=where)
        return
    assert type(got) is int
    assert isinstance(expected, int)
    assert abs(expected - got) <= 1 + expected // 10, f"{where}: expected about {expected}, got {got}"


def looked_up(answer: Answer) -> list[dict[str, Any]]:
    """Values with timestamps as µs."""
    return [{n: parse_instant(v) if is_due(n) and v else v for n, v in row.items()} for row in answer.values]


def is_due(feature: str) -> bool:
    return feature.partition(".")[2] in _DUE


def source_of(online: Sequence[bool | None]) -> str | None:
    if None in online:
        return None
    return "online" if all(online) else "mixed" if any(online) else "lake"


def test_lookups_and_exports_are_the_oracles_values_at_any_instant(golden: Golden) -> None:
    sources: Counter[str] = Counter()
    for case in golden.cases:
        truth, rng, now = Truth(case), random.Random(case.name), SystemClock().now()
        spine: list[tuple[Key, int]] = []
        online: list[dict[str, Any]] = []
        for at in case.instants(rng, INSTANTS):
            rows = rng.sample(case.rows(), ROWS)
            shape = rng.choice(list(SHAPES))
            answer = golden.lookup(case, rows, at, shape)
            owed = source_of([truth.online(row, at, now) for row in rows])
            assert answer.source == owed or owed is None, f"{case.name} at {at}"
            assert parse_instant(answer.at) == at
            values = looked_up(answer)
            for row, told, statuses in zip(rows, values, answer.statuses, strict=True):
                truth.assert_row(row, at, told, statuses, f"{shape}, {answer.source}")
            spine += [(row, at) for row in rows]
            online += values
            sources[answer.source] += 1
        assert_export(golden, truth, spine, online)
    assert {"online", "lake", "mixed"} >= set(sources)
    assert sources["mixed"] + sources["lake"] > 0


def assert_export(golden: Golden, truth: Truth, spine: Sequence[tuple[Key, int]], online: list[dict[str, Any]]) -> None:
    """The export of the same keys and instants: the oracle's values, and the same estimates as online."""
    exported = golden.export(truth.case, [row for row, _ in spine], [at for _, at in spine]).to_pylist()
    assert len(exported) == len(spine)
    for (row, at), told, asked in zip(spine, exported, online, strict=True):
        assert {name: told[name] for name in row} == row
        values = {n: from_datetime(told[n]) if is_due(n) and told[n] else told[n] for n in asked}
        truth.assert_row(row, at, values, {name: told[f"{name}__status"] for name in asked}, "export")
        estimates = [n for n in asked if _OPS[n.partition(".")[2]] == "approx_distinct"]
        assert {n: asked[n] for n in estimates} == {n: values[n] for n in estimates}


def test_entities_are_answered_online_from_their_latest_event_on(golden: Golden) -> None:
    """Rows of which every view has seen the entity need no lake."""
    answered = 0
    for case in golden.cases:
        truth = Truth(case)
        latest = latest_time(case.events)
        assert latest is not None
        known = [row for row in case.rows() if all(case.of(view, row) for view in VIEWS)]
        for at in (latest, latest + 10 * MINUTE, latest + 25 * HOUR):
            answer = golden.lookup(case, known, at)
            assert answer.source == "online"
            for row, values, statuses in zip(known, looked_up(answer), answer.statuses, strict=True):
                truth.assert_row(row, at, values, statuses, "online")
            answered += len(known)
    assert answered > 100


def test_everything_applied_so_far_is_the_oracles_value_at_the_later_of_now_and_the_latest_event(
    golden: Golden,
) -> None:
    ahead = 0
    for case in golden.cases:
        truth, rows = Truth(case), random.Random(1).sample(case.rows(), 30)
        before = SystemClock().now()
        answer = golden.lookup(case, rows, None)
        now = parse_instant(answer.at)
        assert before <= now <= SystemClock().now()
        assert answer.source == "online"
        for row, values, statuses in zip(rows, looked_up(answer), answer.statuses, strict=True):
            for view, spec in VIEWS.items():
                at = max(now, latest_time(case.of(view, row)) or now)
                ahead += at > now
                expected, sizes, worth = truth.expected(view, tuple(row[name] for name in spec.keys), at)
                for name, value in expected.items():
                    full = f"{case.name}_{view}.{name}"
                    assert_value(value, values[full], _OPS[name], sizes.get(name, 0.0), f"now {full} {row}")
                    assert worth[name] == statuses[full], full
    assert ahead > 0


def test_every_record_is_accounted_for(golden: Golden, how: str) -> None:
    late = duplicates = 0
    for case in golden.cases:
        assert_intake_ledger(golden, case)
        for view in golden.views(case):
            spec = VIEWS[view.name.removeprefix(f"{case.name}_")]
            fences = golden.fences(view).values()
            for p in range(case.partitions):
                events = [e for e in case.events if e["partition"] == p]
                ledger = sum((totals({p: f.ledger[p]}) for f in fences if p in f.ledger), start=totals({}))
                assert ledger[Count.CONSUMED] == ledger[1:].sum()
                assert ledger[Count.CONSUMED] - ledger[Count.DUPLICATE] == len(events), f"{view.id}/{p}"
                assert ledger[Count.FILTERED] == sum(not spec.takes(e) for e in events)
                assert ledger[Count.DEAD_LETTERED] == 0
                assert ledger[Count.LATE] <= sum(is_old(case, view.name, e) for e in events)
                late += int(ledger[Count.LATE])
                duplicates += int(ledger[Count.DUPLICATE])
    assert late > 0
    assert (duplicates > 0) == (how == "killed")


def is_old(case: Case, view: str, event: dict[str, Any]) -> bool:
    """Whether no window of the entity may hold the event any longer once all has arrived."""
    spec_name = view.removeprefix(f"{case.name}_")
    if not VIEWS[spec_name].takes(event):
        return False
    latest = latest_time(case.of(spec_name, event))
    return latest is not None and bool(event["event_time"] < latest - DAY - case.lateness)


def assert_intake_ledger(golden: Golden, case: Case) -> None:
    marks = golden.marks(case)
    for p in range(case.partitions):
        records = [record for record in case.records if record.partition == p]
        refused = Counter(record.reason for record in records if record.event is None)
        expected = {"consumed": len(records), "forwarded": len(records) - refused.total()}
        expected |= {"dead_lettered": refused.total(), **refused}
        assert expected == {n: count for n, count in marks[p].ledger.items() if count or n in expected}, (
            f"{case.name}/{p}"
        )


def test_every_record_that_is_no_event_is_a_dead_letter_as_it_was(golden: Golden, how: str) -> None:
    for case in golden.cases:
        bad = Counter((r.partition, r.offset, r.reason, r.key, r.value) for r in case.records if r.event is None)
        letters = Counter((f.partition, f.offset, f.reason, f.key, f.value) for f in golden.letters(case))
        assert set(bad) == set(letters)
        assert how == "killed" or bad == letters


def test_a_worker_that_is_told_to_end_drains(golden: Golden) -> None:
    """The last of this module: it ends the worker."""
    assert golden.drain_worker("a") == 0
