"""Writes beside lookups, for `serve --writes RATE`: all entities in turn, each with the state that it had at a newer
offset, so that what lookups must answer stays the same and the stored bytes do not."""

import asyncio
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from featurestore.online.store import OnlineStore

CHUNK = 200
OFFSET = 24
"""Where the header of a value has it."""


@contextmanager
def writing(url: str, view_id: str, keys: Sequence[str], rate: int) -> Iterator[None]:
    """So many values a second, from a process of its own, as long as the block lasts."""
    words = [sys.executable, "-m", "tests.bench.serve_writes", url, view_id, str(rate)]
    child = subprocess.Popen(words, stdin=subprocess.PIPE)
    assert child.stdin
    child.stdin.write("\n".join(keys).encode())
    child.stdin.close()
    try:
        yield
    finally:
        child.terminate()
        child.wait(20)


async def _write(url: str, view_id: str, keys: list[str], rate: int) -> None:
    offset, done, started = 1 << 40, 0, time.monotonic()
    async with OnlineStore.connect(url) as store:
        packed = [bytearray(value or b"") for value in await store.read(view_id, keys)]
        while True:
            first = done % len(keys)
            part = slice(first, first + CHUNK)
            offset += 1
            for value in packed[part]:
                struct.pack_into("<q", value, OFFSET, offset)
            await store.write(view_id, keys[part], list(map(bytes, packed[part])))
            done += CHUNK
            await asyncio.sleep(max(0.0, started + done / rate - time.monotonic()))


if __name__ == "__main__":
    url, view_id, rate = sys.argv[1:]
    asyncio.run(_write(url, view_id, sys.stdin.read().splitlines(), int(rate)))
