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

    def append(self, table: str, batch: pa.Table, marks: Mapping[str, int]) -> bool:
        check_rows(batch, marks)
        self._may_fail()
        known = {app: mark for app, mark in self.marks[table].items() if app in marks}
        ahead = {app: mark for app, mark in marks.items() if mark > known.get(app, -1)}
        rows = rows_beyond(batch, known)
        if ahead:
            self.tables[table].append(rows)
            self.marks[table].update(ahead)
        self.world.counts["lake rows left out"] += batch.num_rows - rows.num_rows
        self.world.note(f"lake: {table} {dict(marks)}, {rows.num_rows} of {batch.num_rows} rows")
        self._may_fail()
        return bool(ahead)

    def recorded(self, table: str, app_ids: Sequence[str]) -> dict[str, int]:
        self._may_fail()
        return {app: self.marks[table][app] for app in app_ids if app in self.marks[table]}

    def _may_fail(self) -> None:
        if self.part.fails_now():
            self.world.counts["lake refused"] += 1
            raise Unavailable("lake", "the disk is away")
