"""The decisions of fold: any delivery of the same log, however cut, repeated and interrupted, has the same effects."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.clock import DAY, MINUTE
from featurestore.engine.columns import event_batch
from featurestore.engine.read import ViewReader
from featurestore.engine.state import ViewState
from featurestore.online.fences import Fence
from featurestore.online.keys import MAX_KEY_BYTES
from streams.folding import NOTHING, Count, Delivery, Piece, ViewFold, retention_ms, totals
from streams.stopping import PartitionStopped, StopReason
from tests.unit.streams.clicks import WindowsOnly, compiled

VIEW = compiled()

Row = tuple[int, str | None]
"""Source offset and user."""


def delivery(records: Sequence[tuple[int, int, Sequence[Row]]]) -> Delivery:
    """(log offset, source partition, rows) of each record."""
    rows = [(p, *row) for _, p, held in records for row in held]
    table = pa.table(
        {
            "at": pa.array([1_000_000 * offset for _, offset, _ in rows], pa.timestamp("us", "UTC")),
            "user": pa.array([user for _, _, user in rows], pa.string()),
            "amount": pa.array([1.0] * len(rows), pa.float64()),
            "_partition": pa.array([p for p, _, _ in rows], pa.int32()),
            "_offset": pa.array([offset for _, offset, _ in rows], pa.int64()),
        }
    )
    return Delivery(
        pieces=tuple(Piece(p, np.array([o for o, _ in held]), np.full(len(held), log)) for log, p, held in records),
        events=event_batch(VIEW.source, ["user"], table),
        appended=np.arange(len(rows)),
        first=records[0][0],
        last=records[-1][0],
    )


class Store:
    """Set-if-newer in a dict: what the online store promises."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.fence: Fence | None = None

    def write(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            if key not in self.values or _position(value) > _position(self.values[key]):
                self.values[key] = value

    def counts(self) -> dict[str, int]:
        reading = ViewReader(VIEW).read(list(self.values.values()), None, 10 * DAY)
        columns = {column.name: column.to_list() for column in reading.columns}
        return dict(zip(self.values, columns["n_all"], strict=True))


def _position(value: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(value[16:32], "<i8").tolist())


def run(fold: ViewFold, store: Store, given: Delivery, *, fenced: bool = True) -> None:
    accepted = fold.accept(given)
    if accepted is None:
        return
    while missing := fold.missing(accepted):
        accepted = fold.load(accepted, missing, [store.values.get(key) for key in missing])
    effects = fold.apply(accepted)
    store.write(effects.keys, effects.values)
    if fenced:
        store.fence = effects.fence
        fold.confirm(effects)


def new_fold(store: Store, partition: int = 0) -> ViewFold:
    return ViewFold(VIEW, partition, ViewState(VIEW), store.fence)


users = st.sampled_from([None, "a", "b", "c"])


@given(st.data())
def test_duplicates_restarts_and_cuts_leave_every_event_counted_once(data: st.DataObject) -> None:
    """Zombie and restarted intakes repeat a suffix of what they delivered; workers die between write and fence."""
    sources = {p: data.draw(st.lists(users, max_size=12)) for p in (0, 1)}
    log: list[tuple[int, list[Row]]] = []
    for p, held in sources.items():
        reached = 0
        while reached < len(held):
            start = data.draw(st.integers(0, reached))
            end = data.draw(st.integers(reached + 1, len(held)))
            log.append((p, list(enumerate(held))[start:end]))
            reached = end
    order = data.draw(st.permutations([p for p, _ in log]))
    queues = {p: [rows for owner, rows in log if owner == p] for p in sources}
    records = [(offset, p, queues[p].pop(0)) for offset, p in enumerate(order)]
    store = Store()
    fold, at = new_fold(store), 0
    while at < len(records):
        size = data.draw(st.integers(1, len(records) - at))
        dies = data.draw(st.booleans()) and data.draw(st.booleans())
        run(fold, store, delivery(records[at : at + size]), fenced=not dies)
        if dies:
            fold = new_fold(store)
        at = fold.resume

    everything = [user for held in sources.values() for user in held]
    assert store.counts() == {user: everything.count(user) for user in set(everything) - {None}}
    if store.fence is not None:
        ledger = totals(store.fence.ledger)
        assert ledger[Count.CONSUMED] - ledger[Count.DUPLICATE] == len(everything)
        assert ledger[Count.CONSUMED] == ledger[1:].sum() == sum(len(rows) for _, _, rows in records)
        assert ledger[Count.FILTERED] == everything.count(None)
        assert store.fence.vector == {p: len(held) - 1 for p, held in sources.items() if held}


def test_a_delivery_that_was_had_already_is_not_accepted() -> None:
    store = Store()
    fold = new_fold(store)
    run(fold, store, delivery([(0, 0, [(0, "a")])]))

    assert fold.accept(delivery([(0, 0, [(0, "a")])])) is None
    assert fold.resume == 1


def test_a_gap_after_the_fence_stops_the_partition() -> None:
    store = Store()
    fold = new_fold(store)
    run(fold, store, delivery([(0, 0, [(0, "a")])]))
    with pytest.raises(PartitionStopped, match="has had offset 0, and the next one there is 2") as stopped:
        fold.accept(delivery([(2, 0, [(1, "a")])]))

    assert stopped.value.reason is StopReason.GAP


def test_an_entity_of_another_partition_is_refused_and_counted_and_its_value_stays() -> None:
    store = Store()
    run(new_fold(store, partition=0), store, delivery([(0, 0, [(0, "a"), (1, "b")])]))
    elsewhere = ViewFold(VIEW, 1, ViewState(VIEW), None)
    accepted = elsewhere.accept(delivery([(0, 5, [(0, "c"), (1, "a"), (2, "c"), (3, "a")])]))
    assert accepted is not None
    accepted = elsewhere.load(accepted, ["a", "c"], [store.values["a"], None])
    effects = elsewhere.apply(accepted)
    [(reason, error, rows)] = effects.refused

    assert elsewhere.missing(accepted) == []
    assert (reason, rows.tolist()) == ("misrouted", [1, 3])
    assert "another partition" in error
    assert effects.keys == ["c"]
    assert effects.fence.ledger == {5: [4, 2, 0, 0, 2, 0]}


def test_a_key_too_long_for_the_store_is_refused_and_the_others_are_folded() -> None:
    fold = new_fold(Store())
    accepted = fold.accept(delivery([(0, 0, [(0, "x" * (MAX_KEY_BYTES + 1)), (1, "a")])]))
    assert accepted is not None
    assert fold.missing(accepted) == ["a"]
    effects = fold.apply(fold.load(accepted, ["a"], [None]))

    assert effects.keys == ["a"]
    assert [("key_too_long", [0])] == [(reason, rows.tolist()) for reason, _, rows in effects.refused]


def test_values_with_a_lifetime_never_expire_and_windows_outlive_their_length() -> None:
    assert retention_ms(VIEW) is None
    longest = 5 * MINUTE + 15_000_000
    assert retention_ms(compiled(WindowsOnly)) == (longest + DAY) // 1000


def test_a_generation_takes_no_value_from_before_it_and_drops_what_it_began_with() -> None:
    """An entity of older events has a value of the generation; of one that has none, all events are in the log."""
    store = Store()
    old = new_fold(store)
    run(old, store, delivery([(0, 0, [(0, "a"), (1, "b"), (2, "b"), (3, "c")])]))
    [base] = [value for key, value in store.values.items() if key == "a"]
    store.values["a"] = base[:16] + np.array([7, NOTHING], "<i8").tobytes() + base[32:]
    store.fence = Fence(7, NOTHING, {0: 0}, {}, event_time=0, broker_time=0, written_at=0)
    fold = new_fold(store)
    run(fold, store, delivery([(0, 0, [(0, "a"), (1, "b"), (2, "b"), (3, "c")]), (1, 0, [(4, "a")])]))

    assert store.counts() == {"a": 2, "b": 2, "c": 1}
    assert {key: _position(value) for key, value in store.values.items()} == dict.fromkeys("abc", (7, 1))
    assert totals(store.fence.ledger).tolist() == [5, 4, 1, 0, 0, 0]
