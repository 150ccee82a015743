"""What the documented examples run on: the flights of the README, streamed into a whole feature store."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest

from featurestore.cli.parts import Stack
from featurestore.cli.processes import module_command
from featurestore.clock import MINUTE, SystemClock
from tests.docs.reading import ROOT, blocks

DEPARTURES = (
    # minutes ago, origin, carrier, delay
    (40, "JFK", "AA", 4.0),
    (20, "JFK", "B6", 20.0),
    (300, "LGA", "DL", 7.0),
)
_FIXED = {"flight": 1, "tailnum": "N1", "dest": "BOS", "distance": 187.0}


def _events(now: int) -> list[dict[str, object]]:
    return [
        {"departed_at": now - minutes * MINUTE, "origin": origin, "carrier": carrier, "dep_delay": delay, **_FIXED}
        for minutes, origin, carrier, delay in DEPARTURES
    ]


@pytest.fixture(scope="session")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Serves the README's `flight_delay`, and `boarding` of docs/serving.md.

    JFK has two departures in the last hour, LGA one of five hours ago.
    """
    directory = tmp_path_factory.mktemp("flights")
    shutil.copytree(ROOT / "schemas", directory / "schemas")
    [boarding] = [block.text for block in blocks(ROOT / "docs" / "serving.md", "") if "FeatureService(" in block.text]
    readme = blocks(ROOT / "README.md", "python")[0].text
    (directory / "definitions.py").write_text(f"from featurestore import request\n{readme}\n{boarding}")
    events = directory / "departures.jsonl"
    events.write_text("".join(json.dumps(event) + "\n" for event in _events(SystemClock().now())))
    with Stack(directory / "stack", definitions=str(directory / "definitions.py")) as stack:
        publish = module_command("streams.commands", "publish", "departures", str(events))
        subprocess.run(publish, env={**stack.environment, **stack.addresses}, check=True, capture_output=True)
        _await_events(stack)
        yield stack


def _await_events(stack: Stack) -> None:
    """Until every departure can be looked up."""
    asked = {"service": "flight_delay", "entities": {"origin": ["JFK", "LGA"]}}
    deadline = time.monotonic() + 60
    while True:
        answer = httpx.post(f"{stack.url}/v1/lookup", json=asked, timeout=20).json()
        rows = answer["rows"]
        if [row["values"][0] for row in rows] == [2, 0] and rows[0]["status"] == "ok" and rows[1]["values"][5] == "DL":
            return
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
