"""What the API's memory does over many lookups, for `serve --memory LOOKUPS`."""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from featurestore.clock import parse_instant
from featurestore.engine.read import ViewReader
from featurestore.online.store import OnlineStore
from tests.bench.stream_process import resident_of
from tests.unit.serving import flights


def expected_at(url: str, keys: Sequence[str]) -> Callable[[bytes, str], list[Any]]:
    """Answer and entity → its row at the answer's own instant: ten million lookups take longer than any window's values
    stay the same."""
    view = flights.view("airport_delay")
    reader = ViewReader(view)

    async def stored() -> dict[str, bytes | None]:
        async with OnlineStore.connect(url) as store:
            return dict(zip(keys, await store.read(view.id, keys), strict=True))

    values = asyncio.run(stored())

    def row(answer: bytes, key: str) -> list[Any]:
        reading = reader.read([values[key]], None, parse_instant(json.loads(answer)["at"]))
        return [column.to_list()[0] for column in reading.columns]

    return row


def watch(ask: Callable[[], int], pid: int, lookups: int) -> None:
    """`ask` sends some and returns how many. The slope is that of the second half: before that, caches and the
    allocator's arenas fill up."""
    done, seen = 0, list[tuple[int, int]]()
    while done < lookups:
        done += ask()
        seen.append((done, resident_of(pid)))
    counts, sizes = np.array(seen, np.float64)[len(seen) // 2 :].T
    slope = np.polyfit(counts, sizes, 1)[0] if counts.size > 1 else math.nan
    print(
        f"memory of the API over {done:,} lookups: {seen[0][1] / 2**20:.1f} MiB after the first {seen[0][0]:,}, "
        f"{max(size for _, size in seen) / 2**20:.1f} MiB at most; {slope:.3f} bytes a lookup over the second half"
    )
