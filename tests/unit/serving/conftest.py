from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from featurestore.clock import ManualClock
from tests.unit.serving.api import Api, running


@pytest.fixture
async def api(redis_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Api]:
    async with running(redis_url, tmp_path, clock) as started:
        yield started
