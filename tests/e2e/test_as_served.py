"""What the online store answered at T is what an `as_served` export says at T: real workers, one of them killed, Redis,
the API over HTTP, and events that come late."""

import asyncio
import math
import signal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.clock import SystemClock, parse_instant
from featurestore.offline.export import export
from featurestore.offline.lake import Lake
from featurestore.offline.manifest import Kind, Manifest
from featurestore.offline.visibility import Known
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from tests.e2e.streaming import VIEWS, Project, Sent, records_of, send, until, until_done
from tests.parts.redis import RedisServer
from tests.unit.serving.process import ApiProcess

USERS = [f"u{n}" for n in range(40)]
SHOPS = (["s|1", "s\\2", "é", *(f"s{n}" for n in range(12))] * 3)[: len(USERS)]


@pytest.fixture
def broker(either_broker: str) -> str:
    return either_broker


def asked(api: ApiProcess) -> dict[str, Any]:
    """Every user, with some shop, as of now; each value must come from the store."""
    body = {"service": "clicks", "entities": {"user": USERS, "shop": SHOPS}, "budget_ms": 2_000}
    answer: dict[str, Any] = httpx.post(f"{api.url}/v1/lookup", json=body, timeout=10).raise_for_status().json()
    worth = {status for row in answer["rows"] for status in
             ([row["status"]] if isinstance(row["status"], str) else row["status"])}  # fmt: skip
    assert not worth & {"deadline", "unavailable"}, worth
    return answer


def exported(project: Project, answers: list[dict[str, Any]], out: Path, **options: Any) -> tuple[pa.Table, Manifest]:
    spine = pa.table(
        {
            "user": USERS * len(answers),
            "shop": SHOPS * len(answers),
            "event_time": pa.array([parse_instant(a["at"]) for a in answers for _ in USERS], pa.timestamp("us", "UTC")),
        }
    )
    lake, catalog = Lake(project.lake), Registry(project.lake).head()
    manifest = export("clicks", spine, out, lake=lake, catalog=catalog, now=SystemClock().now(), **options)
    return pq.read_table([out / file.name for file in manifest.files]), manifest


async def test_what_was_answered_is_what_as_served_exports(
    project: Project, store: OnlineStore, redis: RedisServer, tmp_path: Path
) -> None:
    project.interval = 1.0
    project.publish()
    records = records_of(3_000, seed=7)
    waves = [records[:800], records[800:1500], records[1500:2200], records[2200:]]
    sent: list[Sent] = []
    answers: list[dict[str, Any]] = []
    worker = project.worker(instance="a")
    with ApiProcess(redis.url, Path(project.lake)) as api:
        for number, wave in enumerate(waves):
            await send(project.bootstrap, wave)
            sent += wave
            await until_done_online(store, sent)
            if not number:
                await asyncio.to_thread(api.until_ready)
                await until(lambda: vouched(api))
            answers.append(await asyncio.to_thread(asked, api))
            if number == 1:
                # It has told nobody when the latest of it became readable: the fences have.
                worker.signal(signal.SIGKILL)
                worker.wait()
                worker = project.worker(instance="a")
        await until_done(store, sent, VIEWS)
    assert worker.terminate() == 0

    served, manifest = exported(project, answers, tmp_path / "served", as_served=True)
    exact, _ = exported(project, answers, tmp_path / "exact")

    names = answers[0]["features"]
    for n, answer in enumerate(answers):
        for i, row in enumerate(answer["rows"]):
            at = n * len(USERS) + i
            for name, value in zip(names, row["values"], strict=True):
                said = served[name][at].as_py()
                near = isinstance(value, float) and said is not None and math.isclose(said, value, rel_tol=1e-9)
                assert near or said == value, (answer["at"], i, name)
    assert not exact.select(names).equals(served.select(names)), "nothing was late: the test tests nothing"
    assert manifest.kind is Kind.AS_SERVED
    assert manifest.visibility is not None
    assert set(manifest.visibility) == set(VIEWS)
    for view, key in zip(VIEWS, ("user", "shop"), strict=True):
        events = sum(record.event is not None and record.event[key] is not None for record in sent)
        assert manifest.visibility[view] == Known(recorded=events)
    assert {f"visible/{view}" for view in VIEWS} < set(manifest.lake_versions)


async def until_done_online(store: OnlineStore, records: list[Sent]) -> None:
    """As `until_done`, without waiting for the lake."""
    events = sum(record.event is not None for record in records)

    async def done() -> bool:
        for view in VIEWS:
            fences = (await store.fences(view)).values()
            if sum(counts[0] - counts[2] for fence in fences for counts in fence.ledger.values()) < events:
                return False
        return True

    await until(done)


async def vouched(api: ApiProcess) -> bool:
    """Whether the API has heard of all lanes."""
    body = {"service": "clicks", "entities": {"user": USERS[:1], "shop": SHOPS[:1]}, "budget_ms": 2_000}
    answer = (await asyncio.to_thread(httpx.post, f"{api.url}/v1/lookup", json=body, timeout=10)).json()
    return all(row["status"] in ("ok", "not_found") for row in answer.get("rows", [{"status": ""}]))
