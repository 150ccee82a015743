"""The verbs that need Kafka, on a real one: topics that are not there, and what `doctor` says of those that are."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.test_cli_dev import fs
from tests.parts.kafka import KafkaServer


@dataclass
class Shop:
    """A published project whose topic does not exist yet."""

    project: Path
    topic: str
    env: dict[str, str]

    def fs(self, *arguments: str) -> tuple[int, str]:
        ran = fs(*arguments, at=self.project, env=self.env)
        return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def shop(kafka: KafkaServer, redis_url: str, tmp_path: Path) -> Shop:
    project, topic = tmp_path / "shop", f"orders-{uuid.uuid4().hex}"
    assert fs("init", str(project), at=tmp_path).returncode == 0
    definitions = project / "definitions.py"
    definitions.write_text(definitions.read_text().replace('topic="shop.orders"', f'topic="{topic}"'))
    made = Shop(project, topic, {"FS_KAFKA": kafka.bootstrap, "FS_REDIS": redis_url})
    assert made.fs("apply")[0] == 0, made.fs("apply")[1]
    return made


def test_a_topic_that_does_not_exist_is_said_and_not_made(shop: Shop, kafka: KafkaServer) -> None:
    code, said = shop.fs("publish", "orders", "orders.jsonl")

    assert code == 1
    assert f"unknown topic '{shop.topic}'" in said
    assert f"--create --topic {shop.topic}" in said
    assert shop.topic not in kafka.admin.list_topics(timeout=10).topics


def test_doctor_and_status_name_the_missing_topic(shop: Shop) -> None:
    code, said = shop.fs("doctor")

    assert code == 1
    assert f"topic {shop.topic} of source orders does not exist" in said
    assert f"topic {shop.topic} does not exist" in shop.fs("status")[1]


def test_events_are_spread_by_key_and_seen_by_status_before_any_worker(shop: Shop, kafka: KafkaServer) -> None:
    kafka.create_topic(shop.topic, partitions=3)
    code, said = shop.fs("publish", "orders", "orders.jsonl")

    assert code == 0, said
    assert f"4 events to {shop.topic}" in said
    ran = fs("status", "--output", "json", at=shop.project, env=shop.env)
    assert ran.returncode == 0, ran.stderr
    lags = [partition["lag"] for partition in json.loads(ran.stdout)["sources"][0]["partitions"]]
    assert len(lags) == 3
    assert sum(lags) == 4
    assert max(lags) >= 3  # one customer's events stay together


def test_doctor_tells_whose_clock_a_topic_has(shop: Shop, kafka: KafkaServer) -> None:
    kafka.create_topic(shop.topic, partitions=3, config={"message.timestamp.type": "CreateTime"})
    said = shop.fs("doctor")[1]

    assert f"topic {shop.topic}: 3 partitions" in said
    assert "embedded broker" not in said
    assert "timestamps of the producers" in said
