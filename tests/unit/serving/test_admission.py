"""Who is let in, who waits, and who is refused: order, bounds, and that no room is ever lost."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest

from featurestore import telemetry
from featurestore.serving.admission import (
    CLASSES,
    LEAST_AT_ONCE,
    MEASURE_SECONDS,
    READING_BYTES,
    REFUSED_PER_TURN,
    Admission,
    Limits,
    cost_of,
    patience_of,
    rank_of,
)
from featurestore.serving.problems import Problem, Refused

CRITICAL, NORMAL, BATCH = range(3)
LONG = 30.0


def admission(*, at_once: int = 10, waiting: int = 100, wait_seconds: float = LONG, per_caller: int = 0) -> Admission:
    return Admission(Limits(at_once, waiting, wait_seconds, per_caller))


def fill(gate: Admission) -> int:
    """Takes all the room there is; how many lookups that were."""
    taken = 0
    while gate.takes(CRITICAL, 1):
        taken += 1
    return taken


class Crowd:
    """Lookups that wait, by the name the test gives them."""

    def __init__(self, gate: Admission) -> None:
        self.gate = gate
        self.let_in: list[str] = []
        self.refused: dict[str, Problem] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def comes(self, name: str, rank: int = NORMAL, cost: int = 1, patience: float | None = None) -> None:
        self.tasks[name] = asyncio.ensure_future(self._wait(name, rank, cost, patience))
        await asyncio.sleep(0)

    async def _wait(self, name: str, rank: int, cost: int, patience: float | None) -> None:
        try:
            await self.gate.turn(rank, cost, patience)
            self.let_in.append(name)
        except Refused as refused:
            self.refused[name] = refused.problem

    async def leaves(self, cost: int = 1) -> None:
        self.gate.leave(cost)
        await asyncio.sleep(0)


@pytest.fixture
async def full() -> AsyncIterator[Crowd]:
    """Ten lookups run, and nobody waits yet."""
    gate = admission()
    assert fill(gate) == 10
    crowd = Crowd(gate)
    yield crowd
    for task in crowd.tasks.values():
        task.cancel()
    await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)


def shed(kind: str, reason: str) -> float:
    labels = {"class": kind, "reason": reason}
    return telemetry.REGISTRY.get_sample_value("fs_lookups_shed_total", labels) or 0.0


@pytest.mark.parametrize(("rank", "room"), [(CRITICAL, 100), (NORMAL, 90), (BATCH, 50)])
async def test_each_class_leaves_room_for_those_before_it(rank: int, room: int) -> None:
    gate = admission(at_once=100)
    taken = 0
    while gate.takes(rank, 1):
        taken += 1

    assert taken == room
    assert (gate.running, gate.takes(CRITICAL, 1)) == (room, rank != CRITICAL)


async def test_a_large_lookup_counts_by_its_size_and_is_let_in_where_any_room_is_left() -> None:
    gate = admission(at_once=10)

    assert (1, 1, 2, 4097) == (cost_of(0), cost_of(255), cost_of(256), cost_of(1 << 20))
    assert gate.takes(CRITICAL, 4097)
    assert not gate.takes(CRITICAL, 1)
    gate.leave(4097)
    assert gate.takes(CRITICAL, 1)


async def test_the_newest_goes_first(full: Crowd) -> None:
    for name in ("first", "second", "third"):
        await full.comes(name)
    for _ in range(4):  # one more than the share that is kept for critical ones
        await full.leaves()

    assert ["third", "second", "first"] == full.let_in


async def test_a_class_that_matters_more_goes_first_whenever_it_came(full: Crowd) -> None:
    await full.comes("critical", CRITICAL)
    await full.comes("normal", NORMAL)
    await full.comes("batch", BATCH)
    for _ in range(3):
        await full.leaves()
    assert ["critical", "normal"] == full.let_in

    for _ in range(6):  # batch may fill half of the room only
        await full.leaves()
    assert ["critical", "normal", "batch"] == full.let_in


async def test_who_waited_too_long_is_refused_and_told_when_to_come_back() -> None:
    gate = admission(wait_seconds=0.01)
    fill(gate)
    before = shed("batch", "waited")
    with pytest.raises(Refused) as caught:
        await gate.turn(BATCH, 1)

    problem = caught.value.problem
    assert (503, "overloaded", (("retry-after", "1"),)) == (problem.status, problem.code, problem.headers)
    assert shed("batch", "waited") - before == 1
    assert (gate.waiting, gate.running) == (0, 10)


async def test_who_has_less_time_than_that_is_refused_when_it_is_over(full: Crowd) -> None:
    before = shed("normal", "budget")
    with pytest.raises(Refused, match="X-Budget-Ms"):
        await full.gate.turn(NORMAL, 1, 0.001)

    assert shed("normal", "budget") - before == 1
    assert full.gate.waiting == 0


async def test_a_full_queue_gives_up_who_waited_longest_in_the_class_that_matters_least() -> None:
    gate = admission(waiting=3)
    fill(gate)
    crowd = Crowd(gate)
    for name, rank in (("batch 1", BATCH), ("batch 2", BATCH), ("normal", NORMAL), ("critical", CRITICAL)):
        await crowd.comes(name, rank)
    await asyncio.wait([crowd.tasks["batch 1"]])
    assert ["batch 1"] == list(crowd.refused)

    await crowd.comes("normal 2", NORMAL)
    await asyncio.wait([crowd.tasks["batch 2"]])
    await crowd.comes("normal 3", NORMAL)
    await asyncio.wait([crowd.tasks["normal"]])
    assert ["batch 1", "batch 2", "normal"] == list(crowd.refused)

    await crowd.comes("batch 3", BATCH)
    await asyncio.wait([crowd.tasks["batch 3"]])
    assert crowd.refused["batch 3"].detail == "too many lookups wait already"
    assert gate.waiting == 3


async def test_the_queue_is_bounded_by_size_as_well_as_by_number() -> None:
    gate = admission(waiting=100)
    fill(gate)
    crowd = Crowd(gate)
    for number in range(10):
        await crowd.comes(str(number), cost=20)

    assert gate.waiting == 5
    await asyncio.wait([crowd.tasks[str(number)] for number in range(5)])
    assert ["0", "1", "2", "3", "4"] == list(crowd.refused)
    for task in crowd.tasks.values():
        task.cancel()


async def test_a_lookup_that_is_larger_than_the_queue_waits_where_nobody_else_does() -> None:
    gate = admission(waiting=10)
    fill(gate)
    crowd = Crowd(gate)
    await crowd.comes("huge", cost=4097)
    assert gate.waiting == 1
    for _ in range(2):
        await crowd.leaves()

    assert ["huge"] == crowd.let_in


async def test_refusals_are_told_a_few_at_a_time_in_order() -> None:
    """Whoever is refused at once asks again at once, and refusals then take the time that answers need."""
    gate = admission(at_once=100)
    tasks = [asyncio.ensure_future(gate.refuse(NORMAL, "queue_full")) for _ in range(50)]
    for _ in range(3):
        await asyncio.sleep(0)
    told = [task.done() for task in tasks]
    assert 1 <= sum(told) <= 1 + 3 * 100 * REFUSED_PER_TURN
    assert told == sorted(told, reverse=True)

    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert {Refused} == {type(answer) for answer in answers}


async def test_a_cancelled_lookup_no_longer_waits(full: Crowd) -> None:
    await full.comes("gone")
    await full.comes("there")
    full.tasks["there"].cancel()
    full.tasks["gone"].cancel()
    await full.leaves()  # before their tasks have heard of it
    await full.leaves()
    await asyncio.sleep(0)

    assert [] == full.let_in
    assert (0, 8) == (full.gate.waiting, full.gate.running)


async def test_room_is_given_back_by_a_lookup_that_is_cancelled_just_when_it_is_let_in(full: Crowd) -> None:
    await full.comes("unlucky", CRITICAL)
    full.gate.leave(1)
    full.tasks["unlucky"].cancel()
    await asyncio.wait([full.tasks["unlucky"]])

    assert [] == full.let_in
    assert full.gate.running == 9
    assert full.gate.takes(CRITICAL, 1)
    assert not full.gate.takes(CRITICAL, 1)


async def test_a_quota_binds_its_caller_only_and_ends_with_its_lookups() -> None:
    gate = admission(per_caller=2)
    with (
        gate.counted("a") as first,
        gate.counted("a") as second,
        gate.counted("a") as third,
        gate.counted("b") as other,
    ):
        assert (True, True, False, True) == (first, second, third, other)
    with gate.counted("a") as again:
        assert again
    assert not gate._callers

    before = shed("normal", "quota")
    with pytest.raises(Refused) as caught:
        await gate.refuse(NORMAL, "quota")
    problem = caught.value.problem
    assert (429, "quota_spent", (("retry-after", "1"),)) == (problem.status, problem.code, problem.headers)
    assert shed("normal", "quota") - before == 1


def test_bodies_that_arrive_in_pieces_share_a_bound() -> None:
    gate = admission()
    with gate.reading(READING_BYTES - 1) as first, gate.reading(1) as second, gate.reading(1) as third:
        assert (True, True, False) == (first, second, third)
    with gate.reading(READING_BYTES) as again:
        assert again


@pytest.mark.parametrize("value", [b"urgent", b"", b"\xff", b"critical,batch"])
def test_a_class_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(Refused) as caught:
        rank_of(value)
    assert (422, "X-Request-Class") == (caught.value.problem.status, caught.value.problem.field)


def test_classes_are_read_in_any_case() -> None:
    assert [0, 1, 2] == [rank_of(name.upper().encode() + b" ") for name in CLASSES]


@pytest.mark.parametrize("value", [b"", b"soon", b"0", b"-1", b"nan", b"inf", b"1e999", b"\xff"])
def test_a_budget_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(Refused) as caught:
        patience_of(value)
    assert (422, "X-Budget-Ms") == (caught.value.problem.status, caught.value.problem.field)


def test_a_budget_is_read_as_milliseconds() -> None:
    assert patience_of(b"20.5") == 0.0205


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_no_room_is_lost_and_no_bound_is_passed(seed: int) -> None:
    rng = random.Random(seed)
    gate = admission(at_once=200, waiting=300, wait_seconds=0.005)
    largest = 50
    running, most_waiting = 0, 0

    async def lookup(rank: int, cost: int) -> None:
        nonlocal running
        if not gate.takes(rank, cost):
            await gate.turn(rank, cost, rng.choice([None, 0.001, 0.02]))
        running += cost
        try:
            assert running < 200 + largest
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
        finally:
            running -= cost
            gate.leave(cost)

    tasks = []
    for _ in range(1_500):
        tasks.append(asyncio.ensure_future(lookup(rng.randrange(3), rng.randint(1, largest))))
        if rng.random() < 0.3:
            rng.choice(tasks[-20:]).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        most_waiting = max(most_waiting, gate.waiting)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    kinds = {type(result) for result in results}
    assert {type(None), Refused, asyncio.CancelledError} == kinds
    assert 0 < most_waiting <= 300
    assert (0, 0, 0) == (gate.running, gate.waiting, running)
    assert (gate.limit, False) == (fill(gate), gate.takes(CRITICAL, 1))


def _spin(seconds: float) -> None:
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        pass


async def test_fewer_run_at_a_time_while_the_processor_is_slow_and_more_again_afterwards() -> None:
    gate = admission(at_once=100)
    assert fill(gate) == 100
    crowd = Crowd(gate)
    await crowd.comes("during a busy time")
    _spin(1.1 * MEASURE_SECONDS)
    await asyncio.sleep(0.01)
    assert gate.limit == 50

    async with asyncio.timeout(30):
        while gate.limit < 90:
            await crowd.comes("during a quiet time")
            await asyncio.sleep(MEASURE_SECONDS)
    for _ in range(100):
        gate.leave(1)
    await asyncio.gather(*crowd.tasks.values())
    assert (0, crowd.refused) == (gate.waiting, {})


async def test_a_limit_that_falls_leaves_something_to_run() -> None:
    gate = admission(at_once=8)
    fill(gate)
    crowd = Crowd(gate)
    async with asyncio.timeout(30):
        for number in range(3):
            await crowd.comes(str(number))
            _spin(1.1 * MEASURE_SECONDS)
            await asyncio.sleep(0.01)

    assert gate.limit == LEAST_AT_ONCE
    for _ in range(8):
        gate.leave(1)
    await asyncio.gather(*crowd.tasks.values())
    assert {"0", "1", "2"} == set(crowd.let_in)
