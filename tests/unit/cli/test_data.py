"""publish, lookup and export, where nothing answers or what was given cannot be."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.parts.process import free_ports
from tests.unit.cli.conftest import Fs


@pytest.fixture
def applied(fs: Fs, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published project whose Kafka, Redis and API are not there."""
    kafka, redis, api = free_ports(3)
    monkeypatch.setenv("FS_KAFKA", f"127.0.0.1:{kafka}")
    monkeypatch.setenv("FS_REDIS", f"redis://127.0.0.1:{redis}/0")
    monkeypatch.setenv("FS_PORT", str(api))
    assert fs("apply").code == 0
    return project


def test_publishing_to_an_unknown_source(fs: Fs, applied: Path) -> None:
    ran = fs("publish", "order", "orders.jsonl")

    assert ran.code == 1
    assert "unknown source 'order'; did you mean 'orders'?" in ran.err


def test_publishing_a_file_that_is_not_there(fs: Fs, applied: Path) -> None:
    ran = fs("publish", "orders", "nothing.jsonl")

    assert ran.code == 2
    assert "there is no file nothing.jsonl" in ran.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "line 5"),
        ('{"customer_id": "c-1", "amount": 1.0}', "ordered_at"),
        ('{"ordered_at": "2026-03-01T09:00:00Z", "customer_id": "c-1", "amount": "1"}', "amount"),
        ('{"ordered_at": "2026-03-01T09:00:00", "customer_id": "c-1", "amount": 1.0}', "ordered_at"),
    ],
)
def test_a_line_that_breaks_the_contract_is_named_and_nothing_is_sent(
    fs: Fs, applied: Path, line: str, said: str
) -> None:
    with (applied / "orders.jsonl").open("a") as file:
        file.write(line + "\n")
    ran = fs("publish", "orders", "orders.jsonl")

    assert ran.code == 2  # and not 1: it did not get as far as looking for the broker
    assert "line 5" in ran.err
    assert said in ran.err
    assert "nothing was sent" in ran.err


def test_a_table_without_a_required_column(fs: Fs, applied: Path) -> None:
    pq.write_table(pa.table({"customer_id": ["c-1"], "amout": [1.0]}), applied / "orders.parquet")
    ran = fs("publish", "orders", "orders.parquet")

    assert ran.code == 2
    assert "no column 'ordered_at'" in ran.err


def test_publishing_without_a_broker(fs: Fs, applied: Path) -> None:
    ran = fs("publish", "orders", "orders.jsonl")

    assert ran.code == 1
    assert "does not answer" in ran.err
    assert "FS_KAFKA" in ran.err


def test_lookup_without_an_api_says_how_to_start_one(fs: Fs, applied: Path) -> None:
    ran = fs("lookup", "customer_profile", "customer_id=c-1")

    assert ran.code == 1
    assert "does not answer" in ran.err
    assert "featurestore serve" in ran.err


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("customer_id",), "is no KEY=VALUE"),
        (("=c-1",), "is no KEY=VALUE"),
        (("customer_id=a", "customer_id=b"), "given twice"),
    ],
)
def test_keys_that_cannot_be(fs: Fs, applied: Path, keys: tuple[str, ...], said: str) -> None:
    ran = fs("lookup", "customer_profile", *keys)

    assert ran.code == 2
    assert said in ran.err


def test_a_url_that_is_none(fs: Fs) -> None:
    assert fs("lookup", "x", "a=b", "--url", "file:///etc/passwd").code == 2


def test_status_without_redis(fs: Fs, applied: Path) -> None:
    ran = fs("status")

    assert ran.code == 1
    assert "Redis at 127.0.0.1" in ran.err


def test_doctor_goes_through_all_parts_and_says_what_to_do(fs: Fs, applied: Path) -> None:
    ran = fs("doctor", "--output", "json")
    levels = {finding["part"]: finding["level"] for finding in ran.document["findings"]}

    assert ran.code == 1
    assert ran.document["healthy"] is False
    assert levels == {
        "python": "ok", "packages": "ok", "settings": "ok", "compute": "ok", "lake": "ok", "registry": "ok",
        "definitions": "ok", "redis": "fault", "kafka": "fault", "worker": "fault", "access": "ok", "api": "advice",
    }  # fmt: skip
    assert all(finding["hint"] for finding in ran.document["findings"] if finding["level"] != "ok")


def test_doctor_says_which_setting_is_wrong(fs: Fs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_LAKE_INTERVAL_SECONDS", "soon")
    ran = fs("doctor")

    assert ran.code == 1
    assert "FS_LAKE_INTERVAL_SECONDS" in ran.out


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"event_time": ["2026-03-01T12:00:00Z"]}, "there is no column 'customer_id'"),
        ({"customer_id": ["c-1"]}, "there is no column 'event_time'"),
        ({"customer_id": ["c-1"], "event_time": ["2026-03-01T12:00:00"]}, "zone"),
        ({"customer_id": [1], "event_time": ["2026-03-01T12:00:00Z"]}, "customer_id"),
    ],
)
def test_a_spine_that_cannot_be(fs: Fs, applied: Path, columns: dict[str, list[object]], said: str) -> None:
    pq.write_table(pa.table(columns), applied / "spine.parquet")
    ran = fs("export", "customer_profile", "--spine", "spine.parquet", "--out", "training")

    assert ran.code == 2
    assert said in ran.err
    assert not (applied / "training").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("customer_profil",), 1, "did you mean 'customer_profile'?"),
        (("customer_profile", "--memory", "much"), 2, "expected a size"),
        (("customer_profile", "--memory", "1MiB"), 2, "cannot do with 1 MiB"),
        (("customer_profile", "--spine-sql", "select 1"), 2, "one of --spine and --spine-sql"),
        (("customer_orders.orders_77",), 1, "unknown feature"),
        (("customer_profile",), 2, "no events of source 'orders'"),
    ],
)
def test_an_export_that_cannot_be(fs: Fs, applied: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    table = {"customer_id": ["c-1"], "event_time": ["2026-03-01T12:00:00Z"]}
    pq.write_table(pa.table(table), applied / "spine.parquet")
    ran = fs("export", *arguments, "--spine", "spine.parquet", "--out", "training")

    assert ran.code == code
    assert said in ran.err


def test_what_a_port_answers_that_is_no_api(fs: Fs, applied: Path, redis_url: str) -> None:
    """Redis closes the connection at an HTTP request."""
    host = redis_url.removeprefix("redis://").split("/")[0].rpartition("@")[2]
    ran = fs("lookup", "x", "a=b", "--url", f"http://{host}")

    assert ran.code == 1
    assert "unexpected" not in ran.err
