"""Whatever a tile's numbers are, they are read back to the bit, by every way to read them, and take few bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine.folds import Folds
from featurestore.engine.kernel import PLAIN
from featurestore.engine.layout import Group, Layout, layout_of
from featurestore.engine.opening import open_values, unpack
from featurestore.engine.packing import TileRows, pack
from featurestore.engine.partials import Field, Role
from featurestore.engine.sections import (
    FINGERPRINT,
    FORMAT,
    HEADER_WORDS,
    LATEST,
    MAGIC,
    columns_of,
    fingerprint_word,
)
from featurestore.engine.walked import Walks
from tests.laws.bridge import view_of
from tests.oracle.meaning import DAY, HOUR, OracleFeature

COLUMNS = {"key": "str", "x": "float", "n": "int"}
FEATURES = (
    OracleFeature("events", "count", window=DAY),
    OracleFeature("known", "count", "x", window=DAY),
    OracleFeature("total", "sum", "x", window=DAY),
    OracleFeature("least", "min", "x", window=DAY),
    OracleFeature("most", "max", "x", window=HOUR, hop=HOUR),
    OracleFeature("spread", "var", "x", window=DAY),
    OracleFeature("units", "sum", "n", window=DAY),
    OracleFeature("fewest", "min", "n", window=DAY),
    OracleFeature("last", "last", "n", window=DAY),
    OracleFeature("first", "first", "x"),
    OracleFeature("ever", "count"),
)
LAYOUT = layout_of(view_of(FEATURES, COLUMNS, keys={"key": str}))
# Moments merge in any order only where count, sum and spread are of the same numbers; the golden law has those.
FOLDED = layout_of(view_of(tuple(f for f in FEATURES if f.op != "var"), COLUMNS, keys={"key": str}))
READ = (Folds(FOLDED).fold, Walks(FOLDED, PLAIN).fold)

SMALL = st.integers(0, 3)
EDGES = [sign * (1 << bits) + step for bits in (7, 8, 15, 16, 31, 32, 62) for step in (-1, 0, 1) for sign in (1, -1)]
NUMBERS: dict[Any, st.SearchStrategy[Any]] = {
    Role.COUNT: SMALL | st.sampled_from([edge for edge in EDGES if edge > 0]),
    Role.LOW: st.just(0.0) | st.sampled_from([2.0**-60, -0.0, 1e-300]),
    "i8": SMALL | st.sampled_from([*EDGES, -(2**63), 2**63 - 1, -1]),
    "f8": SMALL.map(float) | st.sampled_from([-0.0, 0.1, 1.5, 3e38, 1e39, 1e-45, 1e-46, float("inf"), float("-inf")]),
}


@st.composite
def tiles(draw: st.DrawFn, group: Group, latest: list[int], numbers: Callable[[Field], Any]) -> TileRows:
    """Some tiles of each entity."""
    entity, ids = list[int](), list[int]()
    for number, instant in enumerate(latest):
        ages = draw(st.sets(st.integers(0, group.ring - 1), max_size=4)) if group.hop else draw(st.sets(st.just(0)))
        entity += [number] * len(ages)
        ids += [instant // group.hop - age if group.hop else 0 for age in sorted(ages, reverse=True)]
    found: dict[Any, np.ndarray] = {}
    states = []
    for stored, places in zip(group.stored, columns_of(group).places, strict=True):
        state = []
        for field, place in zip(stored.partial.fields, places, strict=True):
            if place not in found:  # counts of the same events are the same
                # No two events have one time and one place in the log.
                unique = repr if field.role is Role.WHOLE else None
                drawn = draw(st.lists(numbers(field), min_size=len(ids), max_size=len(ids), unique_by=unique))
                found[place] = np.array(drawn, field.dtype).reshape(len(ids))
            state.append(found[place])
        states.append(tuple(state))
    return TileRows(np.array(entity, np.int64), np.array(ids, np.int64), tuple(states))


def packed(layout: Layout, latest: list[int], groups: list[TileRows]) -> list[bytes]:
    header = np.zeros((len(latest), HEADER_WORDS), np.int64)
    header[:, MAGIC], header[:, FINGERPRINT] = FORMAT, fingerprint_word(layout.view.fingerprint)
    header[:, LATEST] = latest
    return pack(layout, header, groups, lambda codes: (np.empty(0, np.uint8), np.zeros(codes.size, np.int64)))


def _any_number(field: Field) -> Any:
    return NUMBERS[field.role if field.role in NUMBERS else field.kind]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), latest=st.lists(st.integers(-DAY, 400 * DAY), max_size=4))
def test_numbers_are_read_back_to_the_bit(data: st.DataObject, latest: list[int]) -> None:
    groups = [data.draw(tiles(group, latest, _any_number)) for group in LAYOUT.groups]
    values = packed(LAYOUT, latest, groups)
    for number, read in enumerate(unpack(LAYOUT, values).groups):
        rows = groups[number]
        there = [(entity, place) for entity in range(len(latest)) for place in range(read.ids.shape[1])]
        there = [at for at in there if read.ids[at] != -(2**63)]
        assert list(zip(rows.entity.tolist(), rows.ids.tolist(), strict=True)) == [
            (e, read.ids[e, p]) for e, p in there
        ]
        for state, expected in zip(read.states, rows.states, strict=True):
            for field, kept in zip(state, expected, strict=True):
                assert kept.tobytes() == np.array([field[at] for at in there], kept.dtype).tobytes()
    # What an entity takes is its own matter: no other makes its bytes longer.
    for number, value in enumerate(values):
        alone = [_of(rows, number) for rows in groups]
        assert [value] == packed(LAYOUT, latest[number : number + 1], alone)


def _of(rows: TileRows, entity: int) -> TileRows:
    mine = rows.entity == entity
    states = tuple(tuple(field[mine] for field in state) for state in rows.states)
    return TileRows(np.zeros(int(mine.sum()), np.int64), rows.ids[mine], states)


FINITE: dict[Any, st.SearchStrategy[Any]] = {
    Role.COUNT: st.integers(0, 2**40),
    Role.LOW: st.just(0.0),
    "i8": st.integers(-(2**40), 2**40),
    "f8": st.floats(-1e6, 1e6, width=32) | st.floats(-1e6, 1e6),
}


def _finite(field: Field) -> Any:
    return FINITE[field.role if field.role in FINITE else field.kind]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), latest=st.lists(st.integers(-DAY, 400 * DAY), min_size=1, max_size=4))
def test_both_ways_to_fold_say_the_same(data: st.DataObject, latest: list[int]) -> None:
    groups = [data.draw(tiles(group, latest, _finite)) for group in FOLDED.groups]
    opened = open_values(FOLDED, packed(FOLDED, latest, groups))
    at = np.array([instant + data.draw(st.integers(0, 2 * DAY)) for instant in latest], np.int64)
    with np.errstate(all="ignore"):
        plain, walked = (fold(opened, at) for fold in READ)
    assert set(plain) == set(walked)
    for place, state in plain.items():
        for one, other in zip(state, walked[place], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-9, err_msg=str(place))


@pytest.mark.parametrize(("count", "size"), [(255, 1), (256, 2), (65_536, 4), (2**32, 8)])
def test_a_count_takes_the_bytes_that_it_needs(count: int, size: int) -> None:
    layout = layout_of(view_of((OracleFeature("events", "count", window=DAY),), COLUMNS, keys={"key": str}))
    latest, hop = 400 * DAY, layout.groups[0].hop or 1
    rows = TileRows(np.zeros(16, np.int64), latest // hop - np.arange(15, -1, -1), ((np.full(16, count),),))
    [value] = packed(layout, [latest], [rows])

    assert 8 * HEADER_WORDS + 8 + 16 * size + 16 == len(value)
