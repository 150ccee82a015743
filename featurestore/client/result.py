"""What a lookup answered, as Python's own values or as a table, whichever way it travelled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.clock import format_instant
from featurestore.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class Content(Protocol):
    """The rows of an answer in the form in which they came."""

    def __len__(self) -> int: ...

    def values(self) -> list[dict[str, Any]]: ...

    def statuses(self) -> list[dict[str, str]]: ...

    def table(self) -> pa.Table:
        """With the types of the definitions, and without metadata."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class LookupResult:
    """Values of one service for n entities, in the order in which they were asked for.

    Write `version` and `at` to your logs: with both the same values can be had again.
    """

    service: str
    version: int
    revision: int
    """Of the registry, which the answer was made by."""
    at: int
    """Microseconds since 1970 UTC: the instant that the values hold for."""
    spent_ms: float
    """In the API, without the way there and back."""
    source: str
    """`online`, `lake` or `mixed`."""
    features: tuple[str, ...]
    """Full names, `<view>.<feature>`."""
    content: Content

    def __len__(self) -> int:
        return len(self.content)

    def __repr__(self) -> str:
        rows = f"{len(self)} rows × {len(self.features)} features"
        return f"<LookupResult {self.service}@{self.version} at {format_instant(self.at)}: {rows}>"

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """By entity: full name → value. Null is None, an instant RFC 3339 text."""
        return self.content.values()

    @cached_property
    def statuses(self) -> list[dict[str, str]]:
        """By entity: full name → what the value is worth, as `ok` or `stale`."""
        return self.content.statuses()

    def to_pyarrow(self) -> pa.Table:
        """Key columns, then each feature and its `<feature>__status`; the other members are the schema's metadata."""
        return self._table

    def to_pandas(self) -> pd.DataFrame:
        """As `to_pyarrow`; statuses are categories, and whole numbers with nulls become floats, as pandas has it."""
        _require("pandas")
        return self._table.to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """As `to_pyarrow`; statuses are categories."""
        frame: pl.DataFrame = _require("polars").from_arrow(self._table)
        return frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table through the Arrow PyCapsule interface: DuckDB, Polars and others take the result as it is."""
        return self._table.__arrow_c_stream__(requested_schema)

    @cached_property
    def _table(self) -> pa.Table:
        envelope = {
            "service": self.service,
            "version": str(self.version),
            "revision": str(self.revision),
            "at": format_instant(self.at),
            "spent_ms": f"{self.spent_ms:.3f}",
            "source": self.source,
        }
        return self.content.table().replace_schema_metadata(envelope)


def _require(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"{module} is not installed", hint=f"pip install {module}") from None
