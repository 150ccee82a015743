"""The parts that a stage works with, all real, with the broker in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from featurestore.clock import SystemClock
from featurestore.config import load_settings
from featurestore.offline.lake import Lake
from featurestore.online.store import OnlineStore
from streams.deadletters import DeadLetters
from streams.embedded import EmbeddedBroker
from streams.patience import Patience
from streams.producing import Outbox
from streams.topics import Topics
from streams.wiring import Parts


@pytest.fixture
async def parts(embedded_broker: EmbeddedBroker, redis_url: str, tmp_path: Path) -> AsyncIterator[Parts]:
    address, patience = embedded_broker.bootstrap, Patience()
    topics, outbox = Topics(address), Outbox(address)
    await outbox.start()
    async with OnlineStore.connect(redis_url) as store:
        yield Parts(
            settings=load_settings(kafka=address, redis=redis_url, lake=str(tmp_path / "lake")),
            bootstrap=address,
            store=store,
            lake=Lake(str(tmp_path / "lake")),
            clock=SystemClock(),
            topics=topics,
            outbox=outbox,
            dead=DeadLetters(outbox, topics, patience),
            patience=patience,
            xp=np,
        )
    await outbox.stop()
