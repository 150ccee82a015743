"""A service compiled for answering: which views, which key columns, which features in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import pyarrow as pa

from featurestore.definitions.compiled import CompiledService, CompiledView
from featurestore.engine.columns import ARROW_TYPES, canonical_keys
from featurestore.engine.read import ViewReader
from featurestore.registry.catalog import Catalog
from featurestore.serving.requests import EntityColumns, KeyValue, RequestFields
from featurestore.serving.rows import RememberedRows
from featurestore.types import STATUS_SUFFIX, Dtype


@dataclass(frozen=True, slots=True, eq=False)
class ViewPart:
    """What one view adds to the answer."""

    view: CompiledView
    reader: ViewReader
    keys: tuple[int, ...]
    """Positions of the view's key columns among the service's."""
    picks: tuple[tuple[int, int], ...]
    """(column that is looked up, feature of the view), both by position."""
    remembered: RememberedRows | None = None
    """None where nothing is to be kept."""

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(feature for _, feature in self.picks)

    def canonical(self, columns: Sequence[list[KeyValue]]) -> list[str | None]:
        """The entity's key in this view for every row; None where a part of it is null."""
        if len(self.keys) == 1:
            quick = _QUICK_KEYS[next(iter(self.view.keys.values()))](columns[self.keys[0]])
            if quick is not None:
                return quick
        types = [ARROW_TYPES[dtype] for dtype in self.view.keys.values()]
        parts = [pa.array(columns[i], kind) for i, kind in zip(self.keys, types, strict=True)]
        keys: list[str | None] = canonical_keys(parts).to_pylist()
        return keys


def _plain_text(values: list[Any]) -> list[str | None] | None:
    """Text that needs no escape is its own key; None where some does."""
    joined = "".join([value for value in values if value is not None])
    return None if "|" in joined or "\\" in joined else values


_QUICK_KEYS: dict[Dtype, Callable[[list[Any]], list[str | None] | None]] = {
    Dtype.STRING: _plain_text,
    Dtype.INT: lambda values: [None if value is None else str(value) for value in values],
    Dtype.BOOL: lambda values: [None if value is None else "true" if value else "false" for value in values],
}


@dataclass(frozen=True, slots=True, eq=False)
class LookupPlan:
    """Everything about one (service, version) that does not depend on a request."""

    service: CompiledService
    version: int
    revision: int
    entities: EntityColumns
    parts: tuple[ViewPart, ...]
    fields: RequestFields
    dtypes: tuple[Dtype, ...]
    """Of the columns that are looked up: those of the answer, then what only own features stand on."""
    inputs: tuple[tuple[str, int], ...]
    """Columns that own features stand on: full name, and position among those that are looked up."""
    defaults: tuple[Any, ...]
    """What stands in for a value that could not be read: the declared default, or null."""
    in_order: bool
    """Whether the answer's columns are those of the first view, then those of the second, and so on, and no more."""
    head: bytes = field(repr=False)
    """The envelope's first members as JSON, up to and without `at`."""
    names: bytes = field(repr=False)
    """The features' names as a JSON array."""
    types: bytes = field(repr=False)
    """The envelope's member for the declared types of key columns and features."""
    arrow_types: tuple[pa.DataType, ...] = field(repr=False)
    """Of the columns of the answer."""
    schema: pa.Schema = field(repr=False)
    """Of an Arrow answer: key columns, then each feature followed by its status."""

    def row_frame(self, status: bytes | None) -> bytes:
        """A row of the full shape, to be filled (`%`) with the entity's keys, then each feature's value, status and
        age as JSON; without the status where that is given, for all."""
        return _row_frame(self.entities.names, self.service.feature_names, status or b"%b")


def compile_plan(
    catalog: Catalog,
    service: CompiledService,
    version: int,
    reader: Callable[[CompiledView], ViewReader],
    remembered: Callable[[ViewReader, tuple[int, ...]], RememberedRows | None] = lambda reader, features: None,
) -> LookupPlan:
    """`reader` gives the reader of a view, `remembered` the rows that are kept of some of its features; both outlive
    plans."""
    views = {name: catalog.views[name, number] for name, number in service.views}
    keys: dict[str, Dtype] = {}
    for view in views.values():
        keys.update(view.keys)
    positions = {name: i for i, name in enumerate(keys)}
    parts = tuple(
        _part(view, reader(view), tuple(positions[key] for key in view.keys), _picks(service, view), remembered)
        for view in views.values()
    )
    read = [views[view].types[feature] for view, feature in service.read]
    declared = [*read[: len(service.columns)], *((dtype, False) for dtype in service.own_types.values())]
    named_types = dict(zip(service.feature_names, map(_type_text, declared), strict=True))
    arrow_types = tuple(map(_arrow_type, declared))
    head = {"service": service.name, "version": version, "revision": catalog.revision}
    return LookupPlan(
        service=service,
        version=version,
        revision=catalog.revision,
        entities=EntityColumns(keys),
        parts=parts,
        fields=RequestFields(service.request),
        dtypes=tuple(dtype for dtype, _ in read),
        inputs=tuple((f"{view}.{feature}", service.read.index((view, feature))) for view, feature in service.inputs),
        defaults=tuple(_defaults(views[view])[feature] for view, feature in service.read),
        in_order=not service.order
        and [c for part in parts for c, _ in part.picks] == list(range(len(service.columns))),
        head=msgspec.json.encode(head)[:-1] + b',"at":"',
        names=msgspec.json.encode(service.feature_names),
        types=b',"types":' + msgspec.json.encode({**keys, **named_types}),
        arrow_types=arrow_types,
        schema=_schema(keys, dict(zip(service.feature_names, arrow_types, strict=True))),
    )


def _part(
    view: CompiledView,
    reader: ViewReader,
    keys: tuple[int, ...],
    picks: tuple[tuple[int, int], ...],
    remembered: Callable[[ViewReader, tuple[int, ...]], RememberedRows | None],
) -> ViewPart:
    return ViewPart(view, reader, keys, picks, remembered(reader, tuple(feature for _, feature in picks)))


@lru_cache(maxsize=1024)
def _row_frame(keys: Sequence[str], features: Sequence[str], status: bytes) -> bytes:
    entity = b",".join(b"%b:%%b" % _escaped(name) for name in keys)
    described = [b'%b:{"value":%%b,"status":%b,%%b}' % (_escaped(name), status) for name in features]
    return b'{"entity":{%b},"features":{%b}}' % (entity, b",".join(described))


def _escaped(name: str) -> bytes:
    """A name as JSON, in what is filled with `%`."""
    return msgspec.json.encode(name).replace(b"%", b"%%")


def _type_text(declared: tuple[Dtype, bool]) -> str:
    dtype, many = declared
    return f"list<{dtype}>" if many else dtype


def _arrow_type(declared: tuple[Dtype, bool]) -> pa.DataType:
    dtype, many = declared
    return pa.list_(ARROW_TYPES[dtype]) if many else ARROW_TYPES[dtype]


def _schema(keys: Mapping[str, Dtype], features: Mapping[str, pa.DataType]) -> pa.Schema:
    statuses = pa.dictionary(pa.int8(), pa.string())
    columns = [pair for name, kind in features.items() for pair in ((name, kind), (name + STATUS_SUFFIX, statuses))]
    return pa.schema([(name, ARROW_TYPES[dtype]) for name, dtype in keys.items()] + columns)


def _picks(service: CompiledService, view: CompiledView) -> tuple[tuple[int, int], ...]:
    order = {feature: i for i, feature in enumerate(view.order)}
    return tuple((i, order[feature]) for i, (name, feature) in enumerate(service.read) if name == view.name)


def _defaults(view: CompiledView) -> Mapping[str, Any]:
    """By feature. A float's default is a float whatever its author wrote, as in stored values."""
    return dict.fromkeys(view.order) | {
        a.name: float(a.default) if a.dtype is Dtype.FLOAT and a.default is not None else a.default
        for a in view.aggregates
    }
