"""Rows as JSON: put together from parts, and the same as if each had been encoded by itself."""

import json
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.clock import MAX_INSTANT, MIN_INSTANT, SECOND, format_instant
from featurestore.engine.columns import NEVER
from featurestore.serving.answers import SHAPES, Answer, Block, _ages
from featurestore.serving.plan import LookupPlan
from featurestore.types import STATUSES

TRICKY = st.text('],["\\{}ab', max_size=6)
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, -1e300]) | TRICKY
VALUES = SCALARS | st.lists(TRICKY | st.integers(0, 3), max_size=3)
CODES = st.integers(0, len(STATUSES) - 1)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    width, rows = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    columns = draw(st.lists(st.lists(VALUES, min_size=rows, max_size=rows), min_size=width, max_size=width))
    row = CODES.map(lambda code: [code] * width) | st.lists(CODES, min_size=width, max_size=width)
    codes = draw(CODES.map(lambda code: [[code] * width] * rows) | st.lists(row, min_size=rows, max_size=rows))
    instants = [np.zeros(rows, np.int64)] * width
    return Block(lambda: columns, np.array(codes, np.uint8).reshape(rows, width).T, instants, instants)


@settings(max_examples=400, deadline=None)
@given(block=blocks(), data=st.data())
def test_a_lean_row_has_its_values_and_one_status_or_one_for_each(block: Block, data: st.DataObject) -> None:
    rows = block.status.shape[1]
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))

    member, body = SHAPES["lean"](cast(LookupPlan, None), Answer(block, start, stop, at=0), [])

    expected = [_row(block, row) for row in range(start, stop)]
    assert {"rows": expected} == json.loads(b"{" + member.removeprefix(b",") + body + b"}")


@given(st.lists(st.integers(MIN_INSTANT, MAX_INSTANT), min_size=1, max_size=5))
def test_event_times_are_written_as_instants_are_everywhere(instants: list[int]) -> None:
    members = _ages(np.array(instants), np.array(instants) + SECOND)

    expected = [(None, None) if when == NEVER else (format_instant(when), 1.0) for when in instants]
    assert expected == [tuple(json.loads(b"{%b}" % member).values()) for member in members]


def _row(block: Block, row: int) -> dict[str, Any]:
    texts = [STATUSES[code].value for code in block.status[:, row].tolist()]
    return {"values": [column[row] for column in block.columns], "status": texts[0] if len(set(texts)) == 1 else texts}
