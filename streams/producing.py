"""Records on their way to Kafka: acknowledged by all replicas, or not delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from featurestore.errors import Unavailable
from streams.shuffle import MAX_ROW_BYTES

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Outgoing:
    topic: str
    partition: int
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()


class Outbox:
    """One producer for all lanes of a worker.

    Not idempotent on purpose: whoever reads what we write drops second deliveries, and a producer without a
    sequence has no state that a broker's loss can put beyond repair. Where nobody drops them, be `idempotent`.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        part: str = "kafka",
        linger_ms: int = 0,
        batch_bytes: int = 1 << 20,
        idempotent: bool = False,
    ) -> None:
        """`part` is what `Unavailable` names."""
        self._part = part
        self._options = {
            "bootstrap_servers": bootstrap,
            "acks": "all",
            "linger_ms": linger_ms,
            "max_request_size": MAX_ROW_BYTES,
            "max_batch_size": batch_bytes,
            "request_timeout_ms": 10_000,
            "retry_backoff_ms": 50,
            "enable_idempotence": idempotent,
        }
        self._producer: Any = None

    async def start(self) -> None:
        """Raises Unavailable where the broker does not answer."""
        producer = AIOKafkaProducer(**self._options)
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            raise Unavailable(self._part, f"{self._options['bootstrap_servers']} does not answer: {error}") from error
        self._producer = producer

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def abandon(self) -> None:
        """As `stop`, but what is not sent yet never is: `stop` would wait for a broker that is away."""
        if self._producer is not None:
            await self._producer._sender.close()
            await self._producer.stop()

    async def attempt(self, records: Sequence[Outgoing]) -> list[KafkaError | None]:
        """What became of each record, when all that is known: None where it is acknowledged.

        An idempotent producer repeats a delivery until the broker answers, however long that takes.
        """
        futures = [await self._future(record) for record in records]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, KafkaError):
                raise outcome
        return [outcome if isinstance(outcome, KafkaError) else None for outcome in outcomes]

    async def _future(self, record: Outgoing) -> Any:
        try:
            return await self._send(record)
        except KafkaError as error:
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    async def deliver(self, records: Sequence[Outgoing]) -> None:
        """Returns when every record is acknowledged; records for the same partition may be reordered on failure.

        Raises Unavailable when one is not; all of them may then be sent again.
        """
        try:
            await asyncio.gather(*[await self._send(record) for record in records])
        except MessageSizeTooLargeError:
            raise  # no retry makes it smaller
        except KafkaError as error:
            raise Unavailable(self._part, f"records are not acknowledged: {error or type(error).__name__}") from error

    async def _send(self, record: Outgoing) -> Any:
        """A future of the acknowledgement."""
        headers = list(record.headers)
        if record.key is not None or record.value is not None:
            return await self._producer.send(
                record.topic, value=record.value, key=record.key, partition=record.partition, headers=headers
            )
        # aiokafka sends a record of nothing, which Kafka allows, only as a batch.
        batch = self._producer.create_batch()
        batch.append(key=None, value=None, timestamp=None, headers=headers)
        return await self._producer.send_batch(batch, record.topic, partition=record.partition)
