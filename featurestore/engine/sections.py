"""What a stored value looks like: a header of words, the tiles of each group, and a heap.

A group is one word, `form << 32 | number of tiles`, and six sections. A section is a table of numbers, a row for each
tile from the oldest to the newest, padded to whole words. Numbers of one section of an entity take as many bytes as the
longest of them needs; the form says how many. Counts of the same events are stored once, however many partials have
them. Text and sketches stand in the heap, and columns of words refer to them by `offset << 20 | length`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from featurestore.engine.layout import Group, Stored
from featurestore.engine.partials import Field, Role

FORMAT = 0x3230_5346
"""`FS02`"""
HEADER_WORDS = 8
NOBODY = -1
"""The partition of a value that stands on loaded events only: it belongs to whichever partition has the entity's first
event from the topic."""
MAGIC, FINGERPRINT, GENERATION, OFFSET, PARTITION, LATEST, TOTAL_WORDS, HEAP_WORD = range(HEADER_WORDS)
LENGTH_BITS = 20
LENGTH_MASK = (1 << LENGTH_BITS) - 1
COUNT_MASK, FORM_SHIFT = (1 << 32) - 1, 32

SECTIONS = 6
WORDS, LOWS, FLOATS, INTS, COUNTS, IDS = range(SECTIONS)
"""Eight bytes each; lower halves of sums, which are mostly 0; floats; integers with a sign; counts; and how many tiles
an id is before that of the latest event."""

_BYTES: dict[int, tuple[int, ...]] = {
    WORDS: (8,),
    LOWS: (0, 8),
    FLOATS: (4, 8),
    INTS: (1, 2, 4, 8),
    COUNTS: (1, 2, 4, 8),
}
"""Bytes of a number by the section's code. Four hold a float that they hold exactly."""
CODE_SHIFT = {WORDS: 0, LOWS: 0, FLOATS: 1, INTS: 2, COUNTS: 4}
"""Where the code of a section stands in a form."""
FORMS = 1 << 6

_OF_ROLE = {Role.COUNT: COUNTS, Role.LOW: LOWS, Role.WHOLE: WORDS}
_OF_KIND = {"f8": FLOATS, "i8": INTS}

Place = tuple[int, int]
"""A section, and the first of the field's columns in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The sections of one group."""

    places: tuple[tuple[Place, ...], ...]
    """Of each field of each partial."""
    written: tuple[tuple[int, int, Place], ...]
    """Partial, field and place of those that are stored: of partials with the same count the first stores it."""
    widths: np.ndarray
    """`int64[SECTIONS]`: columns."""
    sizes: np.ndarray
    """`int64[SECTIONS, FORMS]`: bytes of a number."""


def fingerprint_word(fingerprint: str) -> int:
    """First 8 bytes of a hexadecimal fingerprint as a signed word."""
    return int.from_bytes(bytes.fromhex(fingerprint[:16]), "little", signed=True)


def words_of(field: Field) -> int:
    """Columns of a field: a sketch is one reference."""
    return 1 if field.kind == "u1" else field.width


def _section_of(field: Field) -> int:
    if field.kind not in _OF_KIND or field.width > 1:
        return WORDS
    return _OF_ROLE.get(field.role, _OF_KIND[field.kind])


@lru_cache(maxsize=4096)
def columns_of(group: Group) -> Columns:
    widths = np.zeros(SECTIONS, np.int64)
    known: dict[tuple[object, ...], Place] = {}
    places: list[tuple[Place, ...]] = []
    written: list[tuple[int, int, Place]] = []
    for number, stored in enumerate(group.stored):
        found = []
        for index, (field, name) in enumerate(_named(stored)):
            if name not in known:
                section = _section_of(field)
                known[name] = (section, int(widths[section]))
                widths[section] += words_of(field)
                written.append((number, index, known[name]))
            found.append(known[name])
        places.append(tuple(found))
    widths[IDS] = 0 if group.hop is None else 1
    return Columns(tuple(places), tuple(written), widths, _sizes(group))


def _named(stored: Stored) -> Iterator[tuple[Field, tuple[object, ...]]]:
    """Fields, and what distinguishes each from others of its group."""
    *_, column, condition = stored.kind
    for index, field in enumerate(stored.partial.fields):
        counts = field.role is Role.COUNT
        yield field, (Role.COUNT, column, condition) if counts else (*stored.kind, index)


def _sizes(group: Group) -> np.ndarray:
    sizes = np.empty((SECTIONS, FORMS), np.int64)
    forms = np.arange(FORMS)
    for section, choices in _BYTES.items():
        sizes[section] = np.array(choices)[(forms >> CODE_SHIFT[section]) & (len(choices) - 1)]
    sizes[IDS] = 1 if group.ring <= 1 << 8 else 2 if group.ring <= 1 << 16 else 4
    return sizes
