"""What two stored states must have in common to be the same."""

from collections.abc import Mapping

import numpy as np

from featurestore.definitions.compiled import CompiledView
from featurestore.engine.layout import layout_of
from featurestore.engine.opening import unpack
from featurestore.engine.sections import GENERATION, HEADER_WORDS, OFFSET

_OF_A_LOG = (GENERATION, OFFSET)
"""Header words that say which log a value comes from, and not what it is."""


def assert_same_state(view: CompiledView, expected: Mapping[str, bytes], found: Mapping[str, bytes]) -> None:
    """The same entities, and of each the same header, tiles and texts to the byte; float sums within 1e-9."""
    assert sorted(expected) == sorted(found)
    layout = layout_of(view)
    kept = [word for word in range(HEADER_WORDS) if word not in _OF_A_LOG]
    for key, value in expected.items():
        one, other = unpack(layout, [value]), unpack(layout, [found[key]])
        assert one.header[:, kept].tolist() == other.header[:, kept].tolist()
        inexact = False
        for tiles, others in zip(one.groups, other.groups, strict=True):
            assert tiles.ids.tolist() == others.ids.tolist()
            for state, other_state in zip(tiles.states, others.states, strict=True):
                for field, other_field in zip(state, other_state, strict=True):
                    if field.dtype == np.float64 and not np.array_equal(field, other_field):
                        inexact = True
                        np.testing.assert_allclose(field, other_field, rtol=1e-9, err_msg=f"{view.id} {key}")
        assert inexact or value[HEADER_WORDS * 8 :] == found[key][HEADER_WORDS * 8 :], f"{view.id} {key}"
