"""A few bad records are dead letters; a run of them is a bad deploy, and stays unread."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.rejects import MINIMUM, WINDOW, RejectWatch

GOOD, BAD = False, True


def flags(*runs: tuple[int, bool]) -> np.ndarray:
    return np.repeat([flag for _, flag in runs], [n for n, _ in runs])


def test_fewer_than_a_hundred_records_never_stop_anything() -> None:
    assert RejectWatch(0.5).cut(flags((MINIMUM - 1, BAD))) is None


def test_a_share_at_the_limit_is_still_taken() -> None:
    assert RejectWatch(0.5).cut(np.tile([GOOD, BAD], 500)) is None


def test_a_batch_of_nothing_but_refusals_is_left_unread_from_its_beginning() -> None:
    assert RejectWatch(0.5).cut(flags((400, BAD))) == 0


def test_what_came_before_the_bad_deploy_is_taken() -> None:
    assert RejectWatch(0.5).cut(flags((1000, GOOD), (400, BAD))) == 1000


def test_refusals_of_earlier_batches_count() -> None:
    watch = RejectWatch(0.5)
    assert watch.cut(flags((150, GOOD), (50, BAD))) is None
    assert watch.cut(flags((49, BAD))) is None
    assert watch.cut(flags((100, BAD))) == 0


def test_a_stopped_watch_says_the_same_again() -> None:
    watch = RejectWatch(0.5)
    assert watch.cut(flags((200, BAD))) == 0
    assert watch.cut(flags((200, BAD))) == 0


@given(st.lists(st.booleans(), min_size=1, max_size=600), st.floats(0.05, 0.95), st.integers(1, 600))
def test_nothing_good_beyond_the_cut_was_needed_to_stop(refused: list[bool], share: float, size: int) -> None:
    """However the records are cut into batches, the same window tips the balance."""
    whole = _tips(refused, share)
    watch, tipped = RejectWatch(share), False
    for start in range(0, len(refused), size):
        cut = watch.cut(np.array(refused[start : start + size]))
        if cut is not None:
            tipped = True
            assert 0 <= cut < size
            break
    assert tipped == whole


def _tips(refused: list[bool], share: float) -> bool:
    windows = (refused[max(0, end - WINDOW) : end] for end in range(1, len(refused) + 1))
    return any(len(window) >= MINIMUM and sum(window) > share * len(window) for window in windows)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_good_records_are_never_stopped(share: float) -> None:
    assert RejectWatch(share).cut(flags((5000, GOOD))) is None
