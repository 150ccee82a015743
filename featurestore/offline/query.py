"""A spine by SQL over the lake's tables: DuckDB, reading only, with nothing else within its reach."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from featurestore.errors import InvalidRequest
from featurestore.offline.files import READ
from featurestore.offline.lake import Lake

SQL = "sql:"
"""What the path of a spine begins with in a manifest where it was a query."""
MAX_ROWS = 100_000_000


def query(lake: Lake, text: str, *, memory: int, versions: Mapping[str, int] | None = None) -> pa.Table:
    """The rows of one SELECT over `events.<source>`, `features."<view>@<v>"` and the other rooms of the lake.

    `memory` (bytes) bounds DuckDB; `versions` gives tables another version than their newest. Files, extensions and
    the network cannot be reached from the query. InvalidRequest says what DuckDB says.
    """
    with duckdb.connect(":memory:") as connection:
        _settings(connection, memory)
        for table in lake.tables():
            _add(connection, lake, table, (versions or {}).get(table))
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            [statement] = connection.extract_statements(text)
            if statement.type != duckdb.StatementType.SELECT:
                raise InvalidRequest("the spine's SQL is no SELECT", hint="one query, which changes nothing",
                                     field="spine_sql")  # fmt: skip
            found = connection.sql(statement.query).limit(MAX_ROWS + 1).to_arrow_table()
        except ValueError:
            raise InvalidRequest("the spine's SQL is not one statement", hint="one SELECT", field="spine_sql") from None
        except duckdb.Error as error:
            said = " ".join(str(error).split())[:500]
            known = ", ".join(map(_shown, lake.tables())) or "none yet"
            raise InvalidRequest(f"the spine's SQL: {said}", hint=f"tables: {known}", field="spine_sql") from error
    if found.num_rows > MAX_ROWS:
        raise InvalidRequest(f"the spine's SQL gives more than {MAX_ROWS:,} rows", hint="export it in parts",
                             field="spine_sql")  # fmt: skip
    return found


def _settings(connection: duckdb.DuckDBPyConnection, memory: int) -> None:
    connection.execute(f"SET memory_limit = '{memory >> 20}MiB'")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET preserve_insertion_order = true")


def _add(connection: duckdb.DuckDBPyConnection, lake: Lake, table: str, version: int | None) -> None:
    snapshot = lake.snapshot(table, version)
    if snapshot is None:
        return
    paths = sorted(snapshot.files["path"].to_pylist()) if snapshot.files.num_rows else []
    fragments = list(chain.from_iterable(snapshot.place.fragments(paths)))
    schema = pa.schema([field for field in snapshot.schema if not field.name.startswith("_month")])
    room, _, name = table.partition("/")
    connection.register(f"{room}/{name}", pads.FileSystemDataset(fragments, schema, READ))
    connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{room}"')
    connection.execute(f'CREATE VIEW "{room}"."{name}" AS SELECT * FROM "{room}/{name}"')


def _shown(table: str) -> str:
    room, _, name = table.partition("/")
    return f"{room}.{name}" if name.isidentifier() else f'{room}."{name}"'
