"""Keeps a process at the newest revision, and at the last good one while the lake is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from featurestore.errors import FeatureStoreError
from featurestore.registry.catalog import Catalog, catalog_of
from featurestore.registry.log import Registry

INTERVAL_SECONDS = 0.5


class Follower:
    """Holds the newest catalog that could be read and verified.

    `on_change` is awaited with each new one before it becomes `catalog`. Where reading or `on_change` raises a
    FeatureStoreError, the last catalog stays, `trouble` has the error, and the next poll tries again; any other
    exception of `on_change` ends `run`.
    """

    def __init__(
        self,
        registry: Registry,
        on_change: Callable[[Catalog], Awaitable[None]] | None = None,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self.catalog: Catalog | None = None
        """None until the registry has been read for the first time; it may be empty then (revision 0)."""
        self.trouble: FeatureStoreError | None = None
        self._registry = registry
        self._on_change = on_change
        self._interval = interval_seconds

    def current(self) -> Catalog | None:
        return self.catalog

    async def refresh(self) -> bool:
        """Look once; True where there was something new."""
        try:
            found = await asyncio.to_thread(self._newer)
            if found is not None and self._on_change is not None:
                await self._on_change(found)
        except FeatureStoreError as error:
            self.trouble = error
            return False
        self.trouble = None
        self.catalog = found or self.catalog
        return found is not None

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._interval)

    def _newer(self) -> Catalog | None:
        if self.catalog is None:
            return self._registry.head()
        number = self._registry.poll(self.catalog.revision)
        return None if number is None else catalog_of(self._registry.read(number))
