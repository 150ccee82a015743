"""Faults of workers: killed, joining and leaving, frozen, cut off, restarted one after another."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from tests.chaos.run import SOURCE, Run

SESSION_SECONDS = 6
"""After which the group goes on without a member that is silent."""


async def killed_mid_batch(run: Run) -> None:
    """Now and then before a worker has even started again."""
    run.start("a", "b")
    run.feed(60_000, rate=1500)
    await run.flowing()
    for _ in range(run.many(14, 3)):
        await run.pause(0.2, 1.5)
        await run.replace(run.rng.choice("ab"))
        if run.rng.random() < 0.5:
            await run.recovered()
    await run.recovered()


async def joining_and_leaving(run: Run) -> None:
    """Every second one leaves without a word: what it had is taken over when the group has missed it."""
    run.start("a", "b", static=False)
    run.feed(40_000, rate=1500)
    await run.flowing()
    for number in range(run.many(4, 2)):
        joining = f"c{number}"
        run.start(joining, static=False)
        await run.said(joining, "worker started")
        await run.pause(0.5, 2)
        await (run.kill(joining) if number % 2 else run.terminate(joining))
        await run.recovered()


async def frozen_beyond_the_session(run: Run) -> None:
    """A zombie: the others have its partitions when it wakes up in the middle of what it did."""
    run.start("a", "zombie", static=False)
    run.feed(60_000, rate=1500)
    await run.flowing()
    await run.pause(0.5, 2)
    run.signal("zombie", signal.SIGSTOP)
    await run.pause(SESSION_SECONDS + 2, SESSION_SECONDS + 4)
    await run.recovered()
    run.signal("zombie", signal.SIGCONT)
    await run.pause(1, 2)
    await run.recovered()


async def cut_off_from_the_broker(run: Run) -> None:
    """Its Redis and its lake still answer: what it still writes must not undo what the others have written."""
    run.start("a", static=False)
    run.start("zombie", static=False, FS_KAFKA=f"127.0.0.1:{run.site.proxy.port}")
    run.feed(60_000, rate=1500)
    await run.flowing()
    await run.pause(0.5, 2)
    run.note("black hole", link="zombie to kafka")
    run.site.proxy.black_hole()
    await run.pause(SESSION_SECONDS + 2, SESSION_SECONDS + 4)
    await run.recovered()
    run.site.proxy.heal()
    await run.pause(1, 2)
    await run.recovered()


async def zombie(run: Run) -> None:
    """Odd seeds freeze the process, even ones cut off its broker."""
    await (frozen_beyond_the_session(run) if run.seed % 2 else cut_off_from_the_broker(run))


async def killed_while_appending(run: Run) -> None:
    """Between the first byte of a data file and its entry in the table's log, and right after it."""
    run.start("a")
    table = Path(run.project.lake) / "events" / SOURCE
    for _ in range(run.many(6, 2)):
        # A load for each kill: on a slow machine one for all would be over before the last of them.
        run.feed(12_000, rate=1500)
        await run.flowing()
        await asyncio.to_thread(_a_new_file, table, run.rng.choice(["**/*.parquet", "_delta_log/*.json"]))
        await run.pause(0, 0.01)
        await run.replace("a")
        await run.recovered()
        await run.fed()


def _a_new_file(folder: Path, pattern: str) -> None:
    known = set(folder.glob(pattern))
    deadline = time.monotonic() + 30
    while not set(folder.glob(pattern)) - known:
        assert time.monotonic() < deadline, f"nothing is appended to {folder}"
        time.sleep(0.002)


async def rolling_restart(run: Run) -> None:
    """SIGTERM to one after the other, each replaced before the next: a deploy."""
    run.start("a", "b")
    run.feed(30_000, rate=1500)
    await run.flowing()
    for _ in range(run.many(2)):
        for name in "ab":
            await run.terminate(name)
            run.start(name)
            await run.recovered()
