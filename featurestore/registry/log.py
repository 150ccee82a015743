"""The log of revisions: `registry/<n>.json` in the lake, each written once and never changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, ObjectStore, from_url

from featurestore.errors import ConfigError, Corrupt, RegistryConflict, Unavailable
from featurestore.registry.catalog import EMPTY, Catalog, catalog_of
from featurestore.registry.changes import changes
from featurestore.registry.revision import MAX_BYTES, Content, Revision, decode, encode

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_FOLDER = "registry"
_NAME = re.compile(r"registry/([1-9][0-9]{0,8})\.json", re.ASCII)
_TIMEOUT = "5s"


class Registry:
    """The registry of the lake at `url`, a directory or an object store's URL. Calls block; none changes a revision.

    Every call raises Unavailable("lake", …) where the store does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store: ObjectStore | None = None

    def latest(self) -> int:
        """The number of the newest revision; 0 where there is none."""
        store = self._open()
        if store is None:
            return 0
        with _answering(self.url):
            found = (_NAME.fullmatch(entry["path"]) for chunk in obstore.list(store, _FOLDER) for entry in chunk)
            return max((int(match[1]) for match in found if match), default=0)

    def poll(self, after: int) -> int | None:
        """The newest revision where there is one after `after`; one small request where there is none."""
        number = after
        while self._exists(number + 1):
            number += 1
        return number if number > after else None

    def read(self, number: int) -> Revision:
        """Raises Corrupt where the revision is missing, too large, or not what was written."""
        raw = self._get(number)
        if raw is None:
            raise Corrupt(f"registry revision {number} is missing", hint=f"{self.url} should have {_path(number)}")
        return decode(number, raw)

    def head(self) -> Catalog:
        """The newest revision, compiled; the empty catalog where there is none."""
        number = self.latest()
        return catalog_of(self.read(number)) if number else EMPTY

    def append(self, content: Content, parent: Catalog, now: int) -> Catalog:
        """Make `content` the revision after `parent`.

        Raises RegistryConflict, saying what came in between, where `parent` is not the newest.
        """
        number = parent.revision + 1
        revision, raw = encode(number, parent.digest, now, content)
        catalog = catalog_of(revision)
        if parent.revision and self.read(parent.revision).digest != parent.digest:
            raise RegistryConflict(f"registry revision {parent.revision} was replaced since it was read",
                                   hint="read the registry again; was the lake restored from a copy?")  # fmt: skip
        if not self._create(number, raw) and self._get(number) != raw:
            raise self._conflict(parent, number)
        return catalog

    def _conflict(self, parent: Catalog, number: int) -> RegistryConflict:
        winner = self.read(self.latest())
        lines = "\n".join(f"  - {line}" for line in changes(parent.content, winner.content))
        return RegistryConflict(
            f"revision {number} was made by somebody else first; since revision {parent.revision}:\n{lines}",
            hint="run plan again, look at what changed, then apply",
        )

    def _create(self, number: int, raw: bytes) -> bool:
        """False where there is such a revision already: possibly ours, when a request was retried."""
        with _answering(self.url):
            try:
                obstore.put(self._opened(), _path(number), raw, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def _exists(self, number: int) -> bool:
        store = self._open()
        if store is None:
            return False
        with _answering(self.url):
            try:
                obstore.head(store, _path(number))
            except FileNotFoundError:
                return False
        return True

    def _get(self, number: int) -> bytes | None:
        store = self._open()
        if store is None:
            return None
        with _answering(self.url):
            try:
                result = obstore.get(store, _path(number))
            except FileNotFoundError:
                return None
            if result.meta["size"] > MAX_BYTES:
                raise Corrupt(f"registry revision {number} has {result.meta['size']} bytes, more than {MAX_BYTES}")
            return bytes(result.bytes())

    def _open(self) -> ObjectStore | None:
        """The store; None for a directory that is not there yet, which reading must not create."""
        if self._store is None and _is_directory(self.url) and not _directory(self.url).is_dir():
            return None
        return self._opened()

    def _opened(self) -> ObjectStore:
        if self._store is None:
            self._store = _store(self.url)
        return self._store


def _path(number: int) -> str:
    return f"{_FOLDER}/{number}.json"


def _is_directory(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def _directory(url: str) -> Path:
    return Path(unquote(urlsplit(url).path) if url.startswith("file://") else url)


def _store(url: str) -> ObjectStore:
    try:
        if _is_directory(url):
            return LocalStore(_directory(url).absolute(), mkdir=True)
        # A revision is small: what takes longer than this is an outage, and followers have to notice it.
        retries: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
        return from_url(url, client_options={"timeout": _TIMEOUT}, retry_config=retries)
    except (BaseError, OSError, ValueError) as error:
        raise ConfigError(f"the lake {url!r} cannot be opened: {_first_line(error)}", field="FS_LAKE",
                          hint="FS_LAKE is a directory, or a URL as s3://bucket/path") from None  # fmt: skip


@contextmanager
def _answering(url: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise Unavailable("lake", f"the registry in {url} does not answer: {_first_line(error)}",
                          hint="check that this process may read and write there") from error  # fmt: skip


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
