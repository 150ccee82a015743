"""Blocks of a view that were evaluated one part after the other."""

import numpy as np

from featurestore.serving.answers import Block
from featurestore.serving.batches import _one_below_the_other


def part(first: int, rows: int) -> Block:
    """Three columns, of which two stand on the same events."""
    shared, own = np.arange(first, first + rows), np.arange(first, first + rows) * 10
    at = np.full(rows, 7)
    lists = [shared.tolist(), own.tolist(), own.tolist()]
    return Block(lambda: lists, np.zeros((3, rows), np.uint8), [shared, own, shared], [at, at, at])


def test_columns_that_share_times_share_them_in_the_whole() -> None:
    """The full shape writes the times of each array once, so copies would cost it a text for each feature."""
    whole = _one_below_the_other([part(0, 3), part(3, 2)])
    assert [[0, 1, 2, 3, 4], [0, 10, 20, 30, 40], [0, 1, 2, 3, 4]] == [column.tolist() for column in whole.as_of]
    assert whole.as_of[0] is whole.as_of[2]
    assert whole.as_of[0] is not whole.as_of[1]
    assert [[7] * 5] * 3 == [column.tolist() for column in whole.at]
    assert whole.at[0] is whole.at[1] is whole.at[2]
    assert [0, 10, 20, 30, 40] == whole.columns[1]
