"""Law: whatever is written in whatever order by whoever, the greatest (generation, offset) of each key stands."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine.sections import NOBODY
from featurestore.online.store import OnlineStore, Written
from tests.parts.redis import RedisServer
from tests.unit.online.values import packed, position

VIEWS = (f"law@{n}" for n in itertools.count(1))
# Neighbours where a double, a float32 or a signed half would round, wrap or swap words.
EDGES = [
    0,
    1,
    255,
    256,
    2**31,
    2**32 - 1,
    2**32,
    2**32 + 1,
    2**53 - 1,
    2**53,
    2**53 + 1,
    2**53 + 2,
    2**63 - 2,
    2**63 - 1,
]
instants = st.sampled_from(EDGES) | st.integers(0, 2**63 - 1) | st.integers(0, 3)


@dataclass(frozen=True)
class Write:
    key: str
    generation: int
    offset: int
    partition: int

    @property
    def value(self) -> bytes:
        # The body tells writes of one position apart, so that the first of them is seen to stand.
        return packed(self.generation, self.offset, partition=self.partition, body=repr(self).encode())


@dataclass
class Model:
    """The law in its plainest form."""

    stored: dict[str, Write] = field(default_factory=dict)

    def write(self, batch: Sequence[Write]) -> Written:
        written, older, misrouted = 0, 0, list[str]()
        for new in batch:
            old = self.stored.get(new.key)
            if old is None or new.generation > old.generation:
                verdict = "newer"
            elif new.generation < old.generation or (old.partition != NOBODY and new.partition == NOBODY):
                verdict = "older"
            elif new.partition != old.partition != NOBODY:
                verdict = "misrouted"
            else:
                verdict = "newer" if new.offset > old.offset else "older"
            if verdict == "newer":
                self.stored[new.key] = new
            written += verdict == "newer"
            older += verdict == "older"
            misrouted += [new.key] if verdict == "misrouted" else []
        return Written(written, older, misrouted)


writes = st.builds(
    Write,
    key=st.sampled_from("abc"),
    generation=instants,
    offset=instants,
    partition=st.sampled_from([NOBODY, 0, 1, 2**32]),
)
# Few positions as well, so that ties and re-deliveries are common.
close_writes = st.builds(
    Write,
    key=st.sampled_from("ab"),
    generation=st.integers(0, 1),
    offset=st.integers(-1, 2),
    partition=st.sampled_from([NOBODY, 0, 1, 2**32]),
)
batches = st.lists(st.lists(writes, max_size=8) | st.lists(close_writes, max_size=8), max_size=8)


@given(batches=batches)
def test_any_sequence_of_batches_ends_as_the_law_says(redis_server: RedisServer, batches: list[list[Write]]) -> None:
    view_id, model = next(VIEWS), Model()

    async def run() -> None:
        async with OnlineStore.connect(redis_server.url, project="law") as store:
            for batch in batches:
                outcome = await store.write(view_id, [w.key for w in batch], [w.value for w in batch])
                assert model.write(batch) == outcome
            found = await store.read(view_id, list("abc"))
            assert [model.stored[k].value if k in model.stored else None for k in "abc"] == found

    asyncio.run(run())


@settings(max_examples=40)
@given(positions=st.lists(st.tuples(instants, instants), min_size=1, max_size=12, unique=True), random=st.randoms())
def test_the_order_and_grouping_of_writes_do_not_matter(
    redis_server: RedisServer, positions: list[tuple[int, int]], random: random.Random
) -> None:
    view_id = next(VIEWS)
    values = [packed(generation, offset) for generation, offset in positions]
    random.shuffle(values)
    cut = random.randint(0, len(values))

    async def run() -> bytes | None:
        async with OnlineStore.connect(redis_server.url, project="law") as store:
            for batch in (values[:cut], values[cut:]):
                await store.write(view_id, ["k"] * len(batch), batch)
            return (await store.read(view_id, ["k"]))[0]

    assert max(positions) == position(asyncio.run(run()))


async def test_four_writers_in_random_order_end_with_the_greatest_and_no_reader_sees_time_go_back(
    redis_server: RedisServer,
) -> None:
    seed = 20260301
    view_id, keys = next(VIEWS), [f"N{i:03d}" for i in range(300)]
    history = [(generation, 2**53 + offset) for generation in (1, 2) for offset in range(12)]
    todo = [(key, place) for key in keys for place in history]
    running = True

    async def writer(number: int) -> Written:
        order = random.Random(seed + number)
        mine = order.sample(todo, len(todo))
        total = Written()
        async with OnlineStore.connect(redis_server.url, project="law") as store:
            while mine:
                size = order.randint(1, 700)
                batch, mine = mine[:size], mine[size:]
                values = [packed(*place, body=key.encode() * 20) for key, place in batch]
                done = await store.write(view_id, [key for key, _ in batch], values, ttl_ms=600_000)
                total = Written(
                    total.written + done.written, total.older + done.older, total.misrouted + done.misrouted
                )
        return total

    async def reader() -> int:
        seen, rounds = [(-1, -1)] * len(keys), 0
        async with OnlineStore.connect(redis_server.url, project="law") as store:
            while running:
                now = [position(value) for value in await store.read(view_id, keys)]
                assert all(before <= after for before, after in zip(seen, now, strict=True))
                seen, rounds = now, rounds + 1
        return rounds

    watching = asyncio.create_task(reader())
    totals = await asyncio.gather(*(writer(number) for number in range(4)))
    running = False
    assert await watching > 3

    async with OnlineStore.connect(redis_server.url, project="law") as store:
        found = await store.read(view_id, keys)
    assert [packed(*max(history), body=key.encode() * 20) for key in keys] == found
    assert [[]] * 4 == [total.misrouted for total in totals]
    assert 4 * len(todo) == sum(total.written + total.older for total in totals)
    # Each place of a key is stored at most once, whoever brings it and however often.
    assert len(keys) <= sum(total.written for total in totals) <= len(todo)
