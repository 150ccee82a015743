"""load: what it says, and what it refuses."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.cli.conftest import Fs


@pytest.fixture
def applied(fs: Fs, project: Path) -> Path:
    assert fs("apply").code == 0
    return project


def orders(path: Path, count: int, **columns: pa.Array) -> Path:
    table = pa.table(
        {
            "ordered_at": pa.array([1_700_000_000_000_000 + i for i in range(count)], pa.timestamp("us", "UTC")),
            "customer_id": pa.array([f"c-{i % 3}" for i in range(count)]),
            "amount": pa.array([float(i) for i in range(count)]),
        }
        | columns
    )
    pq.write_table(table, path)
    return path


def test_a_load_says_what_became_of_every_row(fs: Fs, applied: Path) -> None:
    orders(applied / "a.parquet", 100)
    orders(applied / "b.parquet", 50, amount=pa.array([float("nan"), *[1.0] * 49]))
    ran = fs("load", "orders", "a.parquet", "b.parquet", "--before", "2023-11-14T22:13:20.00003Z", "--output", "json")

    assert ran.code == 0, ran.err
    said = ran.document
    assert (150, 59, 90, 1) == (said["rows"], said["loaded"], said["left_out"], said["rejected"])
    assert "2023-11-14T22:13:20Z" == said["files"][0]["earliest"]
    assert f"b.parquet: 1 rows are refused; {said['files'][1]['rejects']} has them" in ran.err
    again = fs("load", "orders", "a.parquet", "--before", "2023-11-14T22:13:20.00003Z")
    assert "already there" in again.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("order", "a.parquet"), 1, "unknown source 'order'; did you mean 'orders'?"),
        (("orders", "none.parquet"), 2, "there is no file none.parquet"),
        (("orders", "a.parquet", "--before", "yesterday"), 2, "--before: 'yesterday' is not RFC 3339 with a zone"),
        (("orders", "a.parquet", "--visible-time", "seen"), 2, "column 'seen' is missing"),
    ],
)
def test_what_cannot_be_loaded(fs: Fs, applied: Path, words: tuple[str, ...], code: int, said: str) -> None:
    orders(applied / "a.parquet", 10)
    ran = fs("load", *words)

    assert (code, True) == (ran.code, said in ran.err), ran.err
