"""The launchers themselves: what a test that kills and freezes parts relies on."""

import contextlib
import uuid

import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from tests.parts.kafka import KafkaServer
from tests.parts.redis import RedisServer


async def _send(bootstrap: str, topic: str, values: list[bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for value in values:
            await producer.send(topic, value, partition=0)
        await producer.flush()


async def _read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return [(await anext(consumer)).value for _ in range(count)]


async def test_kafka_delivers_and_has_the_partitions_asked_for(kafka: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    kafka.create_topic(topic, partitions=3)
    values = [b"%d" % i for i in range(1000)]
    await _send(kafka.bootstrap, topic, values)

    assert await _read(kafka.bootstrap, topic, len(values)) == values
    assert len(kafka.admin.list_topics(topic, timeout=10).topics[topic].partitions) == 3


async def test_kafka_makes_no_topic_by_itself(kafka: KafkaServer) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    with contextlib.suppress(KafkaError):
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, request_timeout_ms=1000) as producer:
            await producer.send_and_wait(topic, b"x")

    assert topic not in kafka.admin.list_topics(timeout=10).topics


async def test_kafka_keeps_what_it_acknowledged_when_killed(own_kafka: KafkaServer) -> None:
    own_kafka.create_topic("t", partitions=1)
    values = [b"%d" % i for i in range(200)]
    await _send(own_kafka.bootstrap, "t", values)
    address, pid = own_kafka.bootstrap, own_kafka.pid
    own_kafka.restart()

    assert (own_kafka.bootstrap, own_kafka.pid == pid) == (address, False)
    assert await _read(own_kafka.bootstrap, "t", len(values)) == values


async def test_a_frozen_kafka_takes_records_again_when_thawed(own_kafka: KafkaServer) -> None:
    own_kafka.create_topic("t", partitions=1)
    own_kafka.freeze()
    assert not own_kafka.answers()
    own_kafka.thaw()
    await _send(own_kafka.bootstrap, "t", [b"after"])

    assert await _read(own_kafka.bootstrap, "t", 1) == [b"after"]


def test_redis_is_empty_for_each_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "over")


def test_redis_is_empty_for_the_next_one_too(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "over")


@pytest.mark.parametrize(("persist", "expected"), [(True, b"v"), (False, None)])
def test_redis_keeps_its_data_over_a_kill_only_when_told_to(persist: bool, expected: bytes | None) -> None:
    with RedisServer(persist=persist) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
        server.restart()

        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") == expected


def test_a_frozen_redis_answers_again_when_thawed(own_redis: RedisServer) -> None:
    own_redis.freeze()
    assert not own_redis.answers()
    own_redis.thaw()

    assert own_redis.answers()
