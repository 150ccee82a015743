"""The skeleton of flat JSON objects, found for a whole batch at once.

Arrow's JSON reader is fast and knows the grammar, but a null and an absent field look the same to it, it drops repeated
keys that it does not know, takes NaN for a number and reads on over the end of a value. This module finds the rows for
which none of that matters: each is one object without nesting, its keys are known, and so is the type of each value.
Everything is a necessary condition that is cheap to check; rows that fail one are *doubtful*, not wrong, and are left
to the exact path.

Soundness. A row that begins with `{`, ends with `}`, has no other bracket and an even number of quotes cannot share a
document with its neighbours: a parser that enters it clean leaves it clean, or stops with an error. Inside such a row
strings are the spans between the quotes of each pair, and keys are the strings before a colon.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.contracts.arrow import Mask, Rows

Bytes = npt.NDArray[np.uint8]

ABSENT, STRING, NUMBER, BOOLEAN, NULL = (np.uint8(1 << bit) for bit in range(5))
UNKNOWN = np.uint8(0)

# Producers write few shapes; a batch with more of them than this is left to the exact path, row by row.
MAX_SHAPES = 16
_PAD = 8


Kinds = npt.NDArray[np.uint8]


def _kind_table() -> Bytes:
    kinds = np.zeros(256, np.uint8)
    kinds[list(b'"')] = STRING
    kinds[list(b"-0123456789")] = NUMBER
    kinds[list(b"tf")] = BOOLEAN
    kinds[list(b"n")] = NULL
    return kinds


def _set_table(chars: bytes) -> Mask:
    found = np.zeros(256, np.bool_)
    found[list(chars)] = True
    return found


_KINDS = _kind_table()
_BRACKETS = _set_table(b"{}[]")
_DIGITS = _set_table(b"0123456789")
_AFTER_NUMBER = _set_table(b",} ")
_INT64_DIGITS = 19
_AFTER_STRING = _set_table(b":,}")
# Escapes that leave the quotes alone; a quote, a backslash and a surrogate need a parser.
_PLAIN_ESCAPES = _set_table(b"nrtbf/u")


@dataclass(frozen=True, slots=True)
class Text:
    """Values laid end to end."""

    values: pa.LargeBinaryArray
    """Without nulls."""
    raw: bytes
    chars: Bytes
    """`raw` with a few zero bytes behind it, so that looking ahead needs no bounds."""
    offsets: Rows
    """Row i is `raw[offsets[i]:offsets[i + 1]]`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def count(self, places: Rows) -> Rows:
        """How many of these ascending places are in each row."""
        return np.diff(np.searchsorted(places, self.offsets))

    def filter(self, keep: Mask) -> "Text":
        return lay_out(self.values.filter(pa.array(keep)))


def lay_out(values: pa.LargeBinaryArray) -> Text:
    """Freshly built or filtered values (no offset into a shared buffer, no nulls) as text to scan."""
    _, offsets, data = values.buffers()
    raw = data.to_pybytes() if data is not None else b""
    bounds = np.frombuffer(offsets, np.int64, count=len(values) + 1)
    return Text(values, raw, np.frombuffer(raw + bytes(_PAD), np.uint8), bounds)


def plain_rows(text: Text) -> Mask:
    """Rows that are, if they are JSON at all, one object without nesting in valid UTF-8."""
    starts, ends = text.offsets[:-1], text.offsets[1:]
    plain = (ends - starts >= 2) & (text.chars[starts] == ord("{")) & (text.chars[ends - 1] == ord("}"))
    raw, n = text.raw, len(text)
    if b"[" in raw or b"]" in raw or raw.count(b"{") != n or raw.count(b"}") != n or not plain.all():
        plain &= text.count(np.flatnonzero(_BRACKETS[text.chars[: len(raw)]])) == 2
    if b"\\" in raw:
        plain &= _escapes_are_plain(text)
    if not raw.isascii():
        plain &= _is_utf8(text)
    return np.asarray(plain)


def _escapes_are_plain(text: Text) -> Mask:
    places = np.flatnonzero(text.chars == ord("\\"))
    following, digit = text.chars[places + 1], text.chars[places + 2] | 0x20
    risky = ~_PLAIN_ESCAPES[following] | ((following == ord("u")) & (digit == ord("d")))
    return np.asarray(text.count(places[risky]) == 0)


def _is_utf8(text: Text) -> Mask:
    """Only for rows that begin and end with ASCII does the whole being UTF-8 mean that each row is."""
    good = np.ones(len(text), np.bool_)
    beyond = text.count(np.flatnonzero(text.chars >= 0x80)) > 0
    for row in np.flatnonzero(beyond) if not _decodes(text.raw) else ():
        good[row] = _decodes(text.raw[text.offsets[row] : text.offsets[row + 1]])
    return good


def _decodes(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Keys:
    """Every key of a batch, in order of appearance."""

    opens: Rows
    """Where its opening quote is."""
    lengths: Rows
    values: Rows
    """Where the value behind it begins."""
    kinds: Kinds
    """Of that value, by its first byte."""
    first: Rows
    """The keys of row i are `first[i]:first[i + 1]`."""


def field_kinds(text: Text, quotes: Rows, names: tuple[str, ...], integers: tuple[str, ...]) -> Kinds:
    """What each row has for each name: (rows, names) of ABSENT, STRING, NUMBER, BOOLEAN or NULL.

    UNKNOWN in a whole row: repeated or escaped keys, unusual white space, a value that begins like no JSON value, or a
    number that is not written as an integer where `integers` has its name. `text` holds plain rows only, with an even
    number of quotes each; `quotes` are their places.
    """
    keys, tidy = _find_keys(text, quotes)
    found = np.zeros((len(text), len(names)), np.uint8)
    pending = np.flatnonzero(tidy)
    for _ in range(MAX_SHAPES):
        if not len(pending):
            break
        shape = _shape_of(text, keys, int(pending[0]))
        alike = _same_shape(text, keys, pending, shape)
        members, pending = pending[alike], pending[~alike]
        if len(set(shape)) == len(shape) and not any(b"\\" in key for key in shape):
            _demand_integers(text, keys, members, shape, integers)
            found[members] = _kinds_in_shape(keys, members, shape, names)
    return found


def _find_keys(text: Text, quotes: Rows) -> tuple[_Keys, Mask]:
    """The keys, and which rows have nothing unusual between their strings."""
    opens, closes = quotes[0::2], quotes[1::2]
    following = text.chars[closes + 1]
    tidy = np.ones(len(text), np.bool_)
    if not (usual := _AFTER_STRING[following]).all():
        tidy = text.count(closes[~usual]) == 0
    is_key = following == ord(":")
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_key)])
    first = before[np.searchsorted(quotes, text.offsets) // 2]
    opens, closes = opens[is_key], closes[is_key]
    place = closes + 2
    place += text.chars[place] == ord(" ")
    lead = text.chars[place]
    kinds = _KINDS[lead]
    # Arrow reads -Inf and -NaN as numbers.
    kinds[(lead == ord("-")) & (text.chars[place + 1] > ord("9"))] = UNKNOWN
    return _Keys(opens, closes - opens - 1, place, kinds, first), tidy


def _shape_of(text: Text, keys: _Keys, row: int) -> tuple[bytes, ...]:
    span = range(keys.first[row], keys.first[row + 1])
    return tuple(text.raw[keys.opens[k] + 1 : keys.opens[k] + 1 + keys.lengths[k]] for k in span)


def _same_shape(text: Text, keys: _Keys, rows: Rows, shape: tuple[bytes, ...]) -> Mask:
    """Which rows have exactly these keys in this order."""
    first = keys.first[rows]
    alike: Mask = keys.first[rows + 1] - first == len(shape)
    for place, key in enumerate(shape):
        if not len(rows := np.flatnonzero(alike)):
            break
        at = first[rows] + place
        same = keys.lengths[at] == len(key)
        same[same] = _spells(text.chars, keys.opens[at[same]] + 1, key)
        alike[rows] = same
    return alike


def _spells(chars: Bytes, places: Rows, word: bytes) -> Mask:
    """Whether `word` stands at each place. NumPy compares without trailing NULs; no JSON key has a bare NUL."""
    if not word:
        return np.ones(len(places), np.bool_)
    windows = np.ndarray((len(chars) - len(word) + 1,), f"S{len(word)}", buffer=chars.data, strides=(1,))
    return np.asarray(windows[places] == np.bytes_(word), np.bool_)


def _kinds_in_shape(keys: _Keys, members: Rows, shape: tuple[bytes, ...], names: tuple[str, ...]) -> Kinds:
    first = keys.first[members]
    found = np.full((len(members), len(names)), ABSENT, np.uint8)
    known = {name.encode(): column for column, name in enumerate(names)}
    clear = np.ones(len(members), np.bool_)
    for place, key in enumerate(shape):
        kinds = keys.kinds[first + place]
        clear &= kinds != UNKNOWN
        if key in known:
            found[:, known[key]] = kinds
    found[~clear] = UNKNOWN
    return found


def _demand_integers(
    text: Text, keys: _Keys, members: Rows, shape: tuple[bytes, ...], integers: tuple[str, ...]
) -> None:
    """Set the kind of numbers that are not plain integers of at most 19 digits to UNKNOWN."""
    for place, key in enumerate(shape):
        if key in {name.encode() for name in integers}:
            at = keys.first[members] + place
            at = at[keys.kinds[at] == NUMBER]
            ends = keys.values[at] + (text.chars[keys.values[at]] == ord("-"))
            more = np.arange(len(at))
            for _ in range(_INT64_DIGITS):
                more = more[_DIGITS[text.chars[ends[more]]]]
                if not len(more):
                    break
                ends[more] += 1
            keys.kinds[at[~_AFTER_NUMBER[text.chars[ends]]]] = UNKNOWN
