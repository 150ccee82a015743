"""Which files of history were loaded into a source: numbered documents `loads/<source>/<n>.json`, and marks.

A document gives a file its place before its first row is written: the numbers that its rows have as offsets. Only one
process gets a number, so no two files share an offset, and a file that is loaded again after a kill has the same ones.
The marks stand in the table, in the same transaction as the rows: only they say that a file is there.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from featurestore.definitions.compiled import CompiledSource
from featurestore.engine.columns import SEQ_BITS
from featurestore.errors import Corrupt, Unavailable, UsageError
from featurestore.offline.documents import Documents
from featurestore.offline.drafts import Draft
from featurestore.offline.events import events_table
from featurestore.offline.lake import Lake

COUNT, NEWEST = "loads:count", "loads:newest"
"""Marks of a table of events: how many files are in it, and the latest event time of all (µs, 0 at least)."""

_READ_AT_ONCE = 16
_ATTEMPTS = 50
"""Each fails only because another writer's commit succeeded."""


class Load(msgspec.Struct, frozen=True):
    """One file's place."""

    digest: str
    """SHA-256 of the file's bytes (hex)."""
    file: str
    """Its name, for people."""
    rows: int
    """As the file says, also those that are left out or refused."""
    first: int
    """The offset of its first row; row i has `first + i`."""
    before: int | None
    """Rows from this instant (µs) on are left out."""
    visible: str
    """The column that says when each event became visible; empty: all do at `at`."""
    at: int
    """µs, when the load began."""
    by: str
    """Names the process that began it."""


class Loaded(msgspec.Struct, frozen=True):
    """What a table of events has of loaded files."""

    count: int = 0
    newest: int = 0
    """The latest event time of them all (µs)."""


def loaded(lake: Lake, source: str, version: int | None = None) -> Loaded:
    """As of the newest version of the table, or of an older one. Raises Unavailable."""
    found = lake.recorded(events_table(source), [COUNT, NEWEST], version)
    return Loaded(found.get(COUNT, 0), found.get(NEWEST, 0))


class Loads:
    """The loads of one source. Calls block and raise Unavailable("lake", …)."""

    def __init__(self, lake: Lake, source: CompiledSource) -> None:
        self._lake, self._table = lake, events_table(source.name)
        self._folder = f"loads/{source.name}"
        self._documents: Documents = lake.documents(self._folder)
        self._known: list[Load] = []

    def done(self, digest: str) -> Load | None:
        """How a file was loaded, if it was."""
        number = self._lake.recorded(self._table, [_app(digest)]).get(_app(digest))
        return None if number is None else self._read(number)

    def place(self, wanted: Load) -> tuple[int, Load]:
        """The number and the document of a file: one that an earlier process made for the same, or a new one."""
        while True:
            self._catch_up()
            for number, known in enumerate(self._known, 1):
                if (known.digest, known.before, known.visible) == (wanted.digest, wanted.before, wanted.visible):
                    return number, known
            first = self._known[-1].first + self._known[-1].rows if self._known else 0
            if first + wanted.rows >= 1 << SEQ_BITS:
                raise UsageError(f"more than {1 << SEQ_BITS:,} rows were loaded", field="file")
            number, load = len(self._known) + 1, msgspec.structs.replace(wanted, first=first)
            if self._documents.create(_file(number), msgspec.json.encode(load)):
                self._known.append(load)
                return number, load

    def commit(self, number: int, load: Load, draft: Draft, newest: int) -> bool:
        """Makes the draft part of the table. False where another process has loaded the same file meanwhile."""
        app = _app(load.digest)
        for _ in range(_ATTEMPTS):
            seen = self._lake.recorded(self._table, [app, COUNT, NEWEST])
            if app in seen:
                return False
            latest = max(newest, seen.get(NEWEST, 0))
            if draft.commit(app, seen, {app: number, COUNT: seen.get(COUNT, 0) + 1, NEWEST: latest}):
                return True
        raise Unavailable("lake", f"commit to {self._table}: other writers won {_ATTEMPTS} times in a row")

    def _catch_up(self) -> None:
        last = max((int(name.removesuffix(".json")) for name in self._documents.names() if _is_number(name)), default=0)
        numbers = range(len(self._known) + 1, last + 1)
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            self._known += pool.map(self._read, numbers)

    def _read(self, number: int) -> Load:
        try:
            return msgspec.json.decode(self._documents.read(_file(number)), type=Load)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise Corrupt(f"{self._folder}/{_file(number)} is no record of a load: {error}") from error


def _app(digest: str) -> str:
    return f"load:{digest}"


def _file(number: int) -> str:
    return f"{number}.json"


def _is_number(name: str) -> bool:
    return name.removesuffix(".json").isdigit()
