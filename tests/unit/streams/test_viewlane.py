"""A lane on a real store that loses writes: nothing that is gone is folded on or vouched for."""

from collections.abc import AsyncIterator

import numpy as np
import pyarrow as pa
import pytest

from featurestore.clock import SystemClock
from featurestore.engine.columns import event_batch
from featurestore.engine.state import ViewState
from featurestore.online.store import OnlineStore
from streams.folding import Delivery, Piece, ViewFold
from streams.materialising import Changes
from streams.patience import Patience
from streams.viewlane import StoreLostWrites, ViewLane
from tests.parts.redis import RedisServer
from tests.unit.streams.clicks import compiled, source

VIEW = compiled()


@pytest.fixture
async def store(own_redis: RedisServer) -> AsyncIterator[OnlineStore]:
    async with OnlineStore.connect(own_redis.url) as connected:
        yield connected


@pytest.fixture
async def lane(store: OnlineStore) -> ViewLane:
    opened = ViewLane(ViewFold(VIEW, 0, ViewState(VIEW), None), store, SystemClock(), Patience(), Changes(VIEW))
    await opened.take(delivery(0, ["a", "b"]), refuse)
    return opened


def delivery(first: int, users: list[str]) -> Delivery:
    count = len(users)
    offsets = np.arange(first, first + count)
    columns = {
        "at": pa.array(offsets, pa.int64()).cast(pa.timestamp("us", "UTC")),
        "user": pa.array(users, pa.string()),
        "amount": pa.array([1.0] * count),
        "_partition": pa.array([0] * count, pa.int32()),
        "_offset": pa.array(offsets, pa.int64()),
    }
    events = event_batch(source(), ("user",), pa.table(columns))
    return Delivery((Piece(0, offsets, offsets),), events, np.zeros(count, np.int64), first, first + count - 1)


async def refuse(_rows: np.ndarray, reason: str, _error: str) -> None:
    raise AssertionError(reason)


async def test_a_value_read_from_a_store_that_lost_writes_is_not_folded_on(
    lane: ViewLane, store: OnlineStore, own_redis: RedisServer
) -> None:
    """At its new offset no replay could mend it."""
    own_redis.flush()
    with pytest.raises(StoreLostWrites):
        await lane.take(delivery(2, ["c"]), refuse)

    assert await store.read(VIEW.id, ["c"]) == [None]


async def test_a_fence_does_not_vouch_for_values_that_were_lost_before_it_was_put(
    lane: ViewLane, store: OnlineStore, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = store.write

    async def then_lost(*arguments: object, **options: object) -> object:
        done = await written(*arguments, **options)  # type: ignore[arg-type]
        [name] = [word for word in own_redis.command("KEYS *").split() if word.endswith(b":c")]
        own_redis.command(f"DEL {name.decode()}")
        return done

    monkeypatch.setattr(store, "write", then_lost)
    with pytest.raises(StoreLostWrites):
        await lane.take(delivery(2, ["c"]), refuse)

    assert (await store.fences(VIEW.id))[0].offset == 1
