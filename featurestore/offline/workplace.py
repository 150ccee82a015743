"""The directory beside an export in which it is made: what a killed one leaves there, the next one goes on with."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from featurestore.errors import Corrupt, FeatureStoreError, UsageError
from featurestore.offline.files import write_durably
from featurestore.offline.output import check_target
from featurestore.offline.scratch import MARK

_LOCK = "lock"


@contextmanager
def workplace(
    target: Path, asked: Mapping[str, Any], settle: Callable[[], dict[str, Any]]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A directory for what is `asked`, and what is settled about it: by `settle`, or by the export that began it.

    One export at a time works for a target. When the block ends well, or with a fault of the caller's, the directory
    is removed; what is left of other exports to the same target goes at once. Trouble with the disk is a
    FeatureStoreError that says so.
    """
    check_target(target)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    folder = target.parent / f".{target.name}.{digest}.work"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK).open("w") as lock:
            _require(lock, target)
            try:
                _sweep(target, folder)
                yield folder, _settled(folder, asked, settle)
            except FeatureStoreError as error:
                if isinstance(error, UsageError) or not any(_worth(folder)):
                    shutil.rmtree(folder)
                raise
            shutil.rmtree(folder)
    except OSError as error:
        hint = "is there space, and may this process write there? The same export goes on from what it has"
        raise FeatureStoreError(f"cannot write {target}: {error.strerror or error}", hint=hint, field="out") from error


def _settled(folder: Path, asked: Mapping[str, Any], settle: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    mark = folder / MARK
    if not mark.exists():
        write_durably(mark, json.dumps({"asked": asked, "settled": settle()}, indent=2).encode())
    try:
        settled: dict[str, Any] = json.loads(mark.read_bytes())["settled"]
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{mark} is not what an export wrote", hint=f"remove {folder}") from error
    return settled


def _worth(folder: Path) -> Iterator[Path]:
    """What need not be done again."""
    for pattern in ("events-*.arrow", "answers-*.arrow", "out/*.parquet"):
        yield from folder.glob(pattern)


def _sweep(target: Path, mine: Path) -> None:
    """Removes what exports of something else, that were killed, left for this target."""
    for folder in target.parent.glob(f".{target.name}.*.work"):
        if folder != mine:
            with suppress(FileNotFoundError), (folder / _LOCK).open("w") as lock:
                _require(lock, target)
                shutil.rmtree(folder)


def _require(lock: IO[str], target: Path) -> None:
    """Until the file is closed, as the process that ends does too."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        hint = "wait for it, or give another directory"
        raise UsageError(f"another export is being written to {target}", hint=hint, field="out") from None
