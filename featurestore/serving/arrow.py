"""What a lookup found as one Arrow record batch, for callers who want columns with their declared types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from featurestore.clock import format_instant
from featurestore.engine.columns import ARROW_TYPES
from featurestore.serving.answers import Answer
from featurestore.serving.plan import LookupPlan
from featurestore.serving.requests import KeyValue
from featurestore.types import STATUSES, Dtype

_STATUS_TEXTS = pa.array([status.value for status in STATUSES], pa.string())
_INSTANT = ARROW_TYPES[Dtype.TIMESTAMP]
_WRITTEN_AS = {_INSTANT: pa.string(), pa.list_(_INSTANT): pa.list_(pa.string())}
"""Types whose JSON-ready values have to be read, and as what."""


def encode_arrow(plan: LookupPlan, answer: Answer, entities: Sequence[list[KeyValue]], spent_ms: float) -> bytes:
    """A stream of one batch with the plan's schema, whose metadata are the envelope of the other shapes, as text."""
    block, part = answer.block, slice(answer.start, answer.stop)
    found = [
        array
        for values, status, kind in zip(block.columns, block.status, plan.arrow_types, strict=True)
        for array in (typed(values[part], kind), _statuses(status[part]))
    ]
    keys = [pa.array(column, ARROW_TYPES[dtype]) for column, dtype in zip(entities, plan.entities.dtypes, strict=True)]
    schema = plan.schema.with_metadata(_envelope(plan, answer, spent_ms))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays([*keys, *found], schema=schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    """JSON-ready values of an answer's column as its declared type."""
    written = _WRITTEN_AS.get(kind)
    return pa.array(values, kind) if written is None else pa.array(values, written).cast(kind)


def _statuses(codes: Any) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype("int8")), _STATUS_TEXTS, safe=False)


def _envelope(plan: LookupPlan, answer: Answer, spent_ms: float) -> dict[str, str]:
    return {
        "service": plan.service.name,
        "version": str(plan.version),
        "revision": str(plan.revision),
        "at": format_instant(answer.at),
        "spent_ms": f"{spent_ms:.3f}",
        "source": answer.source,
    }
