"""What needs Kafka, done by a process: Kafka's libraries stay on the other side, and the words come as JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from featurestore.cli.processes import child_environment, module_command
from featurestore.errors import FeatureStoreError
from featurestore.online.embedded import start_attached


class StreamsError(FeatureStoreError):
    """An error of the other process: its message, hint and exit code."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        super().__init__(str(said["message"]), hint=str(said.get("hint", "")), field=str(said.get("field", "")))
        self.code = str(said.get("code", "error"))
        self.exit_code = int(said.get("exit_code", 1))


def stream_lines(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """Runs `python -m streams.commands` and yields each document it writes; the last one has `"done": true`.

    Raises StreamsError where the command failed. Closing the iterator ends the process.
    """
    process = start_attached(
        module_command("streams.commands", *arguments),
        stdout=subprocess.PIPE,
        env=child_environment(os.environ if environment is None else environment),
    )
    assert process.stdout is not None  # noqa: S101 — asked for above
    try:
        done = False
        for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                raise StreamsError(said["error"])
            done = done or bool(said.get("done"))
            yield said
        if process.wait() or not done:
            raise FeatureStoreError(f"`streams.commands {arguments[0]}` ended with exit code {process.returncode}",
                                    hint="what it wrote above says why")  # fmt: skip
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        process.stdout.close()


def stream_answer(*arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """As `stream_lines`, for a command with one document."""
    return [*stream_lines(*arguments, environment=environment)][-1]
