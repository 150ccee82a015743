"""Answers of all lots, put side by side again: the rows of a training set, in the spine's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions.compiled import CompiledService, CompiledView
from featurestore.engine.columns import ARROW_TYPES, NEVER, NUMPY_DTYPES, FeatureColumn
from featurestore.engine.own import own_features
from featurestore.errors import UsageError
from featurestore.offline.lots import ROW, as_of_name, status_name, value_name
from featurestore.offline.spine import Spine, refuse_clashes
from featurestore.types import AS_OF_SUFFIX, STATUS_CODES, STATUS_SUFFIX, STATUSES, Dtype, Status

INSTANT = pa.timestamp("us", "UTC")
_STATUS_TEXTS = pa.array([status.value for status in STATUSES], pa.string())

Answers = Callable[[int, int], pa.Table]
"""A lot's answers to the rows from … up to … of the spine, in order."""


def of_buckets(buckets: Sequence[pa.Table]) -> Answers:
    """Answers that lie in several tables, each with its rows in order."""
    places = [table[ROW].to_numpy() for table in buckets]

    def answers(start: int, stop: int) -> pa.Table:
        edges = [np.searchsorted(rows, (start, stop)) for rows in places]
        parts = [table.slice(low, high - low) for table, (low, high) in zip(buckets, edges, strict=True)]
        together = pa.concat_tables(parts)
        if len(parts) == 1:
            return together
        return together.take(pa.array(np.argsort(together[ROW].to_numpy(), kind="stable")))

    return answers


class Assembly:
    """The columns of a training set, and its rows from any place on."""

    def __init__(
        self, service: CompiledService, views: Sequence[CompiledView], spine: Spine, *, status: bool, as_of: bool
    ) -> None:
        """Raises InvalidRequest where the spine has columns of the names that are added."""
        self._service, self._spine = service, spine
        self._views = {view.name: view for view in views}
        self._status, self._as_of = status, as_of
        added = [field for name, dtype, many in self._features() for field in self._fields(name, dtype, many)]
        refuse_clashes(spine, {field.name for field in added})
        self.schema = pa.schema([*spine.table.schema, *added])
        self.added = tuple(field.name for field in added)

    def rows(self, lots: Sequence[Answers], start: int, stop: int) -> pa.Table:
        """UsageError where entities were never seen that a view must not be asked about."""
        found: dict[str, pa.Array] = {}
        for answers in lots:
            table = answers(start, stop)
            found |= {name: table[name].combine_chunks() for name in table.column_names}
        for asked in self._views.values():
            _require_seen(asked, found, start)
        arrays = list(self._spine.table.slice(start, stop - start).columns)
        for view, feature in self._service.columns:
            arrays += self._stored(f"{view}.{feature}", found)
        for column in self._own(found, slice(start, stop)):
            arrays += self._computed(column)
        return pa.table(arrays, schema=self.schema)

    def _features(self) -> list[tuple[str, Dtype, bool]]:
        types = [self._views[view].types[feature] for view, feature in self._service.columns]
        types += [(dtype, False) for dtype in self._service.own_types.values()]
        return [(name, *kind) for name, kind in zip(self._service.feature_names, types, strict=True)]

    def _fields(self, name: str, dtype: Dtype, many: bool) -> list[pa.Field]:
        kind = ARROW_TYPES[dtype]
        fields = [pa.field(name, pa.list_(kind) if many else kind)]
        fields += [pa.field(f"{name}{STATUS_SUFFIX}", pa.string())] if self._status else []
        return fields + ([pa.field(f"{name}{AS_OF_SUFFIX}", INSTANT)] if self._as_of else [])

    def _stored(self, name: str, found: Mapping[str, pa.Array]) -> list[pa.Array]:
        arrays = [found[value_name(name)]]
        arrays += [_STATUS_TEXTS.take(found[status_name(name)])] if self._status else []
        return arrays + ([_instants(found[as_of_name(name)].to_numpy())] if self._as_of else [])

    def _computed(self, column: FeatureColumn) -> list[pa.Array]:
        arrays = [column.to_arrow()]
        arrays += [_STATUS_TEXTS.take(pa.array(column.status))] if self._status else []
        return arrays + ([_instants(column.as_of)] if self._as_of else [])

    def _own(self, found: Mapping[str, pa.Array], rows: slice) -> list[FeatureColumn]:
        if not self._service.order:
            return []
        size = rows.stop - rows.start
        inputs = {
            f"{view}.{feature}": _column(f"{view}.{feature}", self._views[view].types[feature][0], found, size)
            for view, feature in self._service.inputs
        }
        request = {name: column[rows] for name, column in self._spine.request.items()}
        return own_features(self._service, inputs, request, size)


def _column(name: str, dtype: Dtype, found: Mapping[str, pa.Array], size: int) -> FeatureColumn:
    """A feature as it was before it was stored."""
    array, as_of = found[value_name(name)], found.get(as_of_name(name))
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if dtype is Dtype.STRING:
        values = array.to_numpy(zero_copy_only=False)
    else:
        plain = array.cast(pa.int64()) if dtype is Dtype.TIMESTAMP else array
        filler = False if dtype is Dtype.BOOL else 0
        values = plain.fill_null(filler).to_numpy(zero_copy_only=False).astype(NUMPY_DTYPES[dtype], copy=False)
    stands_on = np.full(size, NEVER) if as_of is None else as_of.to_numpy()
    return FeatureColumn(name, dtype, False, values, valid, found[status_name(name)].to_numpy(), stands_on)


def _instants(as_of: np.ndarray) -> pa.Array:
    return pa.array(as_of, mask=as_of == NEVER).cast(INSTANT)


def _require_seen(view: CompiledView, found: Mapping[str, pa.Array], start: int) -> None:
    """What a lookup of such a view refuses is not for training on either."""
    if view.on_missing != "error" or not view.order:
        return
    status = found[status_name(f"{view.name}.{view.order[0]}")]
    unseen = np.flatnonzero(pc.equal(status, STATUS_CODES[Status.NOT_FOUND]).to_numpy(zero_copy_only=False))
    if unseen.size:
        raise UsageError(
            f"{view.id} has never seen the entities of {unseen.size} rows of the spine, as of row {start + unseen[0]}",
            hint="leave these rows out; the view's on_missing is `error`, so that nothing stands in for their values",
            field="spine",
        )
