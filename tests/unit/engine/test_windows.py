"""Features of no entities: batches in which nothing changed, and lookups of nobody, are no special case."""

import numpy as np
import pyarrow as pa

from featurestore.engine.history import evaluate_history
from featurestore.engine.read import ViewReader
from tests.laws.bridge import batch_of
from tests.laws.test_golden_law import COLUMNS, FEATURES, VIEWS

NOBODY = np.empty(0, np.int64)


def test_a_lookup_of_no_entities_has_every_feature() -> None:
    for at in (None, NOBODY):
        columns = ViewReader(VIEWS["user"]).read([], at, now=0).columns
        assert [0] * (len(FEATURES) + 1) == [len(column.to_arrow()) for column in columns]


def test_history_without_a_spine_has_every_feature() -> None:
    view = VIEWS["user"]
    columns = evaluate_history(view, batch_of(view, [], COLUMNS), pa.array([], pa.string()), NOBODY)

    assert [0] * (len(FEATURES) + 1) == [len(column.to_arrow()) for column in columns]
