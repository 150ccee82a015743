"""What must be true when all is quiet again. Values are the oracle's to judge, which shares no code with the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from featurestore.offline.events import events_table
from featurestore.online.fences import LEDGER
from streams.shuffle import OFFSET, PARTITION
from tests.e2e.streaming import TOPIC, VIEWS, Sent, assert_oracle
from tests.simulation.events import PARTITIONS, SHUFFLE
from tests.simulation.visible import check_visible, unrecorded
from tests.simulation.worker import SimulatedWorker, Site
from tests.simulation.world import Violation


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


async def is_quiet(site: Site, records: Sequence[Sent]) -> bool:
    """Whether every record has reached every sink, by what the sinks say of themselves."""
    store = site.redis.client()
    ends = {p: len(records) - 1 for p, records in enumerate(site.log.topics[TOPIC])}
    recorded = site.lake.marks[events_table(TOPIC)]
    if any(recorded.get(f"{TOPIC}/{p}", -1) < end for p, end in ends.items()):
        return False
    shuffled = {p: len(records) - 1 for p, records in enumerate(site.log.topics.get(SHUFFLE, ()))}
    for view, last in zip(VIEWS, (ends, shuffled), strict=True):
        fences = await store.fences(view)
        if any(end >= 0 and (p not in fences or fences[p].offset < end) for p, end in last.items()):
            return False
    return not any(unrecorded(site, site.catalog.view(view), records) for view in VIEWS)


async def check(
    site: Site, records: Sequence[Sent], loaded: Sequence[Sent], workers: Sequence[SimulatedWorker], *, refilled: bool
) -> None:
    """Raises AssertionError that says what is wrong. `loaded` is history that every view holds; `refilled` says that
    there were backfills."""
    for worker in workers:
        for pump in worker.pumps:
            require(not pump.stopped, f"{worker.name} stopped {dict(pump.stopped)}")
    store = site.redis.client()
    _check_lake(site, [*records, *loaded])
    _check_letters(site, records)
    for view in VIEWS:
        await _check_ledger(site, view, records)
        await assert_oracle(store, site.catalog.view(view), [*records, *loaded])
        check_visible(site, site.catalog.view(view), records, refilled=refilled)


def _check_lake(site: Site, records: Sequence[Sent]) -> None:
    tables = site.lake.tables[events_table(TOPIC)]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    found = Counter((row[PARTITION], row[OFFSET]) for row in rows)
    sent = Counter((r.partition, r.offset) for r in records if r.event is not None)
    require(sent == found, f"the lake lacks {dict(sent - found)} and has too many of {dict(found - sent)}")


def _check_letters(site: Site, records: Sequence[Sent]) -> None:
    letters = {
        (int(headers["fs.partition"]), int(headers["fs.offset"]), letter.key, letter.value)
        for partition in site.log.topics.get(f"{TOPIC}.dlq", ())
        for letter in partition
        for headers in [dict(letter.headers)]
    }
    poison = {(r.partition, r.offset, r.key, r.value) for r in records if r.event is None}
    require(poison == letters, f"dead letters missing: {poison - letters}, of no poison: {letters - poison}")


async def _check_ledger(site: Site, view: str, records: Sequence[Sent]) -> None:
    total: Counter[tuple[int, str]] = Counter()
    for fence in (await site.redis.client().fences(view)).values():
        for partition, counts in fence.ledger.items():
            total.update({(partition, name): n for name, n in zip(LEDGER, counts, strict=True)})
            site.world.counts["duplicates dropped"] += counts[LEDGER.index("duplicate")]
            require(counts[0] == sum(counts[1:]), f"{view}: the ledger of partition {partition} is {counts}")
    for p in range(PARTITIONS):
        events = sum(r.event is not None for r in records if r.partition == p)
        once = total[p, "consumed"] - total[p, "duplicate"]
        require(events == once, f"{view}: partition {p} had {events} events, and its ledger counts {once}: {total}")
