"""A directory that appears, or is replaced, as a whole."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featurestore.errors import Corrupt, FeatureStoreError, UsageError
from featurestore.offline.files import flush_name
from featurestore.offline.manifest import read_manifest


def check_target(target: Path) -> None:
    """UsageError unless the directory is absent, empty, or an export of ours, which may be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file", hint="give a directory for the export", field="out")
    if not any(target.iterdir()):
        return
    try:
        read_manifest(target)
    except Corrupt:
        hint = "give a new directory: only an earlier export is ever replaced"
        raise UsageError(f"{target} holds something that is no export", hint=hint, field="out") from None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A draft directory beside the target, which takes its place if the block ends well and vanishes otherwise.

    Killed at any moment, the target is the old export or the new one, or for the instant between two renames missing,
    with the old one beside it as `.<name>.<…>.old`. Trouble with the disk is a FeatureStoreError that says so.
    """
    check_target(target)
    token = uuid.uuid4().hex[:12]
    draft, old = (target.parent / f".{target.name}.{token}.{kind}" for kind in ("draft", "old"))
    try:
        draft.mkdir(parents=True)
        yield draft
        flush_name(draft)
        if target.exists():
            target.rename(old)
        draft.rename(target)
        flush_name(target.parent)
    except OSError as error:
        hint = "is there space, and may this process write there?"
        raise FeatureStoreError(f"cannot write {target}: {error.strerror}", hint=hint, field="out") from error
    finally:
        for leftover in (draft, old):
            with suppress(FileNotFoundError):
                shutil.rmtree(leftover)
