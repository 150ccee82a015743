"""A file whose content is followed while the process runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from featurestore import telemetry
from featurestore.errors import ConfigError, FeatureStoreError

MAX_BYTES = 1 << 20

Content = TypeVar("Content")

_log = telemetry.get_logger(__name__)


class WatchedFile(Generic[Content]):
    """The last content of a file that could be understood.

    `parse` gets the bytes and raises ConfigError. The first reading, on construction, raises it; a later one that
    fails keeps the content that is there, and says so in the log and in `fs_access_file_broken`.
    """

    def __init__(self, name: str, path: Path, parse: Callable[[bytes], Content]) -> None:
        """`name` is the setting that names the file."""
        self._name, self._path, self._parse = name, path, parse
        self._broken = telemetry.ACCESS_FILE_BROKEN.labels(name)
        self._looked = self._state()
        self._taken = self._looked
        self.content = self._read()
        self._broken.set(0)

    def refresh(self) -> bool:
        """Looks once, which blocks; True where there is new content.

        A change counts when two looks see the same: what is being written is not read half.
        """
        before, self._looked = self._looked, self._state()
        if self._looked == self._taken or self._looked != before:
            return False
        self._taken = self._looked
        try:
            self.content = self._read()
        except FeatureStoreError as error:
            self._broken.set(1)
            _log.error("what was read before stays in force", setting=self._name, error=error.message)
            return False
        self._broken.set(0)
        _log.info("read again", setting=self._name)
        return True

    def _state(self) -> tuple[int, int, int] | None:
        """Another one for another content; None while there is no file."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> Content:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            what = f"{self._path} cannot be read: {os.strerror(error.errno or 0)}"
            raise ConfigError(what, hint=f"correct {self._name}", field=self._name) from None
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{self._path} is larger than {MAX_BYTES >> 20} MiB", field=self._name)
        return self._parse(content)
