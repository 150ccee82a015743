"""What stands in for a missing value is the same in an answer and in a training set, by whatever policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.clock import HOUR, MINUTE, ManualClock
from featurestore.errors import UsageError
from featurestore.offline.events import events_table, in_time_order, system_columns
from featurestore.offline.export import build
from featurestore.offline.lake import Lake
from featurestore.offline.marks import app_id
from featurestore.offline.spine import read_spine
from featurestore.types import STATUS_SUFFIX
from tests.unit.serving import flights, policies
from tests.unit.serving.api import Api, running

ORIGINS = ["JFK", "LGA", "XXX", None]
"""Busy, quiet for longer than a window, never seen, and no entity at all."""


def departures(now: int) -> pa.Table:
    return flights.departures(
        [
            (now - 5 * HOUR, "LGA", "DL", 7, -4.0),
            (now - 20 * MINUTE, "JFK", "AA", 1, 50.0),
            (now - 3 * MINUTE, "JFK", None, 2, None),
        ]
    )


def append(lake: Path, events: pa.Table) -> None:
    rows = in_time_order(
        system_columns(events.drop_columns(["_partition", "_offset"]), 0, np.arange(len(events)), "departed_at", 0)
    )
    Lake(str(lake)).append(events_table("departures"), rows, {app_id("departures", 0): len(events) - 1})


def exported(lake: Path, policy: str, at: int) -> list[dict[str, Any]]:
    """Rows as a lean answer has them."""
    found = policies.definitions()
    [service] = [one for one in found.services if one.name == f"of_{policy}"]
    instants = pa.array([at] * len(ORIGINS), pa.timestamp("us", "UTC"))
    table = pa.table({"origin": pa.array(ORIGINS, pa.string()), "event_time": instants})
    spine = read_spine(table, {"origin": policies.views()[policy].keys["origin"]}, "event_time")
    made = build(Lake(str(lake)), [policies.views()[policy]], service, spine, status=True)
    rows = made.select(service.feature_names).to_pylist()
    statuses = made.select([name + STATUS_SUFFIX for name in service.feature_names]).to_pylist()
    return [
        {"values": list(row.values()), "status": _shortened(list(status.values()))}
        for row, status in zip(rows, statuses, strict=True)
    ]


def _shortened(statuses: list[str]) -> str | list[str]:
    return statuses[0] if len(set(statuses)) == 1 else statuses


@pytest.fixture
async def filled(redis_url: str, tmp_path: Path, clock: ManualClock) -> Any:
    async with running(redis_url, tmp_path, clock, applied=False) as api:
        events = departures(clock.now())
        await policies.publish(api, events)
        append(tmp_path, events)
        yield api


@pytest.mark.parametrize("policy", [policy for policy in policies.POLICIES if policy != "missing_error"])
async def test_an_answer_and_a_training_set_have_the_same_stand_ins(filled: Api, policy: str) -> None:
    answered = await filled.rows(f"of_{policy}", {"origin": ORIGINS})

    assert answered == exported(filled.lake, policy, filled.clock.now())
    assert answered[1]["values"][1] == 0.0
    assert answered[1]["status"] == ["ok", "default", "ok", "ok"]
    assert answered[2]["values"] == ([None] * 4 if policy == "missing_null" else [0, 0.0, None, 0])


async def test_what_an_answer_refuses_a_training_set_refuses_too(filled: Api) -> None:
    response = await filled.lookup({"service": "of_missing_error", "entities": {"origin": ORIGINS}})
    assert response.json()["code"] == "entity_missing"

    with pytest.raises(UsageError, match=r"missing_error@1 has never seen the entities of 2 rows .* as of row 2"):
        exported(filled.lake, "missing_error", filled.clock.now())
