import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.clock import MAX_INSTANT, MIN_INSTANT, format_instant
from featurestore.contracts.arrow import rows_to_batch
from featurestore.contracts.contract import parse_contract
from featurestore.contracts.decode import decode
from featurestore.contracts.encode import encode_json
from featurestore.errors import ContractError

FIELDS = [
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "seen", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
    {"name": "n", "type": "long"},
    {"name": "x", "type": ["null", "double"]},
    {"name": "name", "type": ["null", "string"]},
    {"name": "ok", "type": "boolean"},
]
CONTRACT = parse_contract("events/v1", json.dumps({"type": "record", "name": "Event", "fields": FIELDS}))

instants = st.integers(MIN_INSTANT, MAX_INSTANT) | st.integers(-(10**6), 10**6).map(lambda s: s * 10**6)
rows = st.tuples(
    instants,
    st.none() | instants,
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0),
    st.none() | st.text(max_size=6),
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, max_size=10))
def test_what_is_encoded_decodes_to_the_same_batch(batch: list[tuple[object, ...]]) -> None:
    columns = rows_to_batch(CONTRACT, batch)  # type: ignore[arg-type]
    values = encode_json(CONTRACT, columns)
    assert columns.equals(decode(CONTRACT, list(values), "json").columns)
    assert values == encode_json(CONTRACT, pa.Table.from_batches([columns]))
    assert [format_instant(row[0]) for row in batch] == [json.loads(v)["at"] for v in values]  # type: ignore[arg-type]


def test_columns_that_were_not_checked_are_refused() -> None:
    good = rows_to_batch(CONTRACT, [(0, None, 1, 1.5, "a", True)])
    with pytest.raises(ContractError, match="not those of contract events/v1"):
        encode_json(CONTRACT, good.select(["at", "n"]))
    with pytest.raises(ContractError, match="n: null"):
        encode_json(CONTRACT, good.set_column(2, "n", pa.array([None], pa.int64())))
    with pytest.raises(ContractError, match="x: NaN"):
        encode_json(CONTRACT, good.set_column(3, "x", pa.array([float("nan")])))
