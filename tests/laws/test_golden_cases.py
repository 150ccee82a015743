"""The worked cases, through every path that computes a value."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.expressions import col
from featurestore.engine.history import evaluate_history
from featurestore.engine.kernel import PLAIN, Kernel
from featurestore.engine.read import ViewReader
from featurestore.engine.state import ViewState
from tests.laws.bridge import batch_of, log_offsets, view_of
from tests.oracle.compare import assert_same
from tests.oracle.golden import GoldenCase, golden_cases

CASES = golden_cases()
KINDS = {bool: "bool", int: "int", float: "float", str: "str"}


def columns_of(case: GoldenCase) -> dict[str, str]:
    found = {"entity": "str"}
    for event in case.events:
        found |= {
            n: KINDS[type(v)]
            for n, v in event.items()
            if n not in ("event_time", "partition", "offset") and v is not None
        }
    return found


def compiled(case: GoldenCase, columns: dict[str, str]) -> CompiledView:
    where = {n: col(s["where"][0]) > s["where"][1] for n, s in case.specs.items() if "where" in s}
    return view_of(case.features, columns, keys={"entity": str}, where=where)


def events_of(case: GoldenCase, columns: dict[str, str]) -> list[dict[str, Any]]:
    return [{**dict.fromkeys(columns), **event, "entity": "e"} for event in case.events]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_history_answers_each_worked_case(case: GoldenCase) -> None:
    columns = columns_of(case)
    view = compiled(case, columns)
    batch = batch_of(view, events_of(case, columns), columns)

    instants = np.array([lookup.at for lookup in case.lookups])
    answers = evaluate_history(view, batch, pa.array(["e"] * instants.size), instants)

    for row, lookup in enumerate(case.lookups):
        got = {answer.name: answer.to_list()[row] for answer in answers}
        for feature in case.features:
            assert_same(lookup.values[feature.name], got[feature.name], feature.op, label=f"{feature.name} at {row}")


@pytest.mark.parametrize("kernel", [None, PLAIN], ids=["numpy", "walk"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stored_tiles_answer_each_worked_case_from_the_latest_event_on(case: GoldenCase, kernel: Kernel | None) -> None:
    columns = columns_of(case)
    view = compiled(case, columns)
    events = events_of(case, columns)
    latest = max(event["event_time"] for event in events)
    state = ViewState(view)
    state.load(["e"], [None], partition=0)
    folded = state.fold(batch_of(view, events, columns), log_offsets(len(events)))
    stored = state.encode(folded.slots, generation=0, partition=0, offset=len(events) - 1)

    for lookup in case.lookups:
        reading = ViewReader(view, kernel).read(stored, np.array([lookup.at]), now=0)
        assert (lookup.at >= latest) == bool(reading.answerable[0])
        if lookup.at < latest:
            continue
        got = {c.name: c.to_list()[0] for c in reading.columns}
        for feature in case.features:
            assert_same(lookup.values[feature.name], got[feature.name], feature.op, label=feature.name)
