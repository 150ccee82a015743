"""The lake's promises without its files: an append is one transaction, and rows at or below a mark are left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from featurestore.errors import Unavailable
from featurestore.offline.marks import check_rows, rows_beyond
from tests.simulation.world import Part, World


class SimulatedLake:
    """As much of `Lake` as the stages use. Called from what stands for threads."""

    def __init__(self, world: World) -> None:
        self.world, self.part = world, Part(world, "lake")
        self.tables: dict[str, list[pa.Table]] = defaultdict(list)
        self.marks: dict[str, dict[str, int]] = defaultdict(dict)
        self._marks_then: dict[str, list[dict[str, int]]] = defaultdict(list)
        """Of each version, which is how many appends there were."""

    def append(self, table: str, batch: pa.Table, marks: Mapping[str, int]) -> bool:
        check_rows(batch, marks)
        self._may_fail()
        known = {app: mark for app, mark in self.marks[table].items() if app in marks}
        ahead = {app: mark for app, mark in marks.items() if mark > known.get(app, -1)}
        rows = rows_beyond(batch, known)
        if ahead:
            self._commit(table, rows, ahead)
        self.world.counts["lake rows left out"] += batch.num_rows - rows.num_rows
        self.world.note(f"lake: {table} {dict(marks)}, {rows.num_rows} of {batch.num_rows} rows")
        self._may_fail()
        return bool(ahead)

    def load(self, table: str, rows: pa.Table, marks: Mapping[str, int]) -> None:
        """A file of history."""
        self._commit(table, rows, marks)

    def recorded(self, table: str, app_ids: Sequence[str], version: int | None = None) -> dict[str, int]:
        self._may_fail()
        marks = self.marks[table] if version is None else self._marks_then[table][version - 1]
        return {app: marks[app] for app in app_ids if app in marks}

    def version(self, table: str) -> int | None:
        self._may_fail()
        return len(self.tables[table]) or None

    def rows(self, table: str, version: int | None = None) -> list[pa.Table]:
        self._may_fail()
        return self.tables[table][:version]

    def _commit(self, table: str, rows: pa.Table, marks: Mapping[str, int]) -> None:
        self.tables[table].append(rows)
        self.marks[table].update(marks)
        self._marks_then[table].append(dict(self.marks[table]))

    def _may_fail(self) -> None:
        if self.part.fails_now():
            self.world.counts["lake refused"] += 1
            raise Unavailable("lake", "the disk is away")
