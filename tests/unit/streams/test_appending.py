"""Rows that wait for the lake: each of them gets there once, whatever an append comes to."""

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from featurestore.errors import Unavailable
from featurestore.offline.lake import Lake
from streams.appending import Appender
from streams.patience import Patience

TABLE = "events/clicks"


class Stuck(Lake):
    """Its first append waits until it is let go, and then fails: what it was given is not there."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reached, self.let_go = threading.Event(), threading.Event()

    def append(self, table: str, batch: pa.Table, marks: Mapping[str, int]) -> bool:
        if not self.reached.is_set():
            self.reached.set()
            self.let_go.wait(30)
            raise Unavailable("lake", "let go")
        return super().append(table, batch, marks)


def rows(first: int, last: int, partition: int = 0) -> pa.Table:
    offsets = np.arange(first, last + 1)
    return pa.table(
        {
            "_partition": np.full(offsets.size, partition, np.int32),
            "_offset": offsets,
            "event_time": pa.array(offsets * 1_000_000).cast(pa.timestamp("us", "UTC")),
        }
    )


class Durable:
    """Notes what is told to be in the lake."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, str]] = []

    async def __call__(self, partition: int, token: str) -> None:
        self.tokens.append((partition, token))


@pytest.fixture
def durable() -> Durable:
    return Durable()


def appender(lake: Lake, durable: Durable) -> Appender[str, pa.Table]:
    return Appender[str, pa.Table](lake, TABLE, "clicks", Patience(), pa.concat_tables, durable, interval=3600)


def stored(folder: Path) -> list[int]:
    offsets: list[int] = DeltaTable(str(folder / TABLE)).to_pyarrow_table()["_offset"].to_pylist()
    return sorted(offsets)


async def test_rows_whose_append_was_cut_off_come_with_the_next(tmp_path: Path, durable: Durable) -> None:
    lake = Stuck(str(tmp_path))
    rows_to_lake = appender(lake, durable)
    rows_to_lake.put(0, rows(0, 2), 2, "to 2")
    flush = asyncio.create_task(rows_to_lake.flush())
    await asyncio.to_thread(lake.reached.wait, 30)
    rows_to_lake.put(0, rows(3, 4), 4, "to 4")
    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush
    lake.let_go.set()
    assert durable.tokens == []

    await rows_to_lake.flush()

    assert [0, 1, 2, 3, 4] == stored(tmp_path)
    assert [(0, "to 4")] == durable.tokens


async def test_rows_of_a_partition_that_was_given_up_do_not_come(tmp_path: Path, durable: Durable) -> None:
    rows_to_lake = appender(Lake(str(tmp_path)), durable)
    rows_to_lake.put(0, rows(0, 2), 2, "to 2")
    rows_to_lake.put(1, rows(7, 8, partition=1), 8, "to 8")
    rows_to_lake.forget([0])
    await rows_to_lake.flush()

    assert [7, 8] == stored(tmp_path)
    assert [(1, "to 8")] == durable.tokens
    assert {0: -1, 1: 8} == await rows_to_lake.recorded([0, 1])
