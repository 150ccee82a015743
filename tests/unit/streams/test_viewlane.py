"""A lane on a real store that loses writes: nothing that is gone is folded on or vouched for."""

from collections.abc import AsyncIterator

import numpy as np
import pyarrow as pa
import pytest

from featurestore.clock import SystemClock
from featurestore.engine.columns import event_batch
from featurestore.engine.state import ViewState
from featurestore.online.store import Fence, OnlineStore
from streams.folding import Delivery, Piece, ViewFold
from streams.materialising import Changes
from streams.patience import Patience
from streams.viewlane import StoreLostWrites, ViewLane
from streams.visibility import Readable, Seen
from tests.parts.redis import RedisServer
from tests.unit.streams.clicks import compiled, source

VIEW = compiled()
SEEN: list[Seen] = []
"""What lanes said had become readable."""


@pytest.fixture
async def store(own_redis: RedisServer) -> AsyncIterator[OnlineStore]:
    async with OnlineStore.connect(own_redis.url) as connected:
        yield connected


@pytest.fixture
async def lane(store: OnlineStore) -> ViewLane:
    opened = open_lane(store)
    await opened.take(delivery(0, ["a", "b"]), refuse)
    return opened


def open_lane(store: OnlineStore, fence: Fence | None = None) -> ViewLane:
    fold, readable = ViewFold(VIEW, 0, ViewState(VIEW), fence), Readable(SEEN.append, 0, 1, fence)
    return ViewLane(fold, store, SystemClock(), Patience(), Changes(VIEW), readable)


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


def lose(server: RedisServer, user: str) -> None:
    [name] = [word for word in server.command("KEYS *").split() if word.endswith(f":{user}".encode())]
    server.command(f"DEL {name.decode()}")


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
        lose(own_redis, "c")
        return done

    monkeypatch.setattr(store, "write", then_lost)
    with pytest.raises(StoreLostWrites):
        await lane.take(delivery(2, ["c"]), refuse)

    assert (await store.fences(VIEW.id))[0].offset == 1


@pytest.mark.parametrize("users", [["c"], ["c", "d"]], ids=["nothing to write", "others to write"])
async def test_a_fence_does_not_vouch_for_values_of_a_worker_before_that_were_lost_after_they_were_read(
    store: OnlineStore, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, users: list[str]
) -> None:
    """They make the events duplicates, so that nothing is written for them, and no fence is after them."""
    before = open_lane(store)
    await before.take(delivery(0, ["a", "b"]), refuse)
    with monkeypatch.context() as dying:
        dying.setattr(store, "put_fence", die)
        with pytest.raises(Died):
            await before.take(delivery(2, ["c"]), refuse)
    after = open_lane(store, (await store.fences(VIEW.id))[0])
    read = store.read_fenced

    async def then_lost(*arguments: object) -> object:
        found = await read(*arguments)  # type: ignore[arg-type]
        lose(own_redis, "c")
        return found

    with monkeypatch.context() as losing:
        losing.setattr(store, "read_fenced", then_lost)
        with pytest.raises(StoreLostWrites):
            await after.take(delivery(2, users), refuse)

    assert 1 == (await store.fences(VIEW.id))[0].offset
    again = open_lane(store, (await store.fences(VIEW.id))[0])
    await again.take(delivery(2, users), refuse)
    assert 1 + len(users) == (await store.fences(VIEW.id))[0].offset
    assert None not in await store.read(VIEW.id, users)


async def test_a_batch_that_a_worker_before_wrote_and_did_not_fence_is_fenced_without_writing_it_again(
    store: OnlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_lane(store)
    with monkeypatch.context() as dying:
        dying.setattr(store, "put_fence", die)
        with pytest.raises(Died):
            await before.take(delivery(0, ["a", "b", "c"]), refuse)
    written = await store.read(VIEW.id, ["a", "b", "c"])
    monkeypatch.setattr(store, "write", die)
    after = open_lane(store)
    await after.take(delivery(0, ["a", "b"]), refuse)
    await after.take(delivery(2, ["c"]), refuse)

    assert 2 == (await store.fences(VIEW.id))[0].offset
    assert written == await store.read(VIEW.id, ["a", "b", "c"])


class Died(Exception):
    """A process ended here."""


async def die(*_arguments: object, **_options: object) -> None:
    raise Died
