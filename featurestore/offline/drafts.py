"""Rows that become part of a table together, however many files they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
from deltalake.transaction import AddAction

if TYPE_CHECKING:
    from featurestore.offline.lake import Lake


class Draft:
    """Files of one table that are written, and no part of it until they are committed together. From `Lake.draft`."""

    def __init__(self, lake: Lake, table: str, schema: pa.Schema) -> None:
        self._lake, self._table, self._schema = lake, table, schema
        self._actions: list[AddAction] = []

    def write(self, rows: pa.Table) -> None:
        """Rows in time order, of `draft`'s schema, onto stable storage."""
        if rows.num_rows:
            self._actions += self._lake.write_files(self._table, rows.cast(self._schema))

    def commit(self, once: str, seen: Mapping[str, int], marks: Mapping[str, int]) -> bool:
        """Makes the files part of the table, with their marks, as one Delta transaction.

        False where what is recorded under the app ids of `marks` is not `seen` (absent: never recorded), or another
        writer came between: look again. Where `once` is recorded then, it may have been this very commit, whose answer
        got lost: the files are not ours to remove any more, as after an error.
        """
        actions, self._actions = self._actions, []
        committed = self._lake.commit_files(self._table, actions, seen, marks)
        if not committed and not self._lake.recorded(self._table, [once]):
            self._actions = actions
        return committed

    def discard(self) -> None:
        """Removes the files that were not committed."""
        self._lake.remove_files(self._table, [action.path for action in self._actions])
        self._actions = []
