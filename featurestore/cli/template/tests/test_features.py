"""The features on a small table, by the engine that also runs in production. No service is needed."""

import json
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from featurestore.definitions.load import load_definitions
from featurestore.testing import LocalStore

HERE = Path(__file__).parent.parent


@pytest.fixture
def store() -> LocalStore:
    events = [json.loads(line) for line in (HERE / "orders.jsonl").read_text().splitlines()]
    for event in events:
        event["ordered_at"] = datetime.fromisoformat(event["ordered_at"])
        event.setdefault("refunded", False)
    views = load_definitions(str(HERE / "definitions.py")).raw_views
    return LocalStore(views, pa.Table.from_pylist(events), schemas=HERE / "schemas")


def test_orders_of_the_last_hour_are_counted(store: LocalStore) -> None:
    answer = store.lookup({"customer_id": "c-1"}, at="2026-03-01T09:45:00Z")

    assert answer["orders_1h"] == 2
    assert answer["spent_7d"] == 25.5


def test_what_comes_later_is_not_seen(store: LocalStore) -> None:
    answer = store.lookup({"customer_id": "c-1"}, at="2026-03-01T09:15:00Z")

    assert answer["orders_7d"] == 1
    assert answer["last_category"] == "books"


def test_a_customer_without_orders_has_none(store: LocalStore) -> None:
    answer = store.lookup({"customer_id": "c-9"}, at="2026-03-01T12:00:00Z")

    assert answer["orders_7d"] == 0
    assert answer["refunded_share_7d"] is None
