"""A broker of one's own for development and the demo: librdkafka's mock, inside the process.

What it is not: every topic has 4 partitions and appears on first use (it knows no CreateTopics), about 5 MB are kept
per partition, and nothing survives the process. So a publisher must wait for the worker, and production needs Kafka.

    python -m streams.embedded [TOPIC…]

prints the address on stdout and runs until it is ended or its stdin closes.
"""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from featurestore.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from confluent_kafka import Producer

PARTITIONS = 4
"""Of every topic: the mock has no other number."""
KEPT_BYTES = 5 << 20
"""Roughly what the mock keeps per partition before it forgets the oldest."""


class EmbeddedBroker:
    """A broker that runs until `stop` or the end of the object; `bootstrap` is for `FS_KAFKA`.

    `topics` are there from the start; others are made when someone first writes to them. Raises ConfigError where
    confluent-kafka is not installed.
    """

    # The mock lives inside this producer: it is never used to produce, and must not be collected.
    _keeper: "Producer | None"

    def __init__(self, topics: Sequence[str] = ()) -> None:
        try:
            from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 — an extra, needed only here
        except ImportError:
            raise ConfigError(
                "FS_KAFKA: there is no embedded broker on this machine",
                hint="pip install 'featurestore[demo]', or set FS_KAFKA to the bootstrap servers of a broker",
                field="FS_KAFKA",
            ) from None
        self._keeper = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        try:
            brokers = self._keeper.list_topics(timeout=10).brokers.values()
            for topic in topics:
                self._keeper.list_topics(topic, timeout=10)
        except KafkaException as error:
            raise Unavailable("kafka", f"the embedded broker did not start: {error}") from None
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def stop(self) -> None:
        """Ends the broker and forgets its topics; harmless when repeated."""
        self._keeper = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def main() -> None:
    with EmbeddedBroker(sys.argv[1:]) as broker:
        sys.stdout.write(broker.bootstrap + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
