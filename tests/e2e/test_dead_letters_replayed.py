"""`dlq replay` sends each letter at most once and as it was, whoever dies where, on both brokers."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import confluent_kafka
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType  # type: ignore[attr-defined]

from featurestore.errors import FeatureStoreError, NotFound, ReplayConflict, Unavailable
from featurestore.offline.lake import Lake
from featurestore.offline.replays import Place, Replay, Replays
from streams import replaying
from streams.deadletters import Letter
from streams.producing import Outgoing
from streams.replaying import LEASE, Selection
from tests.e2e.letters import DeadTopic, a_letter, documents, ended
from tests.e2e.streaming import PARTITIONS, Project, until
from tests.parts.kafka import KafkaServer
from tests.parts.redis import RedisServer


@pytest.fixture(params=["embedded_broker", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param).bootstrap)


@pytest.fixture
async def topic(project: Project) -> DeadTopic:
    made = DeadTopic(project)
    await made.make()
    return made


def places(letters: Sequence[Letter]) -> Counter[str]:
    return Counter(f"{letter.partition}/{letter.offset}" for letter in letters)


def many(count: int) -> list[Letter]:
    return [a_letter(n % PARTITIONS, 100 + n // PARTITIONS, value=b"v%d" % n) for n in range(count)]


async def test_letters_go_back_as_they_were(topic: DeadTopic) -> None:
    headers = (("h", b"\xff\x00"), ("h", b""), ("h", b"\xff\x00"), ("é", b"t"))
    odd = [
        Letter(0, 1, None, None, (), "empty", "tombstone without a key"),
        Letter(1, 1, b"k", None, headers, "empty", "tombstone"),
        Letter(2, 1, b"", b"", headers, "empty", "nothing"),
        Letter(3, 1, b"\xff\xfe", b"\x00\xff{", headers, "not_json", "bytes"),
        Letter(3, 2, None, random.Random(1).randbytes(900_000), (), "not_json", "huge"),
    ]
    await topic.bury(odd)
    summary = await topic.replay()

    assert (5, 5) == (summary.selected, summary.sent)
    found = {(r.partition, dict(r.headers)["fs.replay"]): r for r in await topic.records()}
    assert 5 == len(found)
    for letter in odd:
        record = found[letter.partition, f"{letter.partition}/{letter.offset}".encode()]
        assert (letter.key, letter.value) == (record.key, record.value)
        assert letter.headers == tuple(record.headers[:-1])


async def test_a_second_replay_is_a_no_op(topic: DeadTopic) -> None:
    letters = many(2500)
    await topic.bury(letters)
    first = await topic.replay()
    second = await topic.replay()

    assert (2500, 0) == (first.sent, first.already_replayed)
    assert (0, 2500) == (second.sent, second.already_replayed)
    assert places(letters) == await topic.arrivals()


async def test_letters_of_a_partition_keep_their_order(topic: DeadTopic) -> None:
    await topic.bury(many(1000))
    await topic.replay()
    offsets: dict[int, list[int]] = {}
    for record in await topic.records():
        offsets.setdefault(record.partition, []).append(int(dict(record.headers)["fs.replay"].split(b"/")[1]))

    assert PARTITIONS == len(offsets)
    assert all(sorted(found) == found for found in offsets.values())


async def test_a_letter_that_is_there_twice_is_sent_once(topic: DeadTopic) -> None:
    await topic.bury([a_letter(0, 5), a_letter(0, 6), a_letter(0, 5)])

    assert 2 == (await topic.replay()).sent
    assert places([a_letter(0, 5), a_letter(0, 6)]) == await topic.arrivals()


async def test_what_is_chosen_is_sent_and_nothing_else(topic: DeadTopic) -> None:
    await topic.bury([a_letter(0, 5, "empty"), a_letter(0, 6), a_letter(1, 5), a_letter(1, 7)])

    assert 1 == (await topic.replay(Selection(reason="empty"))).sent
    assert 1 == (await topic.replay(Selection(partition=1, offset=7))).sent
    assert 0 == (await topic.replay(Selection(partition=2))).selected
    assert 2 == (await topic.replay(Selection(partition=1))).selected
    assert places([a_letter(0, 5), a_letter(1, 7), a_letter(1, 5)]) == await topic.arrivals()


async def test_events_that_only_a_view_refused_are_never_sent(topic: DeadTopic) -> None:
    await topic.bury([a_letter(0, 5, "misrouted"), a_letter(0, 6, "key_too_long"), a_letter(0, 7)])
    summary = await topic.replay()

    assert {"misrouted": 1, "key_too_long": 1} == summary.skipped
    assert places([a_letter(0, 7)]) == await topic.arrivals()


async def test_a_dry_run_sends_and_notes_nothing(topic: DeadTopic) -> None:
    await topic.bury(many(10))
    summary = await topic.replay(dry=True)

    assert (10, 10) == (summary.selected, summary.sent)
    assert not await topic.arrivals()
    assert [] == documents(topic.project, topic.topic)


async def test_records_of_strangers_are_not_sent(topic: DeadTopic) -> None:
    await topic.bury([a_letter(0, 5)])
    for partition, offset, name in ((b"x", b"1", topic.topic), (b"0", b"-1", topic.topic), (b"0", b"9", "another")):
        await topic.write([("fs.partition", partition), ("fs.offset", offset), ("fs.topic", name.encode())])
    await topic.write([])

    assert 1 == (await topic.replay()).selected
    assert places([a_letter(0, 5)]) == await topic.arrivals()


async def test_a_letter_of_a_letter_that_was_refused_again_names_its_own_place(topic: DeadTopic) -> None:
    await topic.bury([Letter(1, 40, b"k", b"{", (("fs.replay", b"1/7"), ("h", b"x")), "not_json", "again")])
    await topic.replay()
    [record] = await topic.records()

    assert (("h", b"x"), ("fs.replay", b"1/40")) == tuple(record.headers)


async def test_there_may_be_no_dead_letters_at_all(topic: DeadTopic) -> None:
    topic.publish()

    assert 0 == (await topic.replay()).selected


class Crash(Exception):
    """Stands for the end of the process."""


class Flawed(Replays):
    """Ends its process before or after a document is created, or before or after it is marked as done."""

    def __init__(self, topic: DeadTopic, at: str) -> None:
        super().__init__(Lake(topic.project.lake), topic.topic)
        self._at = at

    def create(self, number: int, replay: Replay) -> bool:
        return bool(self._around("create", lambda: super(Flawed, self).create(number, replay)))

    def finish(self, number: int, refused: Sequence[Place]) -> None:
        self._around("finish", lambda: super(Flawed, self).finish(number, refused))

    def _around(self, name: str, effect: object) -> object:
        if self._at == f"before {name}":
            raise Crash
        done = effect()  # type: ignore[operator]
        if self._at == f"after {name}":
            raise Crash
        return done


@pytest.mark.parametrize("at", ["before create", "after create", "before finish", "after finish"])
async def test_a_process_that_ends_at_any_step_leaves_each_letter_once_after_the_next(
    topic: DeadTopic, at: str
) -> None:
    letters = many(50)
    await topic.bury(letters)
    with pytest.raises(Crash):
        await topic.replayer(Flawed(topic, at)).run(Selection())
    summary = await topic.replay(take_over=True)

    assert {"before create": (50, 0), "after create": (0, 50)}.get(at, (0, 0)) == (summary.sent, summary.recovered)
    assert places(letters) == await topic.arrivals()
    assert 0 == (await topic.replay()).sent
    assert topic.replays.read().unfinished is None


async def test_a_process_that_sent_some_of_its_letters_is_completed_by_the_next_two(
    topic: DeadTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = many(60)
    await topic.bury(letters)
    for sent in (20, 30):
        replayer = topic.replayer()
        attempt = replayer._outbox.attempt

        async def some(records: Sequence[Outgoing], n: int = sent, attempt=attempt) -> list[KafkaError | None]:  # type: ignore[no-untyped-def]
            await attempt(records[:n])
            raise Crash

        monkeypatch.setattr(replayer._outbox, "attempt", some)
        with pytest.raises(Crash):
            await replayer.run(Selection(), take_over=True)
    assert 50 == (await topic.arrivals()).total()
    summary = await topic.replay(take_over=True)

    assert 10 == summary.recovered
    assert places(letters) == await topic.arrivals()


async def test_an_unfinished_replay_is_left_alone_for_a_minute(topic: DeadTopic) -> None:
    await topic.bury(many(5))
    with pytest.raises(Crash):
        await topic.replayer(Flawed(topic, "after create"), by="process 7 of ada on host-1").run(Selection())
    topic.clock.advance(LEASE - 1)
    with pytest.raises(ReplayConflict) as caught:
        await topic.replay()

    assert "process 7 of ada on host-1 has been sending 5 letters since 2026-03-01T12:00:00Z" in caught.value.message
    assert "after 2026-03-01T12:01:00Z" in caught.value.hint
    assert not await topic.arrivals()
    assert 5 == (await topic.replay(dry=True)).recovered
    topic.clock.advance(1)
    assert 5 == (await topic.replay()).recovered


async def test_of_two_at_once_one_sends_and_the_other_is_told_who_does(topic: DeadTopic) -> None:
    letters = many(300)
    await topic.bury(letters)
    both = await asyncio.gather(
        topic.replayer(by="one").run(Selection()), topic.replayer(by="two").run(Selection()), return_exceptions=True
    )

    [lost] = [outcome for outcome in both if isinstance(outcome, BaseException)]
    assert isinstance(lost, ReplayConflict)
    assert lost.message.startswith(("one ", "two "))
    assert places(letters) == await topic.arrivals()
    assert 300 == (await topic.replay()).already_replayed


async def test_whoever_was_taken_over_cannot_begin_another_document(topic: DeadTopic) -> None:
    await topic.bury(many(5))
    slow = topic.replayer(by="slow")
    slow._last = (await asyncio.to_thread(topic.replays.read)).last
    await topic.replay(Selection(partition=0))
    slow._counts = {topic.topic: PARTITIONS, f"{topic.topic}.dlq": PARTITIONS}

    with pytest.raises(ReplayConflict):
        await slow._replay(Selection(), topic.replays.read().replayed)
    assert 2 == (await topic.arrivals()).total()


async def test_letters_that_are_no_longer_there_are_said_to_be_lost(topic: DeadTopic) -> None:
    await topic.bury(many(3))
    topic.replays.create(
        1, Replay(((0, 100), (0, 9999)), dict.fromkeys(range(PARTITIONS), 0), "ada", topic.clock.now())
    )
    summary = await topic.replay(take_over=True)

    assert (1, 1) == (summary.recovered, summary.lost)
    assert places(many(3)) == await topic.arrivals()


async def test_a_topic_that_is_gone_is_said(project: Project) -> None:
    topic = DeadTopic(project)
    await topic.bury([a_letter(0, 1)])

    with pytest.raises(NotFound, match=f"unknown topic '{topic.topic}'"):
        await topic.replay()


async def test_an_unfinished_replay_whose_records_the_topic_no_longer_keeps_is_nobodys_guess(
    kafka: KafkaServer, redis: RedisServer, tmp_path: Path
) -> None:
    topic = DeadTopic(Project(kafka.bootstrap, redis.url, tmp_path))
    await topic.make()
    await topic.bury(many(8))
    await topic.replay(Selection(partition=0))
    topic.replays.create(2, Replay(((1, 100),), dict.fromkeys(range(PARTITIONS), 0), "ada", topic.clock.now()))
    await cut_off(kafka, TopicPartition(topic.topic, 0), 1)
    with pytest.raises(FeatureStoreError) as caught:
        await topic.replay(take_over=True)

    assert f"dlq/{topic.topic}/2.json is not finished" in caught.value.message
    (Path(topic.project.lake) / topic.replays.name(2, done=True)).touch()
    assert 5 == (await topic.replay()).sent
    assert "1/100" not in await topic.arrivals()


async def test_letters_larger_than_the_topic_takes_are_skipped_and_hold_up_no_others(
    kafka: KafkaServer, redis: RedisServer, tmp_path: Path
) -> None:
    topic = DeadTopic(Project(kafka.bootstrap, redis.url, tmp_path))
    kafka.create_topic(topic.topic, partitions=PARTITIONS, config={"max.message.bytes": "20000"})
    small, large = many(40), [a_letter(p, 500 + p, value=random.Random(p).randbytes(30_000)) for p in (0, 1)]
    await topic.bury([*small[:20], *large, *small[20:]])
    summary = await topic.replay()

    assert (40, {"too_large": 2}) == (summary.sent, summary.skipped)
    assert places(small) == await topic.arrivals()
    configure(kafka, topic.topic, "max.message.bytes", "100000")
    assert (2, 40) == ((again := await topic.replay()).sent, again.already_replayed)
    assert places([*small, *large]) == await topic.arrivals()


async def test_a_broker_that_stops_answering_ends_the_replay_and_the_next_one_completes_it(
    own_kafka: KafkaServer, redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = DeadTopic(Project(own_kafka.bootstrap, redis.url, tmp_path))
    await topic.make()
    letters = many(200)
    await topic.bury(letters)
    monkeypatch.setattr(replaying, "SEND_SECONDS", 1.0)

    class Freezing(Replays):
        def create(self, number: int, replay: Replay) -> bool:
            done = super().create(number, replay)
            own_kafka.freeze()
            return done

    with pytest.raises(Unavailable) as caught:
        await topic.replayer(Freezing(Lake(topic.project.lake), topic.topic)).run(Selection())
    own_kafka.thaw()

    assert "run this again after 2026-03-01T12:01:00Z" in caught.value.hint
    monkeypatch.undo()
    await asyncio.sleep(1)  # what the broker had in its sockets arrives
    await topic.replay(take_over=True)
    assert places(letters) == await topic.arrivals()


async def test_processes_killed_at_random_instants_send_nothing_twice(topic: DeadTopic) -> None:
    rng = random.Random(5)
    letters = [a_letter(n % 4, n // 4, value=rng.randbytes(200)) for n in range(12_000)]
    await topic.bury(letters)
    killed = 0
    for _ in range(4):
        process = topic.process("--take-over")
        before = (await topic.arrivals()).total()
        await until(partial(begun, topic, process, before))
        await asyncio.sleep(rng.uniform(0, 0.05))
        process.kill()
        killed += (await ended(process))[0] < 0
        await asyncio.sleep(0.5)  # what it had written to its socket arrives
    code, said = await ended(topic.process("--take-over"))

    assert killed
    assert 0 == code, said
    assert places(letters) == await topic.arrivals()
    assert len(documents(topic.project, topic.topic)) > 2


async def begun(topic: DeadTopic, process: subprocess.Popen[bytes], before: int) -> bool:
    return process.poll() is not None or (await topic.arrivals()).total() > before


async def cut_off(kafka: KafkaServer, partition: TopicPartition, before: int) -> None:
    """As retention does: the first records of a partition are gone."""
    wanted = confluent_kafka.TopicPartition(partition.topic, partition.partition, before)
    [done] = kafka.admin.delete_records([wanted]).values()
    await asyncio.to_thread(done.result)


def configure(kafka: KafkaServer, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    [done] = kafka.admin.incremental_alter_configs([resource]).values()
    done.result()
