"""Rows for lake tests."""

import numpy as np
import pyarrow as pa

from featurestore.clock import DAY, HOUR, MINUTE
from featurestore.contracts.contract import parse_contract
from featurestore.definitions.compiled import CompiledSource

START = 1_704_067_200_000_000
"""2024-01-01T00:00:00Z"""


def rows(first: int, last: int, partition: int = 0, *, step: int = MINUTE) -> pa.Table:
    """Offsets `first` to `last`, both inclusive, `step` µs apart."""
    offsets = np.arange(first, last + 1)
    times = START + offsets * step
    months = times.astype("datetime64[us]").astype("datetime64[M]").astype(str)
    return pa.table(
        {
            "carrier": pa.array([f"C{o % 7}" for o in offsets.tolist()], pa.string()),
            "delay": pa.array(offsets * 0.5, pa.float64()),
            "_partition": pa.array(np.full(offsets.size, partition), pa.int32()),
            "_offset": pa.array(offsets, pa.int64()),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "_month": pa.array(months.tolist(), pa.string()),
        }
    )


CONTRACT = """{"type": "record", "name": "Departure", "fields": [
  {"name": "departed_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
  {"name": "origin", "type": ["null", "string"], "default": null},
  {"name": "gate", "type": ["null", "long"], "default": null},
  {"name": "delay", "type": ["null", "double"], "default": null}
]}"""

EVOLVED = CONTRACT.replace(
    '"default": null}\n]', '"default": null},\n  {"name": "terminal", "type": "string", "default": "main"}\n]'
)


def source(contract: str = CONTRACT, version: int = 1) -> CompiledSource:
    return CompiledSource(
        name="departures",
        topic="flights.departures",
        contract=parse_contract(f"flights.departures/v{version}", contract),
        event_time="departed_at",
        key=(),
        lateness=0,
        max_future_skew=5 * MINUTE,
    )


__all__ = ["CONTRACT", "DAY", "EVOLVED", "HOUR", "MINUTE", "START", "rows", "source"]
