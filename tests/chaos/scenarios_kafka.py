"""Faults of the broker and of what it keeps."""

from __future__ import annotations

import asyncio

import numpy as np
from confluent_kafka import TopicPartition
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from tests.chaos.checking import settle
from tests.chaos.load import Mix
from tests.chaos.run import SOURCE, Run, joined


async def restarted(run: Run) -> None:
    """SIGKILL and a new process on the same data, under load."""
    run.start("a", "b")
    run.feed(40_000, rate=1500)
    await run.flowing()
    for _ in range(run.many(2)):
        await run.pause(0.5, 2)
        await run.killed_part(run.site.kafka)
        await run.site.started(run.site.kafka)
        await run.recovered()


async def away_for_long(run: Run) -> None:
    run.start("a", "b")
    run.feed(40_000, rate=500)
    await run.flowing()
    await run.killed_part(run.site.kafka)
    await asyncio.sleep(max(8, 60 * run.size))
    assert all(worker.alive() for worker in run.workers.values())
    await run.site.started(run.site.kafka)
    await run.recovered()


async def dead_letters_refused(run: Run) -> None:
    """An ACL forbids writes to the dead-letter topic: work that needs it waits, and says so."""
    dead = f"{run.topic}.dlq"
    await asyncio.to_thread(run.site.kafka.create_topic, dead)
    run.start("a", "b")
    run.feed(40_000, rate=1500, mix=Mix(bad=0.03))
    await run.flowing()
    for kind in (AclPermissionType.ALLOW, AclPermissionType.DENY):
        await asyncio.to_thread(_rule, run, dead, kind)
    run.note("refusing", topic=dead)
    await run.until(lambda: run.seen_in_beats("waiting", "dlq"), "a beat says that work waits for dlq")
    await run.pause(1, 3)
    await asyncio.to_thread(_no_rules, run, dead)
    await run.recovered()


def _rule(run: Run, topic: str, kind: AclPermissionType) -> None:
    """Everybody may do everything with it, but not write."""
    operation = AclOperation.WRITE if kind is AclPermissionType.DENY else AclOperation.ALL
    rule = AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:*", "*", operation, kind)
    for future in run.site.kafka.admin.create_acls([rule]).values():
        future.result(timeout=30)


def _no_rules(run: Run, topic: str) -> None:
    rules = AclBindingFilter(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:*", "*", AclOperation.ANY, AclPermissionType.ANY
    )
    for future in run.site.kafka.admin.delete_acls([rules]).values():
        future.result(timeout=30)


async def records_expired(run: Run) -> None:
    """Retention overtakes a worker that was away: its partition stops before the hole, the others go on."""
    run.start("a")
    run.feed(8_000)
    await settle(run)
    before = joined(run.loads)
    await run.terminate("a")
    run.feed(8_000)
    await run.fed()
    lost = run.rng.randrange(4)
    after = run.loads[-1]
    mine = after.offset[after.partition == lost]
    hole = int(mine[run.rng.randrange(1, mine.size)])
    await asyncio.to_thread(_delete, run, lost, hole)
    run.stopped = frozenset({lost})
    run.kept = joined([before, after.where(after.partition != lost)])
    run.note("deleted", partition=lost, before_offset=hole, wanted=int(mine[0]))
    run.start("a")

    async def stopped() -> bool:
        beat = (await run.store.beats(f"intake:{SOURCE}")).get(lost)
        return beat is not None and beat.stopped.startswith("gap")

    await run.until(stopped, "the partition stops with `gap`")
    await settle(run)
    mark = (await run.store.intake_marks(SOURCE))[lost]
    assert mark.offset == int(np.max(before.offset[before.partition == lost])), "nothing was read beyond the hole"


def _delete(run: Run, partition: int, before: int) -> None:
    wanted = [TopicPartition(run.topic, partition, before)]
    for future in run.site.kafka.admin.delete_records(wanted).values():
        future.result(timeout=30)
