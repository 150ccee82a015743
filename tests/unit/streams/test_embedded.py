import subprocess
import sys

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from featurestore.errors import ConfigError
from streams.embedded import PARTITIONS, EmbeddedBroker


async def test_what_is_produced_is_consumed_in_order(embedded_broker: EmbeddedBroker) -> None:
    values = [b"%d" % i for i in range(500)]
    async with AIOKafkaProducer(bootstrap_servers=embedded_broker.bootstrap) as producer:
        for value in values:
            await producer.send("t", value, partition=1)
        await producer.flush()

    async with AIOKafkaConsumer(bootstrap_servers=embedded_broker.bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition("t", 1)])
        received = [await anext(consumer) for _ in values]

    assert [(record.offset, record.value) for record in received] == list(enumerate(values))


async def test_a_topic_has_four_partitions(embedded_broker: EmbeddedBroker) -> None:
    async with AIOKafkaProducer(bootstrap_servers=embedded_broker.bootstrap) as producer:
        await producer.send_and_wait("t", b"x")

        assert await producer.partitions_for("t") == set(range(PARTITIONS))


async def test_a_group_commits_and_resumes(embedded_broker: EmbeddedBroker) -> None:
    at = TopicPartition("t", 0)
    async with AIOKafkaProducer(bootstrap_servers=embedded_broker.bootstrap) as producer:
        await producer.send_and_wait("t", b"x", partition=0)

    async with AIOKafkaConsumer(
        "t", bootstrap_servers=embedded_broker.bootstrap, group_id="g", auto_offset_reset="earliest"
    ) as consumer:
        await anext(consumer)
        await consumer.commit({at: 1})

        assert await consumer.committed(at) == 1


def test_two_brokers_are_apart() -> None:
    with EmbeddedBroker() as one, EmbeddedBroker() as two:
        assert one.bootstrap != two.bootstrap


def test_as_a_process_it_prints_its_address_and_ends_with_its_stdin() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.embedded"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout as out, process.stdin:
        host, _, port = out.readline().strip().partition(":")

    assert host == "127.0.0.1"
    assert 0 < int(port) < 65536
    assert process.wait(timeout=10) == 0


def test_a_machine_without_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)

    with pytest.raises(ConfigError, match="FS_KAFKA") as caught:
        EmbeddedBroker()

    assert "pip install 'featurestore[demo]'" in caught.value.hint
