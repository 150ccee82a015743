"""What `doctor` says of history: whether online values have what was loaded into the lake."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from featurestore.clock import SystemClock
from featurestore.config import Settings
from featurestore.errors import StoreRefused, Unavailable
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.offline.lake import Lake
from featurestore.online.health import Finding, Level
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog

_REDIS_SECONDS = 3.0


def history_findings(settings: Settings, catalog: Catalog) -> list[Finding]:
    try:
        lacking = asyncio.run(_incomplete(settings, catalog))
    except (Unavailable, StoreRefused):
        return []  # the part has a finding of its own
    if not lacking:
        return [Finding("", Level.OK, "online values have all that was loaded into the lake")]
    return [
        Finding("", Level.FAULT, f"values of {view} are stale: they lack {said.partition(';')[0]}",
                f"run: featurestore backfill {view}")
        for view, said in sorted(lacking.items())
    ]  # fmt: skip


async def _incomplete(settings: Settings, catalog: Catalog) -> Mapping[str, str]:
    async with OnlineStore.connect(settings.redis, project=settings.project, timeout_seconds=_REDIS_SECONDS) as store:
        board = FreshnessBoard(store, SystemClock(), lake=Lake(settings.lake))
        board.watch(catalog.views.values())
        await board.look_for_loads()
        await board.refresh()
        return board.incomplete()
