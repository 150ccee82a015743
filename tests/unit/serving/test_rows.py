"""What is remembered of rows: how long, how much, and what may be evaluated again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from featurestore.clock import DAY, HOUR, MINUTE
from featurestore.engine.read import Reading, ViewReader
from featurestore.serving.rows import RememberedRows, Room
from tests.unit.serving import flights

NOW = 20_000 * DAY
VIEW = flights.view("airport_delay")
STORED = flights.stored(VIEW, flights.a_busy_day(NOW, 50))
KEYS, VALUES = list(STORED), list(STORED.values())
EVERY = range(len(VIEW.order))


class Counting(ViewReader):
    """Counts what is evaluated."""

    rows = 0

    def read(self, values: Sequence[bytes | None], at: np.ndarray | None, now: int | np.ndarray) -> Reading:
        self.rows += len(values)
        return super().read(values, at, now)


def kept(room: Room | None = None) -> tuple[RememberedRows, Counting]:
    reader = Counting(VIEW)
    rows = RememberedRows(reader, EVERY, room or Room(1 << 30))
    reader.rows = 0
    return rows, reader


def test_a_row_is_evaluated_once_until_a_tile_leaves_a_window() -> None:
    rows, reader = kept()
    rows.read(VALUES, NOW)
    assert 50 == reader.rows
    until = int(reader.until(ViewReader(VIEW).read(VALUES, None, NOW)).min())
    assert NOW < until <= NOW + 5 * MINUTE  # the hop of an hour's window

    rows.read(VALUES, until - 1)
    assert 50 == reader.rows
    rows.read(VALUES, until)
    assert 100 == reader.rows


def test_a_row_holds_until_a_value_is_too_old_for_its_view() -> None:
    view = flights.view("leg_delay")
    [value] = flights.stored(view, flights.departures([(NOW + 7, "JFK", "AA", 1, 3.0)])).values()
    rows = RememberedRows(ViewReader(view), range(len(view.order)), Room(1 << 30))
    last = view.order.index("last_delay")

    expires = NOW + 7 + 6 * HOUR
    found = [rows.read([value], now).columns()[last] for now in (expires - 1, expires, expires + 1)]
    assert [[3.0], [3.0], [None]] == found


def test_a_row_whose_stored_value_changed_is_evaluated_again_and_no_other() -> None:
    rows, reader = kept()
    rows.read(VALUES, NOW)
    changed = flights.stored(VIEW, flights.departures([(NOW - 1, KEYS[7], "XX", 1, 3.0)]))[KEYS[7]]
    found = rows.read([*VALUES[:7], changed, *VALUES[8:]], NOW)

    assert 51 == reader.rows
    assert "XX" == found.columns()[-1][7]
    assert "C6" == found.columns()[-1][6]


def test_an_entity_that_is_not_there_takes_no_room() -> None:
    room = Room(1 << 30)
    rows, reader = kept(room)
    before = room.taken
    found = rows.read([None, None], NOW)

    assert 0 == reader.rows
    assert before == room.taken
    assert [False, False] == found.found.tolist()
    assert [0, 0] == found.columns()[0]


def test_a_lookup_of_nobody_has_every_column() -> None:
    rows, _ = kept()
    assert [[]] * len(EVERY) == rows.read([], NOW).columns()


def test_without_room_the_oldest_rows_are_overwritten() -> None:
    rows, reader = kept(Room(0, least_rows=20))
    for start in (0, 10):
        rows.read(VALUES[start : start + 10], NOW)
    rows.read(VALUES[:20], NOW)
    assert 20 == reader.rows

    rows.read(VALUES[20:30], NOW)  # in the place of the first ten
    rows.read(VALUES[10:30], NOW)
    assert 30 == reader.rows
    rows.read(VALUES[:5], NOW)
    assert 35 == reader.rows


def test_rows_of_one_lookup_do_not_overwrite_each_other() -> None:
    rows, reader = kept(Room(0, least_rows=10))
    rows.read(VALUES[:10], NOW)
    # One more overwrites the oldest, which is asked for as well.
    found = rows.read(VALUES[:11], NOW)
    expected = reader.read(VALUES[:11], None, NOW)

    assert [column.to_list() for column in expected.columns] == found.columns()


def test_what_was_handed_out_stays_when_its_place_is_taken() -> None:
    rows, reader = kept(Room(0, least_rows=10))
    first = rows.read(VALUES[:10], NOW)
    rows.read(VALUES[10:20], NOW)
    expected = reader.read(VALUES[:10], None, NOW)

    assert [column.to_list() for column in expected.columns] == first.columns()
    assert [column.status.tolist() for column in expected.columns] == first.status.tolist()


@pytest.mark.parametrize("max_bytes", [0, 1 << 30])
def test_room_is_given_back(max_bytes: int) -> None:
    room = Room(max_bytes, least_rows=10)
    rows, _ = kept(room)
    empty = room.taken
    for start in range(0, 50, 5):
        rows.read(VALUES[start : start + 5], NOW)
    assert room.taken > empty
    if not max_bytes:
        assert room.taken < 15 * max(map(len, VALUES)) + 15 * 1_000
    rows.leave()
    assert 0 == room.taken


def test_memory_is_what_is_told() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    room = Room(1 << 30)
    entities = 4_000
    stored = flights.stored(VIEW, flights.a_busy_day(NOW, entities))
    values, reader = list(stored.values()), ViewReader(VIEW)
    rows = RememberedRows(reader, EVERY, room)
    rows.read(values[:10], NOW)
    tracemalloc.start()
    before, told = tracemalloc.get_traced_memory()[0], room.taken
    found: Any = None
    for start in range(0, entities, 100):
        found = rows.read([bytes(bytearray(value)) for value in values[start : start + 100]], NOW)
    del found
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert 0.6 < taken / (room.taken - told) < 1.4
