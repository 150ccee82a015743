from collections.abc import AsyncIterator

import pytest_asyncio

from featurestore.online.store import OnlineStore


@pytest_asyncio.fixture
async def store(redis_url: str) -> AsyncIterator[OnlineStore]:
    """A store in an empty Redis."""
    async with OnlineStore.connect(redis_url) as opened:
        yield opened
