"""Small files beside the tables of a lake, each written once and never changed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import ObjectStore

from featurestore.offline.files import flush_name, write_durably


@dataclass(frozen=True, slots=True)
class Documents:
    """One folder. Every error of the store is `Unavailable("lake", …)`."""

    place: Path | ObjectStore
    errors: Callable[[str], AbstractContextManager[None]]

    def names(self) -> list[str]:
        """Of all documents, in no order; none where there is no folder."""
        with self.errors("list documents"):
            if isinstance(self.place, Path):
                return [entry.name for entry in self.place.iterdir()] if self.place.is_dir() else []
            return [entry["path"] for chunk in obstore.list(self.place) for entry in chunk]

    def read(self, name: str) -> bytes:
        with self.errors(f"read {name}"):
            if isinstance(self.place, Path):
                return (self.place / name).read_bytes()
            return bytes(obstore.get(self.place, name).bytes())

    def create(self, name: str, data: bytes) -> bool:
        """False where there is such a document with other content: of all who create one, exactly one succeeds.

        It is there as a whole or not at all, and in a directory it survives a power cut.
        """
        # A request may be repeated by the client after its first answer got lost: then it finds its own document.
        return self._create(name, data) or self.read(name) == data

    def _create(self, name: str, data: bytes) -> bool:
        with self.errors(f"write {name}"):
            if isinstance(self.place, Path):
                return _link_durably(self.place / name, data)
            try:
                obstore.put(self.place, name, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True


def _link_durably(path: Path, data: bytes) -> bool:
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    write_durably(partial, data)
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    flush_name(path.parent)
    return True
