"""A file of events into a source's topic: checked against the contract as a whole before the first one is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from aiokafka.partitioner import DefaultPartitioner

from featurestore.contracts.decode import decode
from featurestore.contracts.encode import encode_json
from featurestore.contracts.reasons import MAX_VALUE_BYTES, Reject
from featurestore.contracts.tables import check_table
from featurestore.definitions.compiled import CompiledSource
from featurestore.engine.columns import canonical_keys
from featurestore.errors import InvalidRequest, NotFound, Unavailable

CHUNK_ROWS = 8192
_BATCH_BYTES = 256 << 10
_TOPIC_SECONDS = 3.0
_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some rows of a file, all valid. `lines` has the values as the file has them; without it they are encoded."""

    events: pa.Table
    lines: Sequence[bytes] | None = None

    @property
    def rows(self) -> int:
        return int(self.events.num_rows)

    def values(self, source: CompiledSource) -> Sequence[bytes]:
        return self.lines if self.lines is not None else encode_json(source.contract, self.events)

    def keys(self, source: CompiledSource) -> pa.Array:
        """Message keys, null for events without one."""
        if not source.key:
            return pa.nulls(self.rows, pa.string())
        return canonical_keys([self.events.column(name).combine_chunks() for name in source.key])


def read_chunks(path: Path, source: CompiledSource) -> Iterator[Chunk]:
    """Raises InvalidRequest that names the first row which breaks the contract, ContractError for a column."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidRequest(f"{path.name} is neither Parquet nor JSON lines",
                             hint=f"use a file that ends in {', '.join(_SUFFIXES)}", field="file")  # fmt: skip
    with _readable(path):
        yield from (_parquet if path.suffix.lower() == ".parquet" else _json_lines)(path, source)


def check_file(path: Path, source: CompiledSource) -> int:
    """Reads all of a file; returns its number of rows."""
    return sum(chunk.rows for chunk in read_chunks(path, source))


def _parquet(path: Path, source: CompiledSource) -> Iterator[Chunk]:
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(CHUNK_ROWS):
            events, rejects = check_table(source.contract, pa.Table.from_batches([batch]))
            _refuse(path, "row", rejects, range(start, start + batch.num_rows), source)
            start += batch.num_rows
            yield Chunk(events)


def _json_lines(path: Path, source: CompiledSource) -> Iterator[Chunk]:
    with path.open("rb") as file:
        numbers, lines = list[int](), list[bytes]()
        for number in count(1):
            line = file.readline(MAX_VALUE_BYTES + 2)
            if line.strip():
                numbers.append(number)
                lines.append(line.strip())
            if lines and (not line or len(lines) == CHUNK_ROWS):
                decoded = decode(source.contract, lines, "json")
                _refuse(path, "line", decoded.rejects, numbers, source)
                yield Chunk(pa.Table.from_batches([decoded.columns]), lines)
                numbers, lines = [], []
            if not line:
                return


def _refuse(path: Path, unit: str, rejects: Sequence[Reject], numbers: Sequence[int], source: CompiledSource) -> None:
    if rejects:
        first = rejects[0]
        raise InvalidRequest(
            f"{path.name}, {unit} {numbers[first.row]}: {first.error} ({first.reason})",
            hint=f"nothing was sent: every row must satisfy contract {source.contract.id}",
            field="file",
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {path}", field="file") from None
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise InvalidRequest(f"{path} cannot be read: {text}", field="file") from error


@dataclass(frozen=True, slots=True)
class Sent:
    """What one chunk added to the topic: partition → the offset after its last record, and its bytes."""

    ends: dict[int, int]
    sizes: dict[int, int]


class Publisher:
    """Sends chunks to one source's topic. An entity's events keep their order and their partition.

    Keys are spread as Java producers do it, so that other producers of the topic agree. Raises Unavailable("kafka").
    """

    def __init__(self, bootstrap: str, source: CompiledSource) -> None:
        self._bootstrap, self._source = bootstrap, source
        self._spread = DefaultPartitioner()
        self._homes: dict[str, int] = {}
        self._turn = 0
        self._producer: Any = None
        self._partitions: list[int] = []

    async def start(self) -> None:
        """Raises NotFound where there is no such topic and the broker does not make it by itself."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap, acks="all", max_batch_size=_BATCH_BYTES, max_request_size=8 << 20
        )
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            raise Unavailable(
                "kafka", f"{self._bootstrap} does not answer: {error}", hint="is FS_KAFKA right?"
            ) from error
        self._producer = producer
        self._partitions = sorted(await self._ask_partitions())

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def send(self, chunk: Chunk) -> Sent:
        """Returns when every record is acknowledged."""
        values = await asyncio.to_thread(chunk.values, self._source)
        keys = chunk.keys(self._source).to_pylist()
        ends: dict[int, int] = {}
        sizes: dict[int, int] = {}
        try:
            pending = [
                (partition, batch.record_count(), batch.size(), await self._producer.send_batch(
                    batch, self._source.topic, partition=partition))
                for partition, batch in self._batches(keys, values)
            ]  # fmt: skip
            for partition, rows, size, future in pending:
                at = (await future).offset + rows
                ends[partition] = max(ends.get(partition, 0), at)
                sizes[partition] = sizes.get(partition, 0) + size
        except KafkaError as error:
            hint = "some may have been delivered, and events that are sent twice are counted twice"
            said = f"records are not acknowledged: {error or type(error).__name__}"
            raise Unavailable("kafka", said, hint=hint) from error
        return Sent(ends, sizes)

    def _batches(self, keys: Sequence[str | None], values: Sequence[bytes]) -> Iterator[tuple[int, Any]]:
        homes = np.array([self._home(key) for key in keys])
        for partition in np.unique(homes).tolist():
            batch = self._producer.create_batch()
            for row in np.flatnonzero(homes == partition).tolist():
                key, value = keys[row], values[row]
                encoded = None if key is None else key.encode()
                if batch.append(key=encoded, value=value, timestamp=None) is None:
                    yield partition, batch
                    batch = self._producer.create_batch()
                    if batch.append(key=encoded, value=value, timestamp=None) is None:
                        raise InvalidRequest(f"an event of {len(value)} bytes is too large for the topic", field="file")
            yield partition, batch

    def _home(self, key: str | None) -> int:
        if key is None:
            self._turn += 1
            return self._partitions[self._turn // 512 % len(self._partitions)]
        if key not in self._homes:
            self._homes[key] = self._spread(key.encode(), self._partitions, self._partitions)
        return self._homes[key]

    async def _ask_partitions(self) -> set[int]:
        topic = self._source.topic
        try:
            # A broker that makes topics by itself needs a moment; one that does not never answers.
            async with asyncio.timeout(_TOPIC_SECONDS):
                return set(await self._producer.partitions_for(topic))
        except (UnknownTopicOrPartitionError, TimeoutError):
            pass
        except KafkaError as error:
            said = f"topic {topic} cannot be used: {error or type(error).__name__}"
            raise Unavailable("kafka", said, hint="may this client write there?") from error
        raise NotFound(
            "topic",
            topic,
            hint=f"create it, as: kafka-topics.sh --bootstrap-server {self._bootstrap} --create --topic {topic} "
            "--partitions 8 --config message.timestamp.type=LogAppendTime",
        )
