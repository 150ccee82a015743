"""The compiled walk is the plain one: the same words for the same bytes, and the same refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine.kernel import PLAIN, Kernel, compiled
from featurestore.engine.layout import layout_of
from featurestore.engine.read import ViewReader
from featurestore.engine.walked import Walks
from featurestore.errors import Corrupt
from tests.laws.bridge import key_of
from tests.laws.test_golden_law import VIEWS, deliver
from tests.oracle.streams import Stream, instants, schedules, streams

LAYOUTS = {name: layout_of(view) for name, view in VIEWS.items()}


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    pytest.importorskip("numba", reason="compiling needs featurestore[fast]")
    return compiled()


@pytest.mark.parametrize("entity", VIEWS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_compiled_and_plain_say_the_same_of_every_window(kernel: Kernel, entity: str, data: st.DataObject) -> None:
    view, layout = VIEWS[entity], LAYOUTS[entity]
    stream: Stream = data.draw(streams())
    stored, _ = deliver(view, data.draw(schedules(stream)), budget_bytes=1 << 26)
    keys = stream.keys(*view.keys)
    values = [stored[key_of(view, key)] for key in keys]
    at = np.array([data.draw(instants(stream, key=key, from_latest=True)) for key in keys], np.int64)

    plain, quick = Walks(layout, PLAIN), Walks(layout, kernel)
    with np.errstate(all="ignore"):
        opened, again = plain.open(values), quick.open(values)
        for name in ("header", "tiles", "ends"):
            np.testing.assert_array_equal(getattr(opened, name), getattr(again, name), strict=True)
        np.testing.assert_array_equal(opened.heap, again.heap)
        folded, twice = plain.fold(opened, at), quick.fold(again, at)
    assert list(folded) == list(twice)
    for place, state in folded.items():
        for one, other in zip(state, twice[place], strict=True):
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), place


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_by_every_way_or_by_none(kernel: Kernel, data: st.DataObject) -> None:
    view = VIEWS["user"]
    stream: Stream = data.draw(streams())
    stored, _ = deliver(view, data.draw(schedules(stream)), budget_bytes=1 << 26)
    key = data.draw(st.sampled_from([None, *stream.keys(*view.keys)]))
    if key is None:
        return
    value = bytearray(stored[key_of(view, key)])
    # The header and the numbers of tiles: what decides where anything is looked for.
    places = [place * 8 for place in range(9)]
    place = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, 7))
    value[place] = data.draw(st.integers(0, 255))
    cut = bytes(value[: data.draw(st.sampled_from([len(value), len(value) - 8, len(value) - 1, 64, 8, 0]))])

    said = [_refused(way, cut) for way in (None, PLAIN, kernel)]
    assert said[0] == said[1] == said[2]


def _refused(kernel: Kernel | None, value: bytes) -> str | None:
    try:
        ViewReader(VIEWS["user"], kernel).read([value], None, now=0)
    except Corrupt as error:
        return error.message
    return None
