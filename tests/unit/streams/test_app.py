"""The worker's application waits for its parts, whatever goes away while it starts."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from featurestore.config import load_settings
from streams.app import Runtime, create_app


async def test_a_broker_that_goes_away_as_the_worker_starts_is_waited_for(redis_url: str, tmp_path: Path) -> None:
    """After `wait_for_parts` has seen it, and before the services have."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    runtime = Runtime(load_settings(kafka=f"127.0.0.1:{port}", redis=redis_url, lake=str(tmp_path / "lake")))
    app: Any = create_app(runtime)
    try:
        await app.start()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(app._crashed.wait(), 2.0)
    finally:
        await app.stop()
        await runtime.close()
        app.consumer._thread.thread_loop.close()  # that Faust makes, and leaves to the end of the process
