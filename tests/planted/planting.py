"""A copy of the product with one bug in it, and what its catcher says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEEDS = 300
"""Schedules that the simulation is given for one bug."""
SIMULATION = "simulation"
_COPIED = ("featurestore", "streams", "tests", "schemas", "pyproject.toml")
_CATCH = re.compile(r"^catch: (\S+)$", re.MULTILINE)
_SCHEDULES = re.compile(r"^(\d+) schedules", re.MULTILINE)


@dataclass(frozen=True)
class Bug:
    name: str
    what: str
    catch: str
    """`simulation`, or the id of a test."""

    @property
    def patch(self) -> Path:
        return HERE / f"{self.name}.patch"


@dataclass(frozen=True)
class Outcome:
    caught: bool
    seeds: int | None
    """Schedules until the first that failed; None where another test catches the bug."""
    seconds: float
    output: str


def bugs() -> list[Bug]:
    """All of them, by name."""
    return [_read(path) for path in sorted(HERE.glob("*.patch"))]


def _read(path: Path) -> Bug:
    header = path.read_text().partition("\n--- ")[0]
    found = _CATCH.search(header)
    if found is None:
        raise ValueError(
            f"{path.name} does not say what catches it: expected a line `catch: simulation` or a test's id"
        )
    return Bug(path.stem, " ".join(header[: found.start()].split()), found[1])


@contextmanager
def planted(bug: Bug) -> Iterator[Path]:
    """The directory of a copy that has the bug. Raises ValueError where the patch does not fit the code."""
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        copy = Path(directory)
        for name in _COPIED:
            _copy(ROOT / name, copy / name)
        apply(bug, copy)
        yield copy


def apply(bug: Bug, copy: Path, *, pretend: bool = False) -> None:
    """Raises ValueError where the patch does not fit. `pretend` changes nothing."""
    command = ["patch", "--strip=1", "--fuzz=0", "--batch", "--no-backup-if-mismatch", "--reject-file=-"]
    command += ["--dry-run"] * pretend
    done = subprocess.run([*command, f"--input={bug.patch}"], cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{bug.patch.name} does not apply: make it anew\n{done.stdout}{done.stderr}")


def hunt(bug: Bug, *, seeds: int = SEEDS) -> Outcome:
    """Runs what must catch the bug. A catcher that passes has not caught it, and one that fails without the bug as
    well has not either."""
    with planted(bug) as copy:
        started = time.monotonic()
        done = _run(copy, _catcher(bug, seeds))
        seconds = time.monotonic() - started
    schedules = _SCHEDULES.search(done.stdout)
    tried = int(schedules[1]) if schedules else None
    # 1 is "a test failed" of both; anything else is a catcher that did not run.
    fails = done.returncode == 1 and (bug.catch != SIMULATION or tried is not None)
    sound = fails and _run(ROOT, _catcher(bug, 1, first=(tried or 1) - 1)).returncode == 0
    return Outcome(sound, tried, seconds, done.stdout + done.stderr)


def _catcher(bug: Bug, seeds: int, first: int = 0) -> list[str]:
    if bug.catch == SIMULATION:
        return ["-m", "tests.simulation", "--first", str(first), "--seeds", str(seeds), "--until-failure"]
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", bug.catch]


def _run(where: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True, check=False
    )


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    else:
        shutil.copy(source, target)
