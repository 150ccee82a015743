"""The limit that `serve` is measured against: an ASGI function that asks Redis once and decodes a fixed layout.

It knows no features, statuses, windows, versions or missing values. One connection carries the commands of all
requests, in the order they came.
"""

import asyncio
import sys
from collections import deque
from typing import Any

import hiredis
import msgspec
import numpy as np
import uvicorn

FEATURES = 10


class _Body(msgspec.Struct):
    service: str
    entities: dict[str, list[str]]


class Multiplexed(asyncio.Protocol):
    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._waiting.popleft().set_result(reply)

    def ask(self, *words: bytes) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]
        return answer


class Bare:
    def __init__(self, redis_port: int) -> None:
        self._port = redis_port
        self._redis: Multiplexed | None = None
        self._decode = msgspec.json.Decoder(_Body).decode
        self._encode = msgspec.json.Encoder().encode

    async def _connected(self) -> Multiplexed:
        if self._redis is None:
            loop = asyncio.get_running_loop()
            _, self._redis = await loop.create_connection(Multiplexed, "127.0.0.1", self._port)
        return self._redis

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        [keys] = self._decode(body).entities.values()
        redis = await self._connected()
        if len(keys) == 1:
            values = [await redis.ask(b"GET", b"bare:" + keys[0].encode())]
        else:
            values = await redis.ask(b"MGET", *[b"bare:" + key.encode() for key in keys])
        table = np.frombuffer(b"".join(values), "<f8").reshape(-1, FEATURES)
        content = self._encode({"rows": table.tolist()})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


if __name__ == "__main__":
    uvicorn.run(
        Bare(int(sys.argv[1])),
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        lifespan="off",
        log_level="warning",
    )
