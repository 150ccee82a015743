"""What `status`, `doctor` and `rebuild` say about a rebuild, from marks in a real Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from featurestore.cli.checks import _rebuild
from featurestore.cli.operate import _troubles
from featurestore.cli.output import console
from featurestore.cli.rebuild import _draw, _with_rate
from featurestore.cli.standing import standing
from featurestore.clock import SECOND, ManualClock
from featurestore.config import load_settings
from featurestore.online.fences import Rebuild
from featurestore.online.health import Level
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.unit.serving import flights

VIEW = flights.view("airport_delay")


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[OnlineStore]:
    async with OnlineStore.connect(redis_url) as opened:
        yield opened


def mark(clock: ManualClock) -> Rebuild:
    return Rebuild(
        generation=5, lake_version=3, vector={}, offsets={}, buckets=4, done=[0], tallies={}, entities=9, events=11,
        started_at=clock.now() - 40 * SECOND, together=[VIEW.id], at=clock.now(), by="process 1 of ops",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("silent", "end"),
    [
        (29, "25% done"),
        (30, "25% done, but no sign of life for 30 s; complete it with: featurestore rebuild"),
    ],
)
async def test_status_says_how_far_a_rebuild_is_and_when_nobody_works_on_it(
    store: OnlineStore, redis_url: str, tmp_path: Path, clock: ManualClock, silent: int, end: str
) -> None:
    catalog = apply(Registry(str(tmp_path)), flights.definitions(), now=clock.now())
    await store.swap_rebuild(VIEW.id, mark(clock), over=b"")
    clock.advance(silent * SECOND)
    settings = load_settings(redis=redis_url, lake=str(tmp_path))
    document = await standing(settings, catalog, None, clock)

    found = {view["view"]: view["rebuild"] for view in document["views"]}
    assert {name for name, rebuild in found.items() if rebuild} == {VIEW.id}
    assert (found[VIEW.id]["done"], found[VIEW.id]["entities"], found[VIEW.id]["silent_seconds"]) == (0.25, 9, silent)
    said = f"view {VIEW.id} is being rebuilt by process 1 of ops, since 2026-03-01T11:59:20Z: {end}"
    assert said in _troubles(document)


def test_doctor_takes_an_unfinished_rebuild_for_a_fault(clock: ManualClock) -> None:
    assert _rebuild(VIEW.id, mark(clock), clock.now()).level is Level.ADVICE
    left = _rebuild(VIEW.id, mark(clock), clock.now() + 31 * SECOND)
    assert left.level is Level.FAULT
    assert "featurestore rebuild" in left.hint


def test_the_summary_has_a_line_for_each_view(capsys: pytest.CaptureFixture[str]) -> None:
    done = {"view": "a@1", "generation": 7, "entities": 90, "events": 1000, "resumed": False, "seconds": 0.5}
    views = [_with_rate(done), _with_rate(done | {"view": "b@2", "seconds": 0.0, "resumed": True})]
    _draw(console(), {"views": views, "seconds": 3.25}, "rebuilt")

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rebuilt in 3.2 s")
    assert ["a@1", "7", "90", "1,000", "0.5", "180", "no"] in [line.split() for line in lines]
    assert ["b@2", "7", "90", "1,000", "0", "–", "yes"] in [line.split() for line in lines]
