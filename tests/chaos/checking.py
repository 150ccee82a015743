"""Is any number wrong? Asked after a run, of everything that was stored, without the engine's help.

What was sent is compared with the ledgers, every row of the lake, the dead letters and the values; a sample of the
values is computed anew by the oracle, and every shop's lifetime count by NumPy.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from featurestore.definitions.compiled import CompiledView
from featurestore.engine.read import ViewReader
from streams.folding import Count
from tests.chaos.load import SHOPS, Load
from tests.chaos.run import PATIENCE_SECONDS, SOURCE, Run
from tests.e2e.streaming import PARTITIONS, VIEWS, assert_oracle, dead_letters, folded

ENTITIES = 10
"""Of each view, that the oracle computes."""
RESIDENT_BYTES = 700 << 20
"""What no worker may weigh: state, batches and libraries, with a third to spare."""
OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
USER_CLICKS, SHOP_CLICKS = VIEWS


async def settle(run: Run, seconds: float = PATIENCE_SECONDS) -> None:
    """Publishes the rest and returns when every event is in every view and behind an intake mark."""
    await run.fed()
    expected, ends = run.expected, _ends(run.expected)
    events = len(expected.events)
    deadline = time.monotonic() + seconds
    while True:
        folded_now = await run.folded()
        marks = {p: mark.offset for p, mark in (await run.store.intake_marks(SOURCE)).items()}
        if folded_now >= events and all(marks.get(p, -1) >= end for p, end in ends.items()):
            return
        assert time.monotonic() < deadline, (
            f"{folded_now} of {events} events are folded, the marks are {marks} of {ends}; "
            f"{await run.store.beats(f'intake:{SOURCE}')}"
        )
        await run.pause(0.1, 0.1)


def _ends(load: Load) -> dict[int, int]:
    return {p: int(load.offset[load.partition == p].max(initial=-1)) for p in range(PARTITIONS)}


async def check(run: Run) -> None:
    """AssertionError where anything is wrong. The workers may still run."""
    await settle(run)
    await check_ledgers(run)
    await check_values(run)
    await check_counts(run)
    check_lake(run)
    await check_letters(run)
    await check_stopped(run)
    check_samples(run)
    check_workers(run)


async def check_ledgers(run: Run) -> None:
    expected, events = run.expected, run.expected.events
    nobody = {USER_CLICKS: int((events.user < 0).sum()), SHOP_CLICKS: int((events.shop < 0).sum())}
    for view in VIEWS:
        ledger = await folded(run.store, view)
        counted = dict(zip((count.name.lower() for count in Count), ledger.tolist(), strict=True))
        run.note("ledger", view=view, **counted)
        assert ledger[Count.CONSUMED] == ledger[1:].sum(), f"{view}: the ledger does not add up: {counted}"
        assert len(events) == ledger[Count.CONSUMED] - ledger[Count.DUPLICATE], f"{view}: {len(events)} in {counted}"
        assert nobody[view] == ledger[Count.FILTERED], f"{view}: {nobody[view]} without an entity in {counted}"
    marks = await run.store.intake_marks(SOURCE)
    intake = Counter[str]()
    for mark in marks.values():
        intake.update(mark.ledger)
    said = {name: intake[name] for name in ("consumed", "forwarded", "dead_lettered")}
    sent = {"consumed": len(expected), "forwarded": len(events), "dead_lettered": len(expected) - len(events)}
    assert sent == said, f"intake's ledger says {said}, sent was {sent}"


async def check_values(run: Run) -> None:
    """A sample of each view by the oracle, and that each view has the entities that it must have and no others."""
    rng = random.Random(f"{run.row}/{run.seed}/check")
    events = run.expected.events
    for view, column, letter in ((USER_CLICKS, events.user, "u"), (SHOP_CLICKS, events.shop, "s")):
        entities = sorted(set(column[column >= 0].tolist()))
        stored = {key async for key in run.store.scan_view(view)}
        assert {f"{letter}{n}" for n in entities} == stored, f"{view} has other entities than were sent"
        chosen = rng.sample(entities, min(ENTITIES, len(entities)))
        records = events.where(np.isin(column, chosen)).sent()
        compared = await assert_oracle(run.store, _view(run, view), records)
        assert compared == len(chosen)


async def check_counts(run: Run) -> None:
    """Every shop's number of events, since ever."""
    events = run.expected.events
    found = np.bincount(events.shop[events.shop >= 0], minlength=SHOPS)
    shops = np.flatnonzero(found)
    values = await run.store.read(SHOP_CLICKS, [f"s{n}" for n in shops.tolist()])
    latest = np.full(shops.size, int(events.at.max()) + 1)
    columns = {c.name: c for c in ViewReader(_view(run, SHOP_CLICKS)).read(values, latest, 0).columns}
    assert found[shops].tolist() == columns["n_all"].to_list()


def _view(run: Run, view: str) -> CompiledView:
    return next(found for found in run.catalog.views.values() if found.id == view)


def check_lake(run: Run) -> None:
    """Every event once, with what was sent, and no other row."""
    table = DeltaTable(f"{run.project.lake}/events/{SOURCE}").to_pyarrow_table()
    events = run.expected.events
    order = np.lexsort((events.offset, events.partition))
    rows = table.sort_by([("_partition", "ascending"), ("_offset", "ascending")])
    places = list(zip(rows["_partition"].to_pylist(), rows["_offset"].to_pylist(), strict=True))
    twice = [place for place, times in Counter(places).items() if times > 1]
    assert not twice, f"{len(twice)} events are in the lake more than once, as {twice[:3]}"
    sent = list(zip(events.partition[order].tolist(), events.offset[order].tolist(), strict=True))
    missing, strange = set(sent) - set(places), set(places) - set(sent)
    assert sent == places, f"missing in the lake: {sorted(missing)[:3]}; never sent: {sorted(strange)[:3]}"
    assert events.at[order].tolist() == rows["at"].cast(pa.int64()).to_pylist()
    assert events.items[order].tolist() == rows["items"].to_pylist()
    users = [None if n < 0 else f"u{n}" for n in events.user[order].tolist()]
    assert users == rows["user"].to_pylist()


async def check_letters(run: Run) -> None:
    """Every bad record is a dead letter, as it was; nothing else is. After a crash one may be there twice."""
    expected = run.expected
    bad = expected.where(expected.bad > 0)
    places = zip(bad.partition.tolist(), bad.offset.tolist(), strict=True)
    sent = dict(zip(places, bad.values(), strict=True))
    if not sent:
        return
    letters = await dead_letters(run.site.kafka.bootstrap, run.topic)
    found = {(int(h["fs.partition"]), int(h["fs.offset"])): value for h, _, value in letters}
    run.tally.repeated_letters = len(letters) - len(found)
    missing, strange = set(sent) - set(found), set(found) - set(sent)
    assert sent == found, f"not among the dead letters: {sorted(missing)[:3]}; wrongly there: {sorted(strange)[:3]}"


async def check_stopped(run: Run) -> None:
    """Only partitions that had to stop have stopped, and for each reason seen there is a section of the runbook."""

    async def as_expected() -> bool:
        """Beats come once a second."""
        beats = await run.store.beats(f"intake:{SOURCE}")
        return run.stopped == {partition for partition, beat in beats.items() if beat.stopped}

    await run.until(as_expected, f"stopped are the partitions {sorted(run.stopped)} and no others", 10)
    sections = set(re.findall(r"^### (?:Stopped:|Waiting for) (\w+)$", OPERATIONS.read_text(), re.MULTILINE))
    unknown = {code for _, code in run.sampler.reasons} - sections
    assert not unknown, f"docs/operations.md has no section for {sorted(unknown)}"


def check_samples(run: Run) -> None:
    assert run.sampler.samples > 0, "nothing was sampled"
    went_back = run.sampler.went_back
    assert not went_back, f"{len(went_back)} positions went back: {went_back[:3]}"


def check_workers(run: Run) -> None:
    run.tally.heaviest = run.sampler.heaviest
    assert run.sampler.heaviest < RESIDENT_BYTES, f"a worker weighs {run.sampler.heaviest >> 20} MiB"
    for worker in run.project.workers:
        assert "the worker crashed" not in worker.log, worker.log[-2000:]
    for name, worker in run.workers.items():
        assert worker.alive(), f"worker {name} is gone:\n{worker.log[-2000:]}"
