"""RFC 3339 text into microseconds, a column at a time.

Covers the forms that machines write. Any other text is left to `clock.parse_instant`, which this agrees with wherever
it answers.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.clock import DAY, HOUR, MAX_INSTANT, MIN_INSTANT, MINUTE, SECOND

Micros: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
_Chars: TypeAlias = npt.NDArray[np.uint8]

_SHORTEST, _LONGEST = len("2013-01-01T00:00:00Z"), len("2013-01-01T00:00:00.000000+00:00")
_ZONE = len("+00:00")
_DATE = len("2013-01-01T00:00:00")
_PUNCTUATION = {4: b"-", 7: b"-", 13: b":", 16: b":"}
_BETWEEN = 10
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, *[0] * 243], np.int64)


def parse_instants(text: pa.StringArray) -> tuple[Micros, Mask]:
    """Microseconds, and which rows were understood; a null or a row in another form is False, its number 0.

    `text` owns its buffers from their beginning (freshly decoded, not a slice).
    """
    _, offset_bytes, data = text.buffers()
    micros, good = np.zeros(len(text), np.int64), np.zeros(len(text), np.bool_)
    if data is None:
        return micros, good
    offsets = np.frombuffer(offset_bytes, np.int32, count=len(text) + 1).astype(np.int64)
    chars = np.frombuffer(data, np.uint8)
    lengths = np.diff(offsets)
    for length in range(_SHORTEST, _LONGEST + 1):
        rows = np.flatnonzero(lengths == length)
        if len(rows):
            micros[rows], good[rows] = _parse_block(_block(chars, offsets[rows], length))
    return micros, good


def _block(chars: _Chars, starts: Micros, length: int) -> _Chars:
    """Text of one length as a (length, rows) matrix: a row of it is a character position."""
    windows = np.ndarray((len(chars) - length + 1,), f"V{length}", buffer=chars.data, strides=(1,))
    return np.ascontiguousarray(windows[starts].view(np.uint8).reshape(len(starts), length).T)


def _parse_block(text: _Chars) -> tuple[Micros, Mask]:
    utc = (text[-1] | 0x20) == ord("z")
    micros, good = _parse_date(text)
    for chosen, tail in ((utc, 1), (~utc, _ZONE)):
        if chosen.any():
            part = text if chosen.all() else text[:, chosen]
            extra, fine = _parse_tail(part, tail)
            micros[chosen] += extra
            good[chosen] &= fine
    good &= (micros >= MIN_INSTANT) & (micros <= MAX_INSTANT)
    micros[~good] = 0
    return micros, good


def _parse_date(text: _Chars) -> tuple[Micros, Mask]:
    digits = text[:_DATE] - np.uint8(ord("0"))
    good = np.ones(text.shape[1], np.bool_)
    for place in range(_DATE):
        if place in _PUNCTUATION:
            good &= text[place] == ord(_PUNCTUATION[place])
        elif place == _BETWEEN:
            good &= ((text[place] | 0x20) == ord("t")) | (text[place] == ord(" "))
        else:
            good &= digits[place] <= 9
    year = 100 * _two(digits, 0) + _two(digits, 2)
    month, day = _two(digits, 5), _two(digits, 8)
    hour, minute, second = _two(digits, 11), _two(digits, 14), _two(digits, 17)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    last = _MONTH_DAYS[month & 0xFF] + (leap & (month == 2))
    good &= (year >= 1) & (day >= 1) & (day <= last) & (hour < 24) & (minute < 60) & (second < 60)
    return _days(year, month, day) * DAY + hour * HOUR + minute * MINUTE + second * SECOND, good


def _two(digits: _Chars, place: int) -> Micros:
    number: Micros = digits[place].astype(np.int64) * 10 + digits[place + 1]
    return number


def _days(year: Micros, month: Micros, day: Micros) -> Micros:
    """Days since 1970-01-01 in the proleptic Gregorian calendar; years begin in March, so leap days come last."""
    year = year - (month <= 2)
    era, year_of_era = year // 400, year % 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def _parse_tail(text: _Chars, zone_length: int) -> tuple[Micros, Mask]:
    """A fraction, where there is one, and the zone: microseconds to add."""
    places = len(text) - _DATE - zone_length
    if places == 1 or not 0 <= places <= 7:
        return np.zeros(text.shape[1], np.int64), np.zeros(text.shape[1], np.bool_)
    micros, good = np.zeros(text.shape[1], np.int64), np.ones(text.shape[1], np.bool_)
    if places:
        good &= text[_DATE] == ord(".")
        for place in range(1, places):
            digit = text[_DATE + place] - np.uint8(ord("0"))
            good &= digit <= 9
            micros += digit.astype(np.int64) * 10 ** (6 - place)
    if zone_length == 1:
        return micros, good
    zone = text[-_ZONE:] - np.uint8(ord("0"))
    hours, minutes = _two(zone, 1), _two(zone, 4)
    good &= (zone[[1, 2, 4, 5]] <= 9).all(axis=0) & (text[-3] == ord(":")) & (hours < 24) & (minutes < 60)
    good &= (text[-_ZONE] == ord("+")) | (text[-_ZONE] == ord("-"))
    sign = np.where(text[-_ZONE] == ord("+"), 1, -1)
    return micros - sign * (hours * HOUR + minutes * MINUTE), good
