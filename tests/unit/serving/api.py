"""The read API in process, on a real Redis and a lake in a directory."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from featurestore.clock import Clock, SystemClock
from featurestore.config import load_settings
from featurestore.definitions.compiled import CompiledView
from featurestore.online.fences import Beat, Fence
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.serving.app import create_app
from tests.unit.serving import flights

START_SECONDS = 10.0


class Api:
    """A running application and what stands behind it."""

    def __init__(self, http: httpx.AsyncClient, store: OnlineStore, clock: Clock, lake: Path) -> None:
        self.http, self.store, self.clock, self.lake = http, store, clock, lake

    async def lookup(self, body: Any, query: str = "") -> httpx.Response:
        return await self.http.post(f"/v1/lookup{query}", json=body)

    async def rows(self, service: str, entities: Mapping[str, list[Any]], **fields: Any) -> list[dict[str, Any]]:
        response = await self.lookup({"service": service, "entities": entities, **fields})
        assert response.status_code == 200, response.text
        rows: list[dict[str, Any]] = response.json()["rows"]
        return rows

    async def write(self, view: CompiledView, values: Mapping[str, bytes]) -> None:
        await self.store.write(view.id, list(values), list(values.values()))

    async def beat(self, *, partitions: int = 4, **changed: Any) -> None:
        """Heartbeats of a worker that keeps up, apart from what `changed` says of fold."""
        now = self.clock.now()
        sound = Beat(at=now, position=10, end=10, behind_seconds=0.0)
        fold = Beat(**({"at": now, "position": 10, "end": 10, "behind_seconds": 0.0} | changed))
        await self.store.put_beats("intake:departures", dict.fromkeys(range(partitions), sound))
        for view in flights.definitions().views:
            await self.store.put_beats(f"fold:{view.id}", dict.fromkeys(range(partitions), fold))
            for partition in range(partitions):
                await self.store.put_fence(view.id, partition, Fence(0, 9, {0: 9}, {}, now, now, now))

    async def status_becomes(
        self, entities: Mapping[str, list[Any]], status: str | list[str], service: str = "flight_delay"
    ) -> None:
        """Waits until the first row has this status; before that until there are definitions."""
        body = {"service": service, "entities": entities}
        async with asyncio.timeout(START_SECONDS):
            while _status(await self.lookup(body)) != status:  # noqa: ASYNC110 - polls HTTP
                await asyncio.sleep(0.05)


def _status(response: httpx.Response) -> Any:
    """Of the first row; None while there are no definitions."""
    if response.status_code == 503:
        return None
    assert response.status_code == 200, response.text
    return response.json()["rows"][0]["status"]


@asynccontextmanager
async def running(
    redis_url: str, lake: Path, clock: Clock | None = None, *, applied: bool = True, key: str = "", **settings: Any
) -> AsyncIterator[Api]:
    """Starts the application; with `applied` the registry has the definitions of `flights` and they are loaded.

    `key` is what `Api.http` shows.
    """
    clock = clock or SystemClock()
    if applied:
        apply(Registry(str(lake)), flights.definitions(), now=clock.now())
    app = create_app(load_settings(redis=redis_url, lake=str(lake), **settings), clock=clock)
    transport = httpx.ASGITransport(app=app)
    shown = {"authorization": f"Bearer {key}"} if key else {}
    async with (
        OnlineStore.connect(redis_url, timeout_seconds=1.0) as store,
        app.running(),
        httpx.AsyncClient(transport=transport, base_url="http://api", headers=shown) as http,
    ):
        api = Api(http, store, clock, lake)
        async with asyncio.timeout(START_SECONDS):
            while applied and (await http.get("/v1/services")).status_code != 200:  # noqa: ASYNC110 - polls HTTP
                await asyncio.sleep(0.02)
        yield api
