"""The demo's way to Kafka: flights in stages, and some records that are no events."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.cli.processes import module_command
from featurestore.cli.streamed import stream_lines
from featurestore.errors import FeatureStoreError

_YEAR = 300_000
"""From so many flights on the stages end at fixed instants of the year, otherwise at thirds."""
_ENDS = ("2013-04-30T22:00:00", "2013-09-01T08:00:00")
"""A Tuesday at 6 pm in New York, in the middle of the traffic, and a night without flights; UTC."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Events `start` to `stop` of the year. No two events of one instant are in different stages."""

    name: str
    start: int
    stop: int
    last: int
    """Event time of its last event, µs."""
    following: int | None
    """Event time of the first event of the next stage, µs."""


def stages(instants: np.ndarray) -> list[Stage]:
    """Three of them. `instants` has the event times, `int64[n]` µs, ascending."""
    size = len(instants)
    if size >= _YEAR:
        near = np.searchsorted(instants, np.array(_ENDS, "datetime64[us]").astype(np.int64))
    else:
        near = np.array([size // 3, 2 * size // 3])
    ends = [*np.searchsorted(instants, instants[near - 1], "right").tolist(), size]
    return [
        Stage(
            name=f"to {np.datetime64(int(instants[stop - 1]), 'us').astype('datetime64[m]')} UTC",
            start=start,
            stop=stop,
            last=int(instants[stop - 1]),
            following=int(instants[stop]) if stop < size else None,
        )
        for start, stop in zip([0, *ends[:-1]], ends, strict=True)
    ]


def publish(
    table: pa.Table, file: Path, environment: Mapping[str, str], on_progress: Callable[[int, str], None]
) -> float:
    """Sends the events as `featurestore publish` does; it waits for the worker where the broker is the embedded one.

    Returns the seconds that took. `on_progress` is told how many are sent, and what is waited for.
    """
    pq.write_table(table, file)
    seconds = 0.0
    said_lines = stream_lines("publish", "departures", str(file), environment=environment)
    with closing(cast("Generator[dict[str, Any]]", said_lines)) as lines:
        for said in lines:
            if "sent" in said:
                on_progress(said["sent"], f"waiting for the {said['waiting']}" if "waiting" in said else "")
            seconds = said.get("seconds", seconds)
    file.unlink()
    return seconds


_SOUND = {
    "departed_at": "2013-05-01T12:00:00Z", "carrier": "UA", "flight": 1545, "tailnum": "N14228", "origin": "EWR",
    "dest": "IAH", "dep_delay": 2.0, "distance": 1400.0, "cancelled": False,
}  # fmt: skip


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in _SOUND.items() if key != name}


POISON: Sequence[tuple[str, str | None]] = (
    ("text that is not JSON", "UA1545 left EWR at noon"),
    ("half a message", json.dumps(_SOUND)[:60]),
    ("no departed_at", json.dumps(_without("departed_at"))),
    ("a delay in words", json.dumps({**_SOUND, "dep_delay": "a bit"})),
    ("a clock in the year 2100", json.dumps({**_SOUND, "departed_at": "2100-01-01T00:00:00Z"})),
    ("a tombstone", None),
)
"""What a broken producer sends: a description, and the value."""


def send_poison(topic: str, environment: Mapping[str, str]) -> int:
    """Returns how many records were sent."""
    lines = "".join(json.dumps({"key": _SOUND["tailnum"], "value": value}) + "\n" for _, value in POISON)
    _raw("send", topic, environment, lines)
    return len(POISON)


def read_dead_letters(topic: str, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """The records of `<topic>.dlq`, as `streams.raw` shows them."""
    return [json.loads(line) for line in _raw("read", f"{topic}.dlq", environment, "").splitlines()]


def _raw(command: str, topic: str, environment: Mapping[str, str], lines: str) -> str:
    done = subprocess.run(
        module_command("streams.raw", command, topic),
        input=lines,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise FeatureStoreError(f"`streams.raw {command} {topic}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout
