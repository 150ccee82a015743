"""The spine of a training set: for whom, and at which instants, feature values are wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from featurestore.clock import MAX_INSTANT, MIN_INSTANT, parse_instant
from featurestore.engine.columns import canonical_keys
from featurestore.errors import InvalidRequest, near_matches
from featurestore.types import Dtype

INSTANT = pa.timestamp("us", "UTC")
ZONE_RULE = (
    "a time without a zone means another instant to every reader: write 2026-03-01T12:00:00Z or …+01:00 in text, or "
    "convert first, as df[c].dt.tz_localize('UTC') in pandas, pl.col(c).dt.replace_time_zone('UTC') in Polars"
)
_RFC3339 = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
_WITHOUT_ZONE = r"^\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?)?$"


@dataclass(frozen=True, slots=True, eq=False)
class Spine:
    """n rows, as they were given, with what was checked about them."""

    table: pa.Table
    """Every column the caller gave, in its types and order."""
    keys: Mapping[str, pa.Array]
    """Entity key columns, as string, int64 or bool; nulls kept."""
    at: np.ndarray
    """`int64[n]`, µs."""
    request: Mapping[str, pa.Array] = field(default_factory=dict)
    """Columns of request fields, as string, int64, float64 or bool; nulls kept."""

    def __len__(self) -> int:
        return int(self.at.size)

    def canonical(self, columns: Sequence[str], rows: slice = slice(None)) -> pa.Array:
        """Canonical entity keys of some rows, null where a part is null."""
        return canonical_keys([self.keys[name][rows] for name in columns])


def read_spine(
    given: Any,
    keys: Mapping[str, Dtype],
    time_column: str = "event_time",
    fields: Mapping[str, Dtype] = MappingProxyType({}),
) -> Spine:
    """Check a spine: the path of a Parquet or CSV file, or a table of Arrow, pandas, Polars or whatever speaks Arrow.

    Key columns must have the entity's types: text for str, whole numbers for int; nothing is converted, since `7` and
    `"007"` are not the same entity. Null keys are allowed and find nothing. Times are timestamps with a zone, in any
    unit, or RFC 3339 text; a time without a zone is refused. Each of `fields`, which a service takes from requests, is
    a column of its name: of whole numbers too where it is a float, and finite. It is there also where it has a default:
    a name that is misspelt could not be told from one that was left out.

    Raises InvalidRequest that names column and row.
    """
    types = {name: _ACCEPTED[dtype][1] for name, dtype in {**keys, **fields}.items()} | {time_column: pa.string()}
    table = _from_file(Path(given), types) if isinstance(given, str | Path) else _from_object(given)
    _check_names(table, [*keys, time_column], "")
    _check_names(table, [*fields], "it is a request field of the service; ")
    checked = {name: _typed(name, _whole(table[name]), dtype, _KEY) for name, dtype in keys.items()}
    request = {name: _finite(name, _typed(name, _whole(table[name]), dtype, _FIELD)) for name, dtype in fields.items()}
    return Spine(table, checked, instants(_whole(table[time_column]), time_column), request)


def refuse_clashes(spine: Spine, added: Collection[str]) -> None:
    """InvalidRequest where a column of the spine has the name of one that will be added."""
    clashes = [name for name in spine.table.column_names if name in added]
    if clashes:
        raise InvalidRequest(
            f"spine: column {clashes[0]!r} has the name of a feature column",
            hint="rename or drop it: values that are there already would be taken for exported ones",
            field=clashes[0],
        )


def instants(column: pa.Array, name: str) -> np.ndarray:
    """A column of times → int64 µs. InvalidRequest names the first row that is no instant."""
    column = _plain_text(column)
    if column.null_count and len(column):
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise _bad(name, f"row {row} has no time", "drop such rows, or give them an instant")
    reader = next((read for test, read in _TIMES if test(column.type)), None)
    if reader is None:
        raise _bad(name, f"is {column.type}, expected a timestamp with a zone, or RFC 3339 text", ZONE_RULE)
    micros = reader(column, name)
    outside = np.flatnonzero((micros < MIN_INSTANT) | (micros > MAX_INSTANT))
    if outside.size:
        raise _bad(name, f"row {int(outside[0])} is outside the years 1 to 9999", "")
    return micros


def _from_timestamps(column: pa.Array, name: str) -> np.ndarray:
    if column.type.tz is None:
        raise _bad(name, "has times without a zone", ZONE_RULE)
    try:
        micros: np.ndarray = column.cast(INSTANT).view(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        fine = column.cast(INSTANT, safe=False).cast(column.type, safe=False)
        row = int(np.flatnonzero(pc.not_equal(fine, column).to_numpy(zero_copy_only=False))[0])
        hint = "instants have microseconds here: round them, knowing that this moves them"
        raise _bad(name, f"row {row} is finer than a microsecond, or outside the years 1 to 9999", hint) from None
    return micros


def _from_text(column: pa.Array, name: str) -> np.ndarray:
    """Arrow reads the usual form at full speed; what is left is read one by one, and gives the errors."""
    distinct = column.dictionary_encode()
    texts = distinct.dictionary.cast(pa.string())
    usual = pc.match_substring_regex(texts, _RFC3339)
    micros = np.empty(len(texts), np.int64)
    try:
        micros[usual.to_numpy(zero_copy_only=False)] = texts.filter(usual).cast(INSTANT).view(pa.int64()).to_numpy()
        left = np.flatnonzero(~usual.to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid:
        left = np.arange(len(texts))
    rows = distinct.indices.to_numpy()
    for index in left.tolist():
        micros[index] = _one_text(texts[index].as_py(), name, rows, index)
    spread: np.ndarray = micros[rows]
    return spread


def _one_text(text: str, name: str, rows: np.ndarray, index: int) -> int:
    try:
        return parse_instant(text)
    except ValueError as problem:
        row = int(np.flatnonzero(rows == index)[0])
        zoneless = pc.match_substring_regex(pa.scalar(text), _WITHOUT_ZONE).as_py()
        said = f"{text!r} has no zone" if zoneless else str(problem)
        raise _bad(name, f"row {row}: {said}", ZONE_RULE if zoneless else "") from None


def _refuse_dates(column: pa.Array, name: str) -> np.ndarray:
    raise _bad(name, "is a date, and a day is not an instant", "say which instant of the day, with its zone")


def _refuse_numbers(column: pa.Array, name: str) -> np.ndarray:
    hint = "numbers do not say their unit or epoch: convert first, as pd.to_datetime(df[c], unit='s', utc=True)"
    raise _bad(name, f"is {column.type}, expected a timestamp with a zone", hint)


def _nothing(column: pa.Array, name: str) -> np.ndarray:
    return np.empty(0, np.int64)


_TIMES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array, str], np.ndarray]], ...] = (
    (pa.types.is_timestamp, _from_timestamps),
    (pa.types.is_string, _from_text),
    (pa.types.is_date, _refuse_dates),
    (pa.types.is_integer, _refuse_numbers),
    (pa.types.is_floating, _refuse_numbers),
    (pa.types.is_decimal, _refuse_numbers),
    (pa.types.is_null, _nothing),  # the type of a column without rows, in many a reader
)


_KEY, _FIELD = "the entity declares", "the service's request field is"


def _typed(name: str, column: pa.Array, dtype: Dtype, declared: str) -> pa.Array:
    column = _plain_text(column)
    test, target, expected = _ACCEPTED[dtype]
    if pa.types.is_null(column.type) or test(column.type):
        try:
            return column.cast(target)
        except pa.ArrowInvalid:
            raise _bad(name, "has numbers that do not fit 64 bits", _WIDTH_HINTS[dtype]) from None
    hint = _HINTS.get((dtype, pa.types.is_floating(column.type)), "")
    raise _bad(name, f"is {column.type} in the spine, expected {expected}: {declared} {dtype}", hint)


def _finite(name: str, column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        odd = np.flatnonzero(pc.invert(pc.is_finite(column)).fill_null(False).to_numpy(zero_copy_only=False))
        if odd.size:
            raise _bad(name, f"row {int(odd[0])} is {column[int(odd[0])]}", "a value that is not known is null")
    return column


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


_ACCEPTED: dict[Dtype, tuple[Callable[[pa.DataType], bool], pa.DataType, str]] = {
    Dtype.STRING: (pa.types.is_string, pa.string(), "text"),
    Dtype.INT: (pa.types.is_integer, pa.int64(), "whole numbers"),
    Dtype.BOOL: (pa.types.is_boolean, pa.bool_(), "booleans"),
    Dtype.FLOAT: (_is_number, pa.float64(), "numbers"),
}
_WIDTH_HINTS = {Dtype.INT: "an int is a signed 64-bit integer", Dtype.FLOAT: "a float is exact up to 2^53"}
_HINTS = {
    (Dtype.STRING, False): "write it as the events do: 7 and '007' are not the same",
    (Dtype.INT, True): "pandas turns integers with gaps into floats: use df[c].astype('Int64')",
}


def _check_names(table: pa.Table, wanted: Sequence[str], why: str) -> None:
    names = table.column_names
    for name in wanted:
        if name not in names:
            near = near_matches(name, names)
            guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            hint = why + (f"its columns: {', '.join(names)}" if names else "it has no columns")
            raise InvalidRequest(f"spine: there is no column {name!r}{guess}", hint=hint, field=name)
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise _bad(repeated[0], "is there twice", "each column needs a name of its own")


def _from_file(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    """`types` are those of columns that are looked at, for files that do not say them."""
    reader = _FILES.get(path.suffix.lower())
    if reader is None:
        hint = f"use a file that ends in {' or '.join(_FILES)}"
        raise InvalidRequest(f"spine: {path.name} is neither Parquet nor CSV", hint=hint, field="spine")
    try:
        return reader(path, types)
    except FileNotFoundError:
        raise InvalidRequest(f"spine: there is no file {path}", field="spine") from None
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise InvalidRequest(f"spine: {path} cannot be read: {text}", field="spine") from error


def _read_parquet(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    with path.open("rb") as file:
        return pq.read_table(file, page_checksum_verification=True)


def _read_csv(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    # Only an empty field is null: NA is an airline's code, and a country's.
    options = pacsv.ConvertOptions(column_types=dict(types), null_values=[""], strings_can_be_null=True)
    return pacsv.read_csv(path, convert_options=options)


_FILES: dict[str, Callable[[Path, Mapping[str, pa.DataType]], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _from_object(given: Any) -> pa.Table:
    if not hasattr(given, "__arrow_c_stream__") and not isinstance(given, Mapping):
        hint = "give a path, or a table of Arrow, pandas or Polars"
        raise InvalidRequest(f"spine: {type(given).__name__} is no table", hint=hint, field="spine")
    try:
        table = pa.table(given)
    except (pa.ArrowException, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise InvalidRequest(f"spine: the table cannot be read: {text}", field="spine") from error
    unnamed = [name for name in table.column_names if name.startswith("__index_level_")]
    return table.drop_columns(unnamed).replace_schema_metadata(None)


def _plain_text(column: pa.Array) -> pa.Array:
    """Text in any of its layouts → string; other columns as they are."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    odd = pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)
    return column.cast(pa.string()) if odd else column


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _bad(name: str, problem: str, hint: str) -> InvalidRequest:
    return InvalidRequest(f"spine: column {name!r} {problem}", hint=hint, field=name)
