"""Values of a topic into columns: finds out how each is written and accounts for every row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.contracts.arrow import Decoded, Rows, arrow_schema, assemble
from featurestore.contracts.avro_columns import decode_avro
from featurestore.contracts.contract import Contract
from featurestore.contracts.json_columns import decode_json, decode_json_exactly
from featurestore.contracts.reasons import Reason, Reject

__all__ = ["Decoded", "Encoding", "Reason", "Reject", "arrow_schema", "decode"]

Encoding = Literal["auto", "json", "avro", "confluent"]

_FRAME_BYTES = 5
_FIRST = itemgetter(0)
_JSON_SPACE = b" \t\r\n"
_BLOCK_ROWS = 1 << 16


def decode(contract: Contract, values: Sequence[bytes | None], encoding: Encoding = "auto") -> Decoded:
    """Decode message values by a contract; every index of `values` is in exactly one of `rows` and `rejects`.

    `avro` is bare Avro binary, `confluent` the same behind a zero byte and a four-byte schema id (which is not looked
    up: the contract says what was written). `auto` looks at each value: a zero byte and at least five bytes are a
    Confluent frame, `{` as the first character is JSON, anything else bare Avro. Name the encoding where a topic's bare
    Avro can begin like one of the others. Raises UsageError for more than 2 GiB of text in one column.
    """
    blocks = [(start, values[start : start + _BLOCK_ROWS]) for start in range(0, len(values), _BLOCK_ROWS)]
    return assemble(contract, [_shift(_DECODERS[encoding](contract, block), start) for start, block in blocks])


def _shift(piece: Decoded, start: int) -> Decoded:
    if not start:
        return piece
    return Decoded(piece.columns, piece.rows + start, tuple(replace(r, row=r.row + start) for r in piece.rejects))


def _renumber(piece: Decoded, rows: Rows) -> Decoded:
    return Decoded(piece.columns, rows[piece.rows], tuple(replace(r, row=int(rows[r.row])) for r in piece.rejects))


def _decode_confluent(contract: Contract, values: Sequence[bytes | None]) -> Decoded:
    """Values that are framed otherwise are refused, so that a bare record is never misread as a framed one."""
    kinds = _sniff(values)
    framed, other = np.flatnonzero(kinds == _FRAMED), np.flatnonzero(kinds != _FRAMED)
    faults = tuple(
        Reject(row, Reason.BAD_AVRO, "no Confluent frame: a zero byte, a four-byte schema id, then the record")
        if values[row]
        else Reject(row, Reason.EMPTY, "the value is null or empty")
        for row in other.tolist()
    )
    piece = _renumber(decode_avro(contract, _pick(values, framed), skip=_FRAME_BYTES), framed)
    return Decoded(piece.columns, piece.rows, tuple(sorted((*piece.rejects, *faults), key=lambda r: r.row)))


def _decode_auto(contract: Contract, values: Sequence[bytes | None]) -> Decoded:
    if _all_json(values):
        return decode_json(contract, values)
    kinds = _sniff(values)
    return assemble(contract, _decode_each(contract, values, kinds))


def _decode_each(contract: Contract, values: Sequence[bytes | None], kinds: Rows) -> Iterator[Decoded]:
    for kind in np.unique(kinds).tolist():
        rows = np.flatnonzero(kinds == kind)
        yield _renumber(_SNIFFED[kind](contract, _pick(values, rows)), rows)


def _pick(values: Sequence[bytes | None], rows: Rows) -> Sequence[bytes | None]:
    return values if len(rows) == len(values) else [values[row] for row in rows.tolist()]


_JSON, _FRAMED, _BARE = range(3)


def _all_json(values: Sequence[bytes | None]) -> bool:
    """Whether every value begins as an object does, which most batches can be told in one step."""
    try:
        return {*map(_FIRST, values)} <= {ord("{")}  # type: ignore[arg-type]
    except (IndexError, TypeError):  # an empty value, or none
        return False


def _sniff(values: Sequence[bytes | None]) -> Rows:
    """How each value is written, by its first bytes. Nothing at all counts as JSON."""
    laid = pa.array(values, pa.large_binary())
    lengths = pc.fill_null(pc.binary_length(laid), 0).to_numpy()
    kinds = np.full(len(values), _BARE)
    data = laid.buffers()[2]
    if data is None or not data.size:
        return np.full(len(values), _JSON)
    first = np.frombuffer(data, np.uint8)[np.minimum(np.cumsum(lengths) - lengths, data.size - 1)]
    kinds[(first == 0) & (lengths >= _FRAME_BYTES)] = _FRAMED
    kinds[(first == ord("{")) | (lengths == 0)] = _JSON
    for row in np.flatnonzero((kinds == _BARE) & np.isin(first, np.frombuffer(_JSON_SPACE, np.uint8))).tolist():
        if (values[row] or b"").lstrip(_JSON_SPACE)[:1] == b"{":
            kinds[row] = _JSON
    return kinds


def _decode_framed(contract: Contract, values: Sequence[bytes | None]) -> Decoded:
    return decode_avro(contract, values, skip=_FRAME_BYTES)


def _decode_bare(contract: Contract, values: Sequence[bytes | None]) -> Decoded:
    """Bare Avro; what is refused and reads as text is explained as the JSON it was meant to be."""
    piece = decode_avro(contract, values)
    rejects = tuple(_explain(contract, reject, values[reject.row]) for reject in piece.rejects)
    return Decoded(piece.columns, piece.rows, rejects)


def _explain(contract: Contract, reject: Reject, value: bytes | None) -> Reject:
    if reject.reason is not Reason.BAD_AVRO or value is None or not value.isascii():
        return reject
    if not value.decode("ascii").strip().isprintable():
        return reject
    found = decode_json_exactly(contract, [value]).rejects
    return replace(found[0], row=reject.row) if found else reject


_Decoder = Callable[[Contract, Sequence[bytes | None]], Decoded]
_SNIFFED: dict[int, _Decoder] = {_JSON: decode_json, _FRAMED: _decode_framed, _BARE: _decode_bare}
_DECODERS: dict[Encoding, _Decoder] = {
    "auto": _decode_auto,
    "json": decode_json,
    "avro": decode_avro,
    "confluent": _decode_confluent,
}
