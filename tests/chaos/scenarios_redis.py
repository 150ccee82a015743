"""Faults of the online store: away, full, mis-set, forgetful, failed over, written to by somebody else."""

from __future__ import annotations

import asyncio
import re

from featurestore.online.health import Level
from tests.chaos.run import Run
from tests.e2e.streaming import VIEWS
from tests.parts.redis import RedisServer


async def away(run: Run) -> None:
    """Killed and restarted with its data, then refusing connections, then resetting them in the middle of replies."""
    proxy = run.redis_behind_proxy()
    run.start("a", "b")
    run.feed(40_000, rate=1500)
    await run.flowing()
    await run.killed_part(run.redis)
    await run.pause(2, 4 + 16 * run.size)
    await run.site.started(run.redis)
    await run.recovered()
    for fault in (proxy.refuse, proxy.reset, lambda: proxy.cut_after(run.rng.randrange(1, 20_000)), proxy.black_hole):
        run.note("proxy", fault=getattr(fault, "__name__", "cut_after"))
        fault()
        await run.pause(1, 3)
        proxy.heal()
        proxy.reset()
        await run.recovered()


async def failed_over(run: Run) -> None:
    """The replica that takes over never got the last writes, and the workers had them acknowledged."""
    proxy = run.redis_behind_proxy()
    run.start("a", "b")
    run.feed(40_000, rate=1500)
    await run.flowing()
    for _ in range(run.many(2)):
        master, replica = run.redis, run.another_redis()
        link = run.proxy_to(master.port)
        await run.site.started(replica)
        replica.command(f"REPLICAOF 127.0.0.1 {link.port}")
        await run.until(lambda replica=replica: _in_step(replica), "the replica follows")  # type: ignore[misc]
        await run.pause(0.5, 1)
        link.black_hole()
        run.note("black hole", link="replication")
        await run.pause(1, 2)
        async with run.loss("failover to a replica that is behind"):
            await run.killed_part(master)
            replica.command("REPLICAOF NO ONE")
            proxy.retarget(replica.port)
            await run.look_at(replica)
        await run.recovered()


async def _in_step(replica: RedisServer) -> bool:
    return b"master_link_status:up" in replica.command("INFO replication")


async def full(run: Run) -> None:
    """`noeviction` refuses writes; reads go on, and nothing is dropped."""
    run.start("a", "b")
    run.feed(40_000, rate=1500)
    await run.flowing()
    used = re.search(rb"used_memory:(\d+)", run.redis.command("INFO memory"))
    assert used is not None
    assert run.redis.command(f"CONFIG SET maxmemory {int(used[1]) + 20_000}").startswith(b"+OK")
    run.note("full")
    await run.until(lambda: run.anybody_said("waiting for redis"), "a worker waits for redis")
    assert any(await run.store.read(VIEWS[1], [f"s{n}" for n in range(20)])), "reads go on"
    await run.pause(1, 1 + 5 * run.size)
    run.redis.command("CONFIG SET maxmemory 0")
    await run.recovered()


async def evicting(run: Run) -> None:
    """Refused at the start; set while workers run, they write nothing more, and `fs doctor` finds it."""
    run.redis.command("CONFIG SET maxmemory-policy allkeys-lru")
    run.start("refused")
    refused = run.workers.pop("refused")
    assert await asyncio.to_thread(refused.wait) == 1
    assert "noeviction" in refused.log
    run.redis.command("CONFIG SET maxmemory-policy noeviction")
    run.start("a")
    run.feed(20_000)
    await run.flowing()
    run.redis.command("CONFIG SET maxmemory-policy volatile-random")
    await run.pause(0.5, 1)
    faults = [finding.check for finding in await run.store.check() if finding.level is Level.FAULT]
    assert "maxmemory-policy" in faults, faults
    await run.until(lambda: run.anybody_said("the online store is unsafe"), "the worker notices")
    run.redis.command("CONFIG SET maxmemory-policy noeviction")
    await run.recovered()


async def emptied(run: Run) -> None:
    """FLUSHALL under load: everything is replayed from the log, by itself."""
    run.start("a", "b")
    run.feed(40_000, rate=1500)
    await run.flowing()
    for _ in range(run.many(2)):
        await run.pause(1, 3)
        async with run.loss("FLUSHALL"):
            await asyncio.to_thread(run.redis.flush)
            await run.sampler.look(run.store)
        await run.recovered()


async def raced(run: Run) -> None:
    """Odd seeds by older writes, even ones by a rebuild."""
    await (raced_by_older_writes(run) if run.seed % 2 else raced_by_a_rebuild(run))


async def raced_by_a_rebuild(run: Run) -> None:
    """It is killed, then runs to its end, while events come; workers go on from what it leaves."""
    run.start("a", "b")
    run.feed(40_000, rate=1500)
    await run.flowing()
    await run.pause(2, 4)
    if run.rng.random() < 0.5:
        async with run.loss("FLUSHALL before a rebuild"):
            await asyncio.to_thread(run.redis.flush)
            await run.sampler.look(run.store)
    cut_off = await run.verb("rebuild")
    await run.pause(1, 3)
    if cut_off.returncode is None:
        run.note("killed", verb="rebuild", pid=cut_off.pid)
        run.tally.kills += 1
        cut_off.kill()
    await cut_off.communicate()
    await run.replace(run.rng.choice("ab"))
    completed = await run.verb("rebuild")
    _, said = await completed.communicate()
    assert completed.returncode == 0, said.decode()
    run.note("rebuilt")
    await run.recovered()


async def raced_by_older_writes(run: Run) -> None:
    """A second writer puts back what it once read, while workers are killed: the newer value always stands."""
    run.start("a", "b")
    run.feed(40_000, rate=1500)
    await run.flowing()
    keys = {view: [f"{letter}{n}" for n in range(40)] for view, letter in zip(VIEWS, "us", strict=True)}
    await run.pause(1, 2)
    old = {view: await run.store.read(view, keys[view]) for view in VIEWS}
    rejected = 0
    for number in range(run.many(60, 20)):
        for view in VIEWS:
            held = [(key, value) for key, value in zip(keys[view], old[view], strict=True) if value is not None]
            written = await run.store.write(view, [key for key, _ in held], [value for _, value in held])
            rejected += written.older
        if number % 15 == 5:
            await run.replace(run.rng.choice("ab"))
        if number % 7 == 6:
            old = {view: await run.store.read(view, keys[view]) for view in VIEWS}
        await run.pause(0.02, 0.2)
    run.note("older writes", rejected=rejected)
    assert rejected > 0
    await run.recovered()
