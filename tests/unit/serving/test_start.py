"""What an API process does once, before it answers."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.clock import ManualClock
from featurestore.config import load_settings
from featurestore.engine.kernel import compiled
from featurestore.errors import ConfigError
from featurestore.serving.app import GARBAGE
from featurestore.serving.server import serve
from tests.unit.serving import flights
from tests.unit.serving.api import running


@pytest.fixture
def collector() -> Iterator[None]:
    """As it is in a new process, and afterwards as it was."""
    thresholds = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


async def test_what_the_start_built_is_left_alone_by_collections(
    redis_url: str, tmp_path: Path, collector: None
) -> None:
    assert 0 == gc.get_freeze_count()
    async with running(redis_url, tmp_path):
        # Modules, classes, routes, schemas: what remains for collections is what came since.
        assert gc.get_freeze_count() > 10 * len(gc.get_objects())
        assert GARBAGE == gc.get_threshold()[0]


async def test_a_lookup_is_the_same_with_the_kernel(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    pytest.importorskip("numba", reason="compiling needs featurestore[fast]")
    view, answers = flights.view("airport_delay"), {}
    stored = flights.stored(view, flights.a_busy_day(clock.now(), 20))
    entities = {"origin": [*stored, "nobody", None]}
    for kernel in ("numpy", "numba"):
        async with running(redis_url, tmp_path / kernel, clock, lookup_kernel=kernel) as api:
            await api.write(view, stored)
            await api.beat()
            await api.status_becomes({"origin": ["u0"]}, "ok")
            answers[kernel] = await api.rows("flight_delay", entities)
    assert 22 == len(answers["numpy"])
    assert answers["numpy"] == answers["numba"]


def test_a_kernel_that_is_not_installed_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    compiled.cache_clear()
    with pytest.raises(ConfigError) as caught:
        serve(load_settings(lookup_kernel="numba"), "127.0.0.1", 0)
    compiled.cache_clear()
    assert ("FS_LOOKUP_KERNEL", "pip install 'featurestore[fast]', or leave FS_LOOKUP_KERNEL at numpy") == (
        caught.value.field, caught.value.hint,
    )  # fmt: skip
