"""The columnar record: what goes in comes out, in order, within the size, and foreign bytes are refused."""

import copy

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from featurestore.contracts.arrow import arrow_schema
from featurestore.engine.placement import partitions_of
from featurestore.errors import Corrupt
from streams.shuffle import MAX_RECORD_BYTES, Origin, decode, encode, with_positions
from tests.unit.streams.clicks import SCHEMA, contract

ORIGIN = Origin("clicks", 3, "clicks/v1")
rows_of = st.lists(
    st.tuples(
        st.integers(0, 2**50),
        st.none() | st.text(max_size=8),
        st.none() | st.floats(allow_nan=False),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=40,
)


def batch(rows: list[tuple[int, str | None, float | None]], first: int = 0) -> pa.RecordBatch:
    schema = arrow_schema(contract())
    arrays = [
        pa.array(list(values), pa.int64() if i == 0 else schema.types[i])
        for i, values in enumerate(zip(*rows, strict=True))
    ]
    arrays[0] = arrays[0].cast(schema.types[0])
    columns = pa.RecordBatch.from_arrays(arrays, schema=schema)
    return with_positions(columns, np.arange(first, first + len(rows)), np.full(len(rows), 7))


@given(rows_of)
def test_every_row_arrives_once_at_its_target_in_offset_order(
    rows: list[tuple[int, str | None, float | None, int]],
) -> None:
    targets = np.array([row[3] for row in rows])
    sent = batch([row[:3] for row in rows], first=100)
    found: dict[int, tuple[int, str | None, float | None]] = {}
    for target, payloads in encode(ORIGIN, sent, targets).items():
        offsets: list[int] = []
        for payload in payloads:
            shuffled = decode(payload, contract())
            assert shuffled.origin == ORIGIN
            assert shuffled.offsets.tolist() == shuffled.rows["_offset"].to_pylist()
            assert set(shuffled.rows["_partition"].to_pylist()) == {3}
            assert set(shuffled.rows["_appended"].to_pylist()) == {7}
            values = zip(*(shuffled.rows[n].to_pylist() for n in ("user", "amount")), strict=True)
            times = shuffled.rows["at"].cast(pa.int64()).to_pylist()
            found |= {o: (t, *v) for o, t, v in zip(shuffled.offsets.tolist(), times, values, strict=True)}
            offsets += shuffled.offsets.tolist()
        assert offsets == [100 + i for i in np.flatnonzero(targets == target)]
    assert found == {100 + i: row[:3] for i, row in enumerate(rows)}


def test_records_are_split_where_they_grow_too_large() -> None:
    rows: list[tuple[int, str | None, float | None]] = [(i, "x" * 1000, 1.0) for i in range(3000)]
    payloads = encode(ORIGIN, batch(rows), np.zeros(3000, np.int64))[0]

    assert len(payloads) >= 4
    assert max(map(len, payloads)) <= MAX_RECORD_BYTES
    assert np.concatenate([decode(p, contract()).offsets for p in payloads]).tolist() == list(range(3000))


def test_a_single_row_of_any_size_is_one_record() -> None:
    rows: list[tuple[int, str | None, float | None]] = [(1, "x" * 2_000_000, None), (2, "y", None)]
    payloads = encode(ORIGIN, batch(rows), np.zeros(2, np.int64))[0]

    assert [1, 1] == [len(decode(p, contract()).offsets) for p in payloads]


def test_a_column_that_an_older_record_lacks_has_its_default_and_one_that_is_gone_is_dropped() -> None:
    schema = copy.deepcopy(SCHEMA)
    schema["fields"][2] = {"name": "items", "type": "long", "default": 4}
    payload = encode(ORIGIN, batch([(1, "a", 2.0), (2, None, None)]), np.zeros(2, np.int64))[0][0]
    rows = decode(payload, contract(schema, version=2)).rows

    assert [4, 4] == rows["items"].to_pylist()
    assert rows.schema.names == ["at", "user", "items", "_partition", "_offset", "_appended"]


def test_a_column_without_a_default_cannot_be_missing() -> None:
    schema = copy.deepcopy(SCHEMA)
    schema["fields"].append({"name": "items", "type": "long"})
    payload = encode(ORIGIN, batch([(1, "a", 2.0)]), np.zeros(1, np.int64))[0][0]
    with pytest.raises(Corrupt, match="'items' is missing and has no default"):
        decode(payload, contract(schema, version=2))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 64, b'{"at": 1}'])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt, match="is no columnar batch of clicks/v1"):
        decode(data, contract())


@given(st.data())
def test_bytes_cut_off_anywhere_never_decode_to_fewer_rows(data: st.DataObject) -> None:
    payload = encode(ORIGIN, batch([(i, "u", 1.0) for i in range(20)]), np.zeros(20, np.int64))[0][0]
    cut = data.draw(st.integers(0, len(payload) - 1))
    try:
        rows = decode(payload[:cut], contract()).offsets.tolist()
    except Corrupt:
        return
    assert rows == list(range(20))


@given(st.lists(st.none() | st.text(max_size=5), min_size=1), st.integers(1, 64))
def test_a_key_has_one_home_and_null_keys_have_the_one_given(keys: list[str | None], count: int) -> None:
    homes = partitions_of(pa.array(keys, pa.string()), count, count - 1)

    assert homes.tolist() == [
        count - 1 if key is None else xxhash.xxh3_64_intdigest(key.encode()) % count for key in keys
    ]
