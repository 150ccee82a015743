"""Tables as notebooks take them: pandas, Polars, DuckDB and Arrow read a `Frame` without a word of ours."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pyarrow as pa

from featurestore.definitions.notebook import html_table
from featurestore.errors import UsageError

SHOWN_ROWS = 10
"""Of a table in a notebook."""


class Frame:
    """Rows and columns. `pl.DataFrame(frame)`, `duckdb.sql("from frame")` and `pa.table(frame)` work too."""

    def __init__(self, table: pa.Table, title: str = "") -> None:
        self._table, self._title = table, title

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self.to_arrow().num_rows)

    @property
    def columns(self) -> list[str]:
        names: list[str] = self.to_arrow().column_names
        return names

    def to_arrow(self) -> pa.Table:
        return self._table

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, its columns in Arrow's types, so that a whole number beside a null becomes no float."""
        pandas = imported("pandas")
        return self.to_arrow().to_pandas(types_mapper=pandas.ArrowDtype)

    def to_polars(self) -> Any:
        """A polars.DataFrame."""
        return imported("polars").from_arrow(self.to_arrow())

    def __repr__(self) -> str:
        return f"{self._title or 'table'}: {len(self):,} rows of {', '.join(self.columns)}"

    def _repr_html_(self) -> str:
        table = self.to_arrow()
        some = table.slice(0, SHOWN_ROWS)
        rows = list(zip(*(column.to_pylist() for column in some.columns), strict=True))
        below = f"{table.num_rows:,} rows" + (f", the first {SHOWN_ROWS} shown" if table.num_rows > SHOWN_ROWS else "")
        return html_table(self._title, table.column_names, rows, below=below)


def imported(module: str, install: str = "") -> Any:
    """A module of a package that only notebooks need. UsageError says how it is installed where it is not."""
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"{package} is not installed", hint=install or f"pip install {package}") from None
