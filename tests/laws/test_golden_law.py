"""The golden law: stored tiles at T = exact history at T = the oracle, whatever the order, batching and eviction."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.expressions import col, feature
from featurestore.engine.columns import SEQ_BITS
from featurestore.engine.history import evaluate_history
from featurestore.engine.kernel import PLAIN
from featurestore.engine.read import ViewReader
from featurestore.engine.state import Outcome, ViewState
from tests.laws.bridge import batch_of, key_of, view_of
from tests.laws.strict_arrays import strict
from tests.oracle.compare import assert_same
from tests.oracle.meaning import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    OracleEvent,
    OracleFeature,
    divide,
    evaluate,
    latest_time,
    magnitude,
    status_of,
)
from tests.oracle.streams import Schedule, Stream, instants, schedules, streams

COLUMNS = {
    "user": "str", "shop": "int", "amount": "float", "quantity": "int", "huge": "int", "score": "int", "label": "str",
    "flag": "bool",
}  # fmt: skip


def _positive(event: OracleEvent) -> bool | None:
    return None if event["score"] is None else event["score"] > 0


FEATURES = (
    OracleFeature("events", "count", window=HOUR),
    OracleFeature("scored", "count", "score", window=5 * MINUTE),
    OracleFeature("positive", "count", window=DAY, where=_positive),
    OracleFeature("total", "sum", "amount", window=HOUR, default=0.0),
    OracleFeature("total_all", "sum", "amount"),
    OracleFeature("units", "sum", "quantity", window=DAY),
    OracleFeature("mean_amount", "mean", "amount", window=HOUR),
    OracleFeature("mean_quantity", "mean", "quantity", window=5 * SECOND),
    OracleFeature("var_amount", "var", "amount", window=HOUR),
    OracleFeature("std_score", "std", "score"),
    OracleFeature("var_huge", "var", "quantity", window=5 * SECOND, default=-1.0),
    OracleFeature("sum_huge", "sum", "huge", window=HOUR, default=-1),
    OracleFeature("least", "min", "huge", window=HOUR, hop=HOUR),
    OracleFeature("most", "max", "amount", window=5 * MINUTE, where=_positive),
    OracleFeature("most_ever", "max", "huge"),
    OracleFeature("first_label", "first", "label", window=DAY),
    OracleFeature("last_label", "last", "label", default="none", ttl=2 * HOUR),
    OracleFeature("last_flag", "last", "flag", window=HOUR),
    OracleFeature("newest", "last_n", "label", window=HOUR, n=3),
    OracleFeature("newest_one", "last_n", "huge", window=DAY, n=1),
    OracleFeature("newest_ever", "last_n", "label", n=2, ttl=2 * HOUR),
    OracleFeature("first_ever", "first", "flag", ttl=2 * HOUR),
    OracleFeature("labels", "approx_distinct", "label", window=DAY),
    OracleFeature("amounts", "approx_distinct", "amount"),
)
KERNELS = {"numpy": None, "walk": PLAIN}
"""Both ways to read stored values; that the compiled walk is the plain one is a law of its own."""
FLOATING = ("sum", "mean", "var", "std")
WHERE = {"positive": col("score") > 0, "most": col("score") > 0}
DERIVED = {"per_event": feature("total") / feature("events")}
VIEWS = {
    "user": view_of(FEATURES, COLUMNS, keys={"user": str}, where=WHERE, derived=DERIVED),
    "shop": view_of(FEATURES, COLUMNS, keys={"shop": int}, where=WHERE, derived=DERIVED),
    "both": view_of(FEATURES, COLUMNS, keys={"user": str, "shop": int}, where=WHERE, derived=DERIVED, lateness="1h"),
}


def expected_of(events: list[OracleEvent], at: int) -> tuple[dict[str, Any], dict[str, float]]:
    values: dict[str, Any] = dict(evaluate(FEATURES, events, at))
    values["per_event"] = divide(values["total"], values["events"])
    sizes = {f.name: magnitude(f, events, at) if f.op in FLOATING else 0.0 for f in FEATURES}
    return values, sizes | {"per_event": sizes["total"]}


def assert_answer(events: list[OracleEvent], at: int, got: dict[str, Any], where: str) -> None:
    expected, sizes = expected_of(events, at)
    ops = {f.name: f.op for f in FEATURES} | {"per_event": "derived"}
    assert set(expected) == set(got)
    for name, value in expected.items():
        if ops[name] == "approx_distinct":
            assert abs(value - got[name]) <= 1 + value // 10, f"{where} {name}: expected about {value}, got {got[name]}"
            continue
        assert_same(value, got[name], ops[name], magnitude=sizes[name], label=f"{where} {name} at {at}")


def deliver(
    view: CompiledView, schedule: Schedule, budget_bytes: int, xp: Any = np
) -> tuple[dict[str, bytes], dict[str, int]]:
    """Folds a schedule as a lane does: one log, the effect of each source event once, everything through bytes."""
    state = ViewState(view, budget_bytes=budget_bytes, xp=xp)
    stored: dict[str, bytes] = {}
    seen: dict[int, int] = {}
    ledger = dict.fromkeys((o.name for o in Outcome), 0)
    log = 0
    for batch in schedule:
        fresh = []
        for event in batch:
            if event["offset"] > seen.get(event["partition"], -1):
                seen[event["partition"]] = event["offset"]
                fresh.append(event)
        if not fresh:
            continue
        columns = batch_of(view, fresh, COLUMNS)
        unknown = state.unknown(columns)
        assert state.load(unknown, [stored.get(key) for key in unknown], partition=3) == []
        folded = state.fold(columns, np.arange(log, log + len(fresh)))
        log += len(fresh)
        values = state.encode(folded.slots, generation=0, partition=3, offset=log - 1)
        stored.update(zip(folded.keys, values, strict=True))
        for code, count in zip(*np.unique(folded.outcome, return_counts=True), strict=True):
            ledger[Outcome(int(code)).name] += int(count)
    return stored, ledger


@pytest.mark.parametrize("entity", VIEWS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_history_equals_the_oracle_at_any_instant(entity: str, data: st.DataObject) -> None:
    view = VIEWS[entity]
    stream: Stream = data.draw(streams())
    keys = stream.keys(*view.keys)
    spine = [(key, data.draw(instants(stream, key=key))) for key in keys for _ in range(2)]
    shuffled = data.draw(st.permutations(stream.events))

    batch = batch_of(view, list(shuffled), COLUMNS)
    asked = pa.array([key_of(view, key) for key, _ in spine] + [None, "never|seen"], pa.string())
    answers = evaluate_history(view, batch, asked, np.array([at for _, at in spine] + [0, 0], np.int64))

    listed = {answer.name: answer.to_list() for answer in answers}
    for row, (key, at) in enumerate(spine):
        assert_answer(stream.of(key), at, {n: v[row] for n, v in listed.items()}, f"{key}")
    for row in (len(spine), len(spine) + 1):
        assert_answer([], 0, {n: v[row] for n, v in listed.items()}, "unseen")
        assert {2} == {int(answer.status[row]) for answer in answers}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("entity", VIEWS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_stored_tiles_equal_the_oracle_from_the_latest_event_on(entity: str, kernel: str, data: st.DataObject) -> None:
    view = VIEWS[entity]
    stream: Stream = data.draw(streams())
    stored, ledger = deliver(view, data.draw(schedules(stream)), budget_bytes=1 << 26)

    assert len(stream.events) == sum(ledger.values())
    keyless = sum(any(event[k] is None for k in view.keys) for event in stream.events)
    assert keyless == ledger["FILTERED"]
    for key in stream.keys(*view.keys):
        events = stream.of(key)
        at = data.draw(instants(stream, key=key, from_latest=True))
        reading = ViewReader(view, KERNELS[kernel]).read([stored[key_of(view, key)]], np.array([at]), now=0)
        assert latest_time(events) == reading.latest[0]
        assert bool(reading.answerable[0])
        got = {c.name: c.to_list()[0] for c in reading.columns}
        assert_answer(events, at, got, f"{key}")
        statuses = {c.name: int(c.status[0]) for c in reading.columns}
        for f in FEATURES:
            assert status_of(f, events, at) == ("ok", "default", "not_found", "expired")[statuses[f.name]], f.name


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("entity", VIEWS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_values_that_are_read_together_are_what_each_is_alone(entity: str, kernel: str, data: st.DataObject) -> None:
    """However many tiles each has, whichever of them its windows reach, and with strangers among them."""
    view = VIEWS[entity]
    stream: Stream = data.draw(streams())
    stored, _ = deliver(view, data.draw(schedules(stream)), budget_bytes=1 << 26)
    keys = [key for key in stream.keys(*view.keys) for _ in range(2)]
    known = [(key, data.draw(instants(stream, key=key, from_latest=True))) for key in keys]
    few = data.draw(st.permutations([*known, (None, 0), (None, 10 * DAY)]))
    asked = few * data.draw(st.sampled_from([1, 30]))
    values = [None if key is None else stored[key_of(view, key)] for key, _ in asked]
    reader = ViewReader(view, KERNELS[kernel])
    ops = {f.name: f.op for f in FEATURES} | {"per_event": "derived"}

    together = reader.read(values, np.array([at for _, at in asked]), now=0)

    for row, (key, at) in enumerate(asked[-len(few) :], len(asked) - len(few)):
        alone = reader.read([values[row]], np.array([at]), now=0)
        _, sizes = expected_of([] if key is None else stream.of(key), at)
        for both, one in zip(together.columns, alone.columns, strict=True):
            assert (one.status[0], one.as_of[0]) == (both.status[row], both.as_of[row]), both.name
            value, size = one.to_list()[0], sizes[both.name]
            assert_same(value, both.to_list()[row], ops[both.name], magnitude=size, label=f"{both.name} of {key}")
        facts = (together.found[row], together.answerable[row], together.latest[row], together.partition[row])
        assert (alone.found[0], alone.answerable[0], alone.latest[0], alone.partition[0]) == facts


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_two_deliveries_of_one_stream_store_the_same(data: st.DataObject) -> None:
    """Same log order, other batches and evictions: exact parts to the byte."""
    exact = tuple(f for f in FEATURES if f.op not in FLOATING or (f.column == "quantity" and f.op == "sum"))
    view = view_of(exact, COLUMNS, keys={"user": str}, where=WHERE)
    stream: Stream = data.draw(streams())
    ordered = tuple(sorted(stream.events, key=lambda e: e["partition"] << SEQ_BITS | e["offset"]))
    one_by_one, ledger_a = deliver(view, tuple((event,) for event in ordered), budget_bytes=1)
    at_once, ledger_b = deliver(view, (ordered,) if ordered else (), budget_bytes=1 << 26)

    assert ledger_a == ledger_b
    reader = ViewReader(view)
    assert set(one_by_one) == set(at_once)
    for key, value in at_once.items():
        after_offsets = slice(40, None)
        assert value[after_offsets] == one_by_one[key][after_offsets]
        assert bool(reader.read([value], None, 0).found[0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_kernels_give_the_same_bytes_on_a_device_like_array_module(data: st.DataObject) -> None:
    stream: Stream = data.draw(streams())
    schedule = data.draw(schedules(stream))

    on_host, host_ledger = deliver(VIEWS["user"], schedule, budget_bytes=1 << 26)
    on_device, device_ledger = deliver(VIEWS["user"], schedule, budget_bytes=1, xp=strict)

    assert host_ledger == device_ledger
    assert on_host == on_device
