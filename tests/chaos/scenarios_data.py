"""Faults of the events themselves: not decodable, of a bad deploy, late, of wrong clocks, absent."""

from __future__ import annotations

import numpy as np

from featurestore.clock import HOUR
from tests.chaos.load import BAD_KINDS, Mix
from tests.chaos.run import SOURCE, Run


async def poison(run: Run) -> None:
    """A quarter of the records is no event; workers are killed between them."""
    run.start("a", "b")
    run.feed(30_000, rate=1500, mix=Mix(bad=0.25))
    await run.flowing()
    for _ in range(run.many(4)):
        await run.pause(0.5, 1.5)
        await run.replace(run.rng.choice("ab"))
        await run.recovered()


async def bad_deploy(run: Run) -> None:
    """Everything in one partition is refused: it stops, the others go on, and an operator gives the records up."""
    run.start("a")
    first = run.feed(8_000)
    await run.flowing()
    broken = run.rng.randrange(4)
    load = run.another(8_000)
    bad = load.partition == broken
    load.bad[bad] = run.rng.randint(1, BAD_KINDS - 1)
    run.feed_load(load)
    await run.fed()
    assert first.acknowledged > 0

    async def stopped() -> bool:
        beat = (await run.store.beats(f"intake:{SOURCE}")).get(broken)
        return beat is not None and beat.stopped.startswith("rejects")

    await run.until(stopped, "the partition stops with `rejects`")
    mark = (await run.store.intake_marks(SOURCE))[broken]
    assert mark.offset < int(np.max(load.offset[bad])), "the bad deploy's records are not dead letters yet"
    await run.terminate("a")
    run.start("a", FS_STOP_SHARE="1")
    await run.recovered()


async def late(run: Run) -> None:
    """Nine of ten events are late, by up to five hours."""
    run.start("a", "b")
    run.feed(40_000, mix=Mix(late=0.9, late_by=5 * HOUR))
    await run.flowing()
    await run.pause(0.5, 1.5)
    await run.replace("b")
    await run.recovered()


async def wrong_clocks(run: Run) -> None:
    """Half of the producers step by up to an hour, and some are in the next century."""
    run.start("a", "b")
    run.feed(30_000, mix=Mix(skew=HOUR, bad=0.03))
    await run.flowing()
    await run.pause(0.5, 1.5)
    await run.replace("a")
    await run.recovered()


async def quiet(run: Run) -> None:
    """One partition gets nothing for ever, another nothing any more: both are up to date."""
    silent = run.rng.randrange(4)
    run.start("a", "b")
    run.feed(8_000, mix=Mix(quiet_partition=silent))
    await run.flowing()
    await run.fed()
    await run.recovered()
    fallen_silent = (silent + 1) % 4
    load = run.another(8_000, Mix(quiet_partition=silent))
    run.feed_load(run.renumbered(load.where(load.partition != fallen_silent)))
    await run.replace("a")
    await run.fed()
    await run.recovered()

    async def fresh() -> bool:
        beats = await run.store.beats(f"intake:{SOURCE}")
        return len(beats) == 4 and all(beat.behind_seconds == 0 and not beat.stopped for beat in beats.values())

    await run.until(fresh, "no partition is behind")
