"""A directory that appears, or is replaced, as a whole."""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from featurestore.errors import Corrupt, UsageError
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


def install(made: Path, target: Path) -> None:
    """Puts a finished directory in the target's place.

    Killed at any moment, the target is the old export or the new one, or for the instant between two renames missing,
    with the old one beside it as `.<name>.<…>.old`.
    """
    old = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}.old"
    flush_name(made)
    if target.exists():
        target.rename(old)
    made.rename(target)
    flush_name(target.parent)
    with suppress(FileNotFoundError):
        shutil.rmtree(old)
