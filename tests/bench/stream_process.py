"""What the measured processes say of themselves, and how they are asked."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.online.embedded import start_attached

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figures:
    """One process in one round."""

    rate: float
    """Events per second, from the first record that it fetched."""
    cpu: float
    """Seconds of processor time per million events, in that time."""
    peak: int
    """Bytes of memory at most."""
    slope: float = float("nan")
    """Bytes of memory that each event added, over the second half of them."""


def cpu_seconds() -> float:
    """Of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_of(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def peak_of(pid: int) -> int:
    return _memory(pid, "VmHWM:")


def resident_of(pid: int) -> int:
    """Bytes."""
    return _memory(pid, "VmRSS:")


def _memory(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def say(**facts: Any) -> None:
    """The summary of a measured process, on the stdout that it was started with: Faust puts a log in its place."""
    out = sys.__stdout__ or sys.stdout
    out.write(json.dumps(facts) + "\n")
    out.flush()


def ask(arguments: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str] | None = None) -> Any:
    """Runs a module to its end; returns what it said."""
    with log.open("wb") as errors:
        process = start_attached(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
        try:
            out, _ = process.communicate(timeout=seconds)
        finally:
            process.kill()
            process.wait()
    lines = [line for line in out.decode(errors="replace").splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{arguments} said nothing; its log ends:\n{log.read_text(errors='replace')[-3000:]}")
    return json.loads(lines[-1])
