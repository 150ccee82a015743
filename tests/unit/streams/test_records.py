"""The decoded record of aiokafka has all that lanes use, and says the same as the object that is made of it."""

from operator import attrgetter

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords

from streams.records import hand_out_decoded_records
from tests.parts.kafka import KafkaServer

TOPIC = TopicPartition("records-as-decoded", 0)
USED = attrgetter("offset", "timestamp", "timestamp_type", "key", "value")


async def fetched(bootstrap: str) -> list[object]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False) as consumer:
        consumer.assign([TOPIC])
        consumer.seek(TOPIC, 1)
        found: list[object] = []
        while len(found) < 3:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [(*USED(record), tuple(record.headers)) for record in records]
        return found


async def test_decoded_records_say_what_consumer_records_say(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka.create_topic(TOPIC.topic, partitions=1)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, compression_type="gzip", linger_ms=50) as producer:
        sent = [(b"k", b"v", []), (None, b"w", [("h", b"1"), ("h", b"")]), (b"", None, []), (b"\xff", b"", [])]
        for key, value, headers in sent:
            await producer.send(TOPIC.topic, key=key, value=value, headers=headers)
    expected = await fetched(kafka.bootstrap)
    monkeypatch.setattr(PartitionRecords, "_consumer_record", PartitionRecords._consumer_record)
    hand_out_decoded_records()

    assert await fetched(kafka.bootstrap) == expected
    assert len(expected) == 3
