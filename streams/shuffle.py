"""The columnar record: events of one source partition on their way to one entity partition.

One Kafka record holds an Arrow IPC stream of one batch: the contract's columns, `_offset` (source offset, ascending)
and `_appended` (the broker's timestamp of the source record, µs). The source, its partition and the contract are in
the schema's metadata, since they are the same for every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.contracts.arrow import arrow_schema, build_column
from featurestore.contracts.contract import Contract
from featurestore.errors import Corrupt

MAX_RECORD_BYTES = 900_000
"""Of a columnar record, where its rows allow: brokers refuse more than about 1 MB unless they are told otherwise."""
MAX_ROW_BYTES = 8 << 20
"""Of a record that cannot be split any further; topics are created with this limit."""

OFFSET, APPENDED, PARTITION = "_offset", "_appended", "_partition"

_SOURCE, _PARTITION, _CONTRACT = b"fs.source", b"fs.partition", b"fs.contract"
_READ_OPTIONS = pa.ipc.IpcReadOptions(ensure_native_endian=True)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a record come from."""

    source: str
    partition: int
    contract: str


@dataclass(frozen=True, slots=True, eq=False)
class Shuffled:
    """A decoded record. `rows` has the contract's columns, `_partition`, `_offset` and `_appended`."""

    origin: Origin
    rows: pa.RecordBatch
    offsets: np.ndarray
    """`int64[n]`, the source offsets, ascending."""


def encode(origin: Origin, rows: pa.RecordBatch, targets: np.ndarray) -> dict[int, list[bytes]]:
    """Entity partition → its records, which must be delivered in this order; rows keep theirs.

    `rows` has the contract's columns, `_offset` and `_appended`.
    """
    order = np.argsort(targets, kind="stable")
    held, starts = np.unique(targets[order], return_index=True)
    described = rows.replace_schema_metadata(
        {_SOURCE: origin.source, _PARTITION: str(origin.partition), _CONTRACT: origin.contract}
    )
    grouped = described.take(pa.array(order))
    ends = np.append(starts[1:], len(order))
    return {
        target: list(_bounded(grouped.slice(start, end - start)))
        for target, start, end in zip(held.tolist(), starts.tolist(), ends.tolist(), strict=True)
    }


def _bounded(rows: pa.RecordBatch) -> Iterator[bytes]:
    if rows.num_rows == 1 or rows.get_total_buffer_size() <= MAX_RECORD_BYTES or rows.nbytes <= MAX_RECORD_BYTES // 2:
        data = _serialize(rows)
        if len(data) <= MAX_RECORD_BYTES or rows.num_rows == 1:
            yield data
            return
    half = rows.num_rows // 2
    yield from _bounded(rows.slice(0, half))
    yield from _bounded(rows.slice(half))


def _serialize(rows: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode(data: bytes, contract: Contract) -> Shuffled:
    """Rows in today's contract: what an older one did not have takes its default, what is no longer known is dropped.

    Raises Corrupt where the bytes are not what `encode` makes.
    """
    try:
        with pa.ipc.open_stream(data, options=_READ_OPTIONS) as reader:
            batch = reader.read_next_batch()
        batch.validate(full=True)
        metadata = batch.schema.metadata or {}
        origin = Origin(metadata[_SOURCE].decode(), int(metadata[_PARTITION]), metadata[_CONTRACT].decode())
        offsets = batch.column(OFFSET).to_numpy().astype(np.int64, copy=False)
        return Shuffled(origin, _conform(batch, contract, origin.partition), offsets)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, KeyError, ValueError, StopIteration) as error:
        raise Corrupt(
            f"a record of a shuffle topic is no columnar batch of {contract.id}: {error}",
            hint="only intake may write to a shuffle topic; see who else does",
        ) from error


def _conform(batch: pa.RecordBatch, contract: Contract, partition: int) -> pa.RecordBatch:
    schema = arrow_schema(contract)
    kept = len(schema)
    if batch.schema.names[:kept] == schema.names and batch.schema.types[:kept] == schema.types:
        columns = batch.columns[:kept]
    else:
        columns = _converted(batch, contract, schema)
    partitions = pa.array(np.full(batch.num_rows, partition, np.int32))
    own = [partitions, batch.column(OFFSET), batch.column(APPENDED)]
    return pa.RecordBatch.from_arrays([*columns, *own], names=[*schema.names, PARTITION, OFFSET, APPENDED])


def _converted(batch: pa.RecordBatch, contract: Contract, schema: pa.Schema) -> list[pa.Array]:
    names = set(batch.schema.names)
    columns = []
    for field, wanted in zip(contract.fields, schema, strict=True):
        if field.name in names:
            columns.append(batch.column(field.name).cast(wanted.type))
        elif field.has_default or field.nullable:
            value = field.default if field.has_default else None
            columns.append(build_column([value] * batch.num_rows, field))
        else:
            raise ValueError(f"column {field.name!r} is missing and has no default")
    return columns


def with_positions(columns: pa.RecordBatch, offsets: np.ndarray, appended: np.ndarray) -> pa.RecordBatch:
    """The contract's columns with each row's source offset and broker timestamp (µs): what `encode` takes."""
    arrays = [*columns.columns, pa.array(offsets, pa.int64()), pa.array(appended, pa.int64())]
    return pa.RecordBatch.from_arrays(arrays, names=[*columns.schema.names, OFFSET, APPENDED])
