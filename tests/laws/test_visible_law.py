"""`as_served`: a value at T counts the events that had happened and were visible by T, whatever became known since.

The oracle's reading of it is one line, `served`: the same rule over fewer events.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine.history import evaluate_history
from featurestore.engine.visible import VisibleTimes
from tests.laws.bridge import batch_of, key_of
from tests.laws.test_golden_law import COLUMNS, FEATURES, VIEWS, assert_answer
from tests.oracle.meaning import DAY, HOUR, SECOND, status_of
from tests.oracle.served import served
from tests.oracle.streams import Stream, instants, streams

DELAYS = st.one_of(
    st.sampled_from((0, 1, SECOND)), st.integers(0, 2 * HOUR), st.integers(0, 40 * DAY), st.integers(-5 * SECOND, 0)
)
"""From an event to its visibility: prompt, late, loaded long after; and before it where a producer's clock is ahead."""


@pytest.mark.parametrize("entity", VIEWS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_history_as_served_equals_the_oracle_at_any_instant(entity: str, data: st.DataObject) -> None:
    view = VIEWS[entity]
    stream: Stream = data.draw(streams())
    visible = {(e["partition"], e["offset"]): e["event_time"] + data.draw(DELAYS) for e in stream.events}
    keys = stream.keys(*view.keys)
    spine = [(key, data.draw(st.one_of(instants(stream, key=key), st.sampled_from([*visible.values()]))))
             for key in keys for _ in range(3)]  # fmt: skip
    shuffled: Sequence[dict[str, object]] = data.draw(st.permutations(stream.events))

    times = np.array([visible[e["partition"], e["offset"]] for e in shuffled], np.int64)
    asked = pa.array([key_of(view, key) for key, _ in spine] + [None, "never|seen"], pa.string())
    at = np.array([at for _, at in spine] + [0, 0], np.int64)
    answers = evaluate_history(view, batch_of(view, list(shuffled), COLUMNS), asked, at, times)

    listed = {answer.name: answer.to_list() for answer in answers}
    codes = {answer.name: answer.status for answer in answers}
    for row, (key, instant) in enumerate(spine):
        known = served(stream.of(key), visible, instant)
        assert_answer(known, instant, {n: v[row] for n, v in listed.items()}, f"{key}")
        for f in FEATURES:
            told = ("ok", "default", "not_found", "expired")[codes[f.name][row]]
            assert status_of(f, known, instant) == told, f.name
    for row in (len(spine), len(spine) + 1):
        assert {2} == {int(answer.status[row]) for answer in answers}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_cover_has_each_visible_row_once_and_no_other(data: st.DataObject) -> None:
    times = np.array(data.draw(st.lists(st.integers(0, 20), max_size=40)), np.int64)
    edges = st.integers(0, times.size)
    asked = data.draw(st.lists(st.tuples(edges, edges, st.integers(-1, 21)), max_size=6))
    low, high, at = np.array(asked, np.int64).reshape(-1, 3).T

    cover = VisibleTimes(times).cover(low, high, at)

    for q in range(len(asked)):
        rows = sorted(
            row
            for level, (question, block) in enumerate(cover.levels)
            for b in block[question == q].tolist()
            for row in range(b << level, min((b + 1) << level, times.size))
        )
        assert rows == [row for row in range(low[q], high[q]) if times[row] <= at[q]]
        assert cover.last(len(asked), times.size)[q] == max(rows, default=-1)
