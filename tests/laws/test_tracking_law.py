"""What is kept is what the server has: whatever is written, removed or cut off meanwhile, and by whomever.

On a real Redis; one before version 7 tracks nothing, and all of this holds there too."""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import Unavailable
from featurestore.online import tracking
from featurestore.online.keys import Keyspace
from featurestore.online.store import OnlineStore
from featurestore.telemetry import REGISTRY
from tests.parts.proxy import Proxy
from tests.parts.redis import RedisServer, tracks
from tests.unit.online.values import packed, position

VIEW, OTHER = "airport_delay@1", "route_delay@2"
KEYS = [f"k{i}" for i in range(6)]
PROJECTS = (f"law{i}" for i in itertools.count())


def kept() -> float:
    return REGISTRY.get_sample_value("fs_store_values_total", {"how": "kept"}) or 0.0


@contextmanager
def patched(**values: float) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(tracking, name, value)
        yield


keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=8)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), keys),
        st.tuples(st.just("read"), keys),
        st.tuples(st.just("write"), keys),
        st.tuples(st.just("write raw"), keys),
        st.tuples(st.just("remove"), keys),
        st.tuples(st.just("rename"), st.lists(st.sampled_from(KEYS), min_size=2, max_size=2, unique=True)),
        st.tuples(st.just("empty"), st.just([])),
        st.tuples(st.just("cut"), st.just([])),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(
    steps=steps,
    keep_bytes=st.sampled_from([1, 500, 1_000, 1 << 20]),
    credit=st.sampled_from([0, 3, 1_000]),
    seconds=st.sampled_from([0.0, 60.0]),
)
def test_one_after_the_other(
    redis_server: RedisServer, steps: list[tuple[str, list[str]]], keep_bytes: int, credit: int, seconds: float
) -> None:
    project, offsets = next(PROJECTS), itertools.count(1)
    names = Keyspace(project)

    async def run() -> None:
        async with (
            OnlineStore.connect(redis_server.url, project=project, keep_bytes=keep_bytes) as ours,
            OnlineStore.connect(redis_server.url, project=project) as worker,
            redis.asyncio.Redis.from_url(redis_server.url) as raw,
        ):
            for view_id in (VIEW, OTHER):
                await worker.write(view_id, KEYS, [packed(1, 0)] * len(KEYS))
            for what, chosen in [("read", KEYS)] * 3 + steps:
                match what:
                    case "read":
                        wanted = [(VIEW, chosen), (OTHER, []), (OTHER, chosen[::2])]
                        of_all = [name for view_id, of_view in wanted for name in names.values(view_id, of_view)]
                        expected = await raw.mget(of_all)
                        assert expected == await ours.read_many(wanted)
                    case "write":
                        view_id = OTHER if len(chosen) % 2 else VIEW
                        await worker.write(view_id, chosen, [packed(1, next(offsets)) for _ in chosen])
                    case "write raw":
                        values = [packed(1, next(offsets), body=b"x" * 300) for _ in chosen]
                        await raw.mset(dict(zip(names.values(VIEW, chosen), values, strict=True)))
                    case "remove":
                        await worker.forget(VIEW, chosen)
                    case "rename":
                        with suppress(redis.asyncio.ResponseError):  # there may be none
                            await raw.rename(*names.values(VIEW, chosen))
                    case "empty":
                        await raw.flushdb()
                    case "cut":
                        await raw.client_kill_filter(_type="normal", skipme=True)
                        await asyncio.sleep(0.005)

    with patched(CREDIT=credit, SAMPLE_EVERY=2, KEPT_SECONDS=seconds):
        asyncio.run(run())


@pytest.mark.parametrize("seed", range(3))
async def test_all_at_once_nobody_misses_what_was_acknowledged_before(own_redis: RedisServer, seed: int) -> None:
    dice, began = random.Random(seed), kept()
    acknowledged: dict[str, int] = defaultdict(int)
    issued: dict[str, int] = defaultdict(int)
    ended = False

    async def write(worker: OnlineStore) -> None:
        number = 0
        while not ended:
            number += 1
            chosen = dice.sample(KEYS, dice.randrange(1, 3))
            for key in chosen:
                issued[key] += 1
            offsets = [issued[key] for key in chosen]
            await worker.write(VIEW, chosen, [packed(1, offset, body=b"x" * 500) for offset in offsets])
            for key, offset in zip(chosen, offsets, strict=True):
                acknowledged[key] = max(acknowledged[key], offset)
            if not number % 3:
                await asyncio.sleep(dice.choice([0, 0.0005, 0.002]))

    async def read(ours: OnlineStore) -> int:
        left = 0
        for _ in range(1_500):
            chosen = dice.choices(KEYS, k=dice.randrange(1, 5))
            since = {key: acknowledged[key] for key in chosen}
            reading = asyncio.ensure_future(ours.read(VIEW, chosen))
            if dice.random() < 0.2:
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                left += reading.cancel()
            try:
                values = await reading
            except (Unavailable, asyncio.CancelledError):
                continue
            for key, value in zip(chosen, values, strict=True):
                found = max(0, position(value)[1])
                assert since[key] <= found <= issued[key], f"{key}: {found}, acknowledged {since[key]}"
        return left

    async def cut(proxy: Proxy) -> None:
        while not ended:
            await asyncio.sleep(0.15)
            proxy.reset()

    with Proxy(own_redis.port) as proxy:
        async with (
            OnlineStore.connect(own_redis.url) as worker,
            OnlineStore.connect(f"redis://127.0.0.1:{proxy.port}", keep_bytes=1 << 20) as ours,
        ):
            meanwhile = [asyncio.ensure_future(write(worker)), asyncio.ensure_future(cut(proxy))]
            try:
                left = await asyncio.gather(*(read(ours) for _ in range(6)))
            finally:
                ended = True
                await asyncio.gather(*meanwhile)
    assert sum(left) > 100
    if tracks(own_redis):
        assert kept() > began + 1_000, "nothing was kept, so nothing was tried"
