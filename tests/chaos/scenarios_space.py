"""Faults of what is finite or far: the lake's disk, the registry, memory."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from tests.chaos.load import Mix
from tests.chaos.run import Run, Unsupported

LAKE_MEGABYTES = 64
FLOODED_BYTES = 450 << 20
"""Resident memory of a worker with the smallest state, whatever the number of keys."""


async def disk_full(run: Run) -> None:
    """Features stay fresh while the lake has no space, and it gets every event later."""
    events = Path(run.project.lake) / "events"
    events.mkdir(parents=True)
    _mount(run, events)
    run.start("a", "b")
    run.feed(40_000, rate=1500)
    await run.flowing()
    filler = events / "filler"
    _fill(filler)
    run.note("full", disk=str(events))
    await run.until(lambda: run.anybody_said("waiting for lake"), "a worker waits for the lake")
    await run.recovered()
    await run.replace(run.rng.choice("ab"))
    await run.pause(1, 1 + 5 * run.size)
    filler.unlink()
    run.note("space again")
    await run.recovered()


def _mount(run: Run, folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={LAKE_MEGABYTES}m", "fs-chaos", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unsupported(f"a small file system cannot be mounted: {done.stderr.strip()}")
    run.afterwards(lambda: subprocess.run(["umount", "--lazy", str(folder)], check=True))


def _fill(file: Path) -> None:
    """To the last byte."""
    with file.open("wb", buffering=0) as out:
        for size in (1 << 20, 4096, 1):
            try:
                while out.write(bytes(size)):
                    pass
            except OSError:
                continue


async def registry_away(run: Run) -> None:
    """A worker that runs goes on; one that starts meanwhile waits, and works when the registry is back."""
    registry = Path(run.project.lake) / "registry"
    hidden = registry.with_name("registry-away")
    run.start("a", "b")
    run.feed(30_000, rate=1500)
    await run.flowing()
    await asyncio.to_thread(registry.rename, hidden)
    run.note("registry away")
    await run.pause(1, 2)
    await run.recovered()
    await run.replace("b")
    await run.pause(3, 3 + 6 * run.size)
    await asyncio.to_thread(hidden.rename, registry)
    run.note("registry back")
    await run.recovered()


async def flooded_with_keys(run: Run) -> None:
    """Each event has a new key, and there is memory for few: the coldest go, the values do not."""
    run.start("a", "b", FS_STATE_BYTES=str(1 << 20))
    run.feed(40_000, rate=4000, mix=Mix(users=30_000))
    await run.flowing()
    await run.fed()
    await run.recovered()
    await run.replace("a")
    run.feed(40_000, rate=4000, mix=Mix(users=30_000))
    await run.fed()
    await run.recovered()
    heaviest = run.sampler.heaviest
    assert heaviest < FLOODED_BYTES, f"a worker weighs {heaviest >> 20} MiB, with state for 1 MiB"
