"""Which topics there are, and the ones that the store makes for itself."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError

from featurestore.definitions.compiled import CompiledView
from featurestore.errors import Unavailable
from streams.shuffle import MAX_ROW_BYTES

_TOPIC_ALREADY_EXISTS = 36
_OURS = {
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    "max.message.bytes": str(MAX_ROW_BYTES),
}


def shuffle_topic(project: str, view: CompiledView) -> str:
    """The topic that carries the view's events by entity. Views with the same keys share it."""
    return f"{project}.shuffle.{view.source.name}.{'-'.join(view.keys)}"


def dead_letter_topic(topic: str) -> str:
    return f"{topic}.dlq"


@dataclass(frozen=True, slots=True)
class Partitions:
    """`missing` topics were asked for and do not exist."""

    counts: Mapping[str, int]
    missing: frozenset[str]


class Topics:
    """The broker's topics. Every call connects anew: this is asked rarely, and then an old connection is a dead one.

    Raises Unavailable("kafka") where the broker does not answer.
    """

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap

    async def look(self, names: Collection[str]) -> Partitions:
        """Partition counts of those that exist. Asking never makes a topic."""
        async with self._admin() as admin:
            return await _look(admin, names)

    async def ensure(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Makes topics that are not there, kept forever; returns the partition counts that they have.

        An embedded broker cannot be asked for a number: there, any mention of a topic makes it.
        """
        async with self._admin() as admin:
            there = await _look(admin, wanted)
            if there.missing:
                cluster = await admin.describe_cluster()
                if _is_embedded(cluster):
                    await admin.describe_topics(sorted(there.missing))
                else:
                    replicas = min(3, len(cluster["brokers"]))
                    new = [NewTopic(t, wanted[t], replicas, topic_configs=_OURS) for t in sorted(there.missing)]
                    _raise_refusals(await admin.create_topics(new))
                there = await _look(admin, wanted)
            if there.missing:
                raise Unavailable("kafka", f"the broker has not made {', '.join(sorted(there.missing))} yet")
            return dict(there.counts)

    async def is_plain(self, topic: str) -> bool:
        """Whether the broker says that it keeps every record of the topic: no compaction. False where it cannot say."""
        try:
            async with self._admin() as admin:
                resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs={"cleanup.policy": ""})
                answers = await admin.describe_configs([resource])
                entries = [entry for answer in answers for res in answer.resources for entry in res[4]]
        except (KafkaError, IncompatibleBrokerVersion, AttributeError, IndexError):
            return False
        return any(entry[0] == "cleanup.policy" and entry[1] == "delete" for entry in entries)

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap, request_timeout_ms=10_000)
        try:
            await admin.start()
            yield admin
        except (KafkaError, OSError, TimeoutError) as error:
            raise Unavailable(
                "kafka",
                f"{self._bootstrap} does not answer: {error or type(error).__name__}",
                hint="is FS_KAFKA right?",
            ) from error
        finally:
            await admin.close()


def _is_embedded(cluster: Any) -> bool:
    """The mock names a controller that is not among its brokers: nobody who could make a topic."""
    return cluster["controller_id"] not in {broker["node_id"] for broker in cluster["brokers"]}


async def _look(admin: Any, names: Collection[str]) -> Partitions:
    existing = set(await admin.list_topics())
    found = sorted(existing & set(names))
    described = await admin.describe_topics(found) if found else []
    counts = {t["topic"]: len(t["partitions"]) for t in described if t["error_code"] == 0 and t["partitions"]}
    return Partitions(counts, frozenset(set(names) - set(counts)))


def _raise_refusals(response: Any) -> None:
    for name, code, *message in response.topic_errors:
        if code not in (0, _TOPIC_ALREADY_EXISTS):
            raise Unavailable("kafka", f"the broker refuses to make topic {name}: {message or code}")
