"""The rows: which fault, and the scenario that brings it about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import scenarios_data as data
from tests.chaos import scenarios_kafka as kafka
from tests.chaos import scenarios_redis as redis
from tests.chaos import scenarios_rot as rot
from tests.chaos import scenarios_space as space
from tests.chaos import scenarios_workers as workers
from tests.chaos.checking import check
from tests.chaos.reading import check_answers, reading
from tests.chaos.run import Run, Site, Tally


@dataclass(frozen=True, slots=True)
class Scenario:
    row: int
    fault: str
    play: Callable[[Run], Awaitable[None]]


_ROWS = (
    Scenario(1, "worker killed (SIGKILL) in the middle of a batch", workers.killed_mid_batch),
    Scenario(2, "workers join and leave", workers.joining_and_leaving),
    Scenario(3, "zombie: frozen, or cut off from the broker, beyond its session", workers.zombie),
    Scenario(4, "broker killed and restarted", kafka.restarted),
    Scenario(5, "broker away for long", kafka.away_for_long),
    Scenario(6, "Redis killed, refusing, resetting, cutting replies, silent", redis.away),
    Scenario(8, "Redis fails over to a replica that is behind", redis.failed_over),
    Scenario(9, "Redis full", redis.full),
    Scenario(10, "Redis set to evict", redis.evicting),
    Scenario(11, "Redis emptied", redis.emptied),
    Scenario(12, "disk of the lake full", space.disk_full),
    Scenario(13, "worker killed while it appends to the lake", workers.killed_while_appending),
    Scenario(14, "a bit of a lake file flipped", rot.bits_flipped),
    Scenario(15, "a quarter of the records cannot be decoded", data.poison),
    Scenario(16, "a bad deploy: one partition's records all break the contract", data.bad_deploy),
    Scenario(17, "dead-letter topic refuses", kafka.dead_letters_refused),
    Scenario(18, "events out of order and late", data.late),
    Scenario(20, "producers with wrong clocks", data.wrong_clocks),
    Scenario(21, "quiet keys and partitions", data.quiet),
    Scenario(28, "registry away", space.registry_away),
    Scenario(33, "a flood of new keys", space.flooded_with_keys),
    Scenario(34, "rolling restart (SIGTERM)", workers.rolling_restart),
    Scenario(37, "records expired before they were read", kafka.records_expired),
    Scenario(38, "a second writer: older values put back, or a rebuild", redis.raced),
)
SCENARIOS = {scenario.row: scenario for scenario in _ROWS}


async def play(site: Site, scenario: Scenario, seed: int, *, size: float = 1.0) -> tuple[Tally, Path]:
    """One run and its check; returns what it counted and its history. AssertionError where a number is wrong."""
    async with Run(site, scenario.row, seed, size) as run, reading(run) as read:
        try:
            await scenario.play(run)
            await check(run)
            await check_answers(run, read)
            for name in list(run.workers):
                await run.terminate(name)
        except BaseException as error:
            error.add_note(f"history: {run.history}")
            raise
    return run.tally, run.history
