import asyncio
import shutil
from pathlib import Path

import pytest

from featurestore.errors import Corrupt, Unavailable
from featurestore.registry.catalog import Catalog
from featurestore.registry.follow import Follower
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from tests.unit.definitions.flights import delays
from tests.unit.registry.published import NOW, definitions


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "lake"))


async def test_a_follower_starts_at_the_newest_and_follows_within_a_second(registry: Registry) -> None:
    apply(registry, definitions(), now=NOW)
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def note(catalog: Catalog) -> None:
        await seen.put(catalog.revision)

    follower = Follower(registry, note)
    task = asyncio.create_task(follower.run())
    try:
        assert await asyncio.wait_for(seen.get(), 5) == 1
        await asyncio.to_thread(apply, registry, definitions(delays(version=2)), now=NOW)
        assert await asyncio.wait_for(seen.get(), 1) == 2
    finally:
        task.cancel()


async def test_a_registry_without_revisions_is_an_empty_catalog(registry: Registry) -> None:
    follower = Follower(registry)
    assert follower.current() is None
    assert await follower.refresh()
    assert follower.catalog is not None
    assert follower.catalog.revision == 0
    assert not await follower.refresh()


async def test_the_last_good_revision_stays_while_a_newer_one_is_damaged(registry: Registry, tmp_path: Path) -> None:
    apply(registry, definitions(), now=NOW)
    follower = Follower(registry)
    await follower.refresh()
    good = apply(registry, definitions(delays(version=2)), now=NOW)
    path = tmp_path / "lake" / "registry" / "2.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert not await follower.refresh()
    assert follower.catalog is not None
    assert follower.catalog.revision == 1
    assert isinstance(follower.trouble, Corrupt)
    path.write_bytes(whole)
    assert await follower.refresh()
    assert follower.catalog.digest == good.digest
    assert follower.trouble is None


async def test_the_last_good_revision_stays_while_the_lake_is_away(registry: Registry, tmp_path: Path) -> None:
    apply(registry, definitions(), now=NOW)
    follower = Follower(registry)
    await follower.refresh()
    shutil.rmtree(tmp_path / "lake")
    assert not await follower.refresh()
    assert follower.catalog is not None
    assert follower.catalog.resolve("flight_delay")[1] == 1


async def test_a_catalog_that_cannot_be_taken_up_is_offered_again(registry: Registry) -> None:
    apply(registry, definitions(), now=NOW)
    refusals = [Unavailable("redis", "away")]

    async def take(_: Catalog) -> None:
        if refusals:
            raise refusals.pop()

    follower = Follower(registry, take)
    assert not await follower.refresh()
    assert (follower.catalog, str(follower.trouble)) == (None, "away")
    assert await follower.refresh()
    assert follower.trouble is None
