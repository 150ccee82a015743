"""What a worker tells a scraper: the whole ledger, under the names that dashboards and alerts use."""

import re

import httpx

from featurestore.online.store import OnlineStore
from streams.folding import Count
from tests.e2e.streaming import VIEWS, Project, Worker, folded, records_of, send, until, until_done
from tests.parts.process import free_ports
from tests.parts.redis import RedisServer

_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")


def port_of(worker: Worker) -> int | None:
    match = re.search(r'"port": (\d+).*"serving metrics"|"serving metrics".*"port": (\d+)', worker.log)
    return int(match[1] or match[2]) if match else None


async def announced(worker: Worker) -> int:
    async def there() -> bool:
        assert worker.alive(), worker.log
        return port_of(worker) is not None

    await until(there)
    port = port_of(worker)
    assert port is not None
    return port


def scrape(port: int) -> dict[str, dict[str, float]]:
    """Name of a sample → its labels as text → value."""
    response = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    found: dict[str, dict[str, float]] = {}
    for match in filter(None, map(_SAMPLE.fullmatch, response.text.splitlines())):
        found.setdefault(match["name"], {})[match["labels"] or ""] = float(match["value"])
    return found


async def test_a_scrape_of_a_worker_has_every_count_of_the_ledger(project: Project, store: OnlineStore) -> None:
    project.publish()
    records = records_of(1500, seed=21)
    await send(project.bootstrap, records)
    port = await announced(project.worker(FS_METRICS_PORT="0"))
    await until_done(store, records, VIEWS)
    users = {record.event["user"] for record in records if record.event is not None} - {None}
    wanted = sum([(await folded(store, view))[Count.CONSUMED] for view in VIEWS])

    async def counted() -> bool:  # a fence is there a moment before its counts, a gauge follows with the next beat
        seen = scrape(port)
        entities = seen["fs_state_entities"].get('view="user_clicks@1"')
        return sum(seen["fs_events_total"].values()) == wanted and entities == len(users)

    await until(counted)
    seen = scrape(port)
    for view in VIEWS:
        counts = await folded(store, view)
        assert counts[Count.APPLIED] > 0
        for kind in list(Count)[1:]:
            labels = f'outcome="{kind.name.lower()}",source="clicks",view="{view}"'
            assert counts[kind] == seen["fs_events_total"][labels]
        assert seen["fs_visible_delay_seconds_count"][f'view="{view}"'] > 0
    bad = sum(record.event is None for record in records)
    assert bad == sum(seen["fs_dead_letters_total"].values())
    assert all(labels.startswith("reason=") for labels in seen["fs_dead_letters_total"])
    assert set(seen["fs_registry_revision"].values()) == {1}
    assert seen["fs_lake_append_seconds_count"]['table="events/clicks"'] > 0
    assert seen["fs_store_duration_seconds_count"]['op="read"'] > 0
    assert seen["fs_store_duration_seconds_count"]['op="write"'] > 0
    assert 'partition="0",topic="clicks"' in seen["fs_consumer_lag_records"]


async def test_a_scrape_says_what_the_worker_waits_for_before_it_can_start(
    project: Project, redis: RedisServer
) -> None:
    redis.kill()
    port = await announced(project.worker(FS_METRICS_PORT="0"))

    async def waits() -> bool:
        return scrape(port).get("fs_waiting_for", {}).get('part="redis"') == 1

    await until(waits)


async def test_a_second_worker_on_the_same_fixed_port_says_so_and_ends(project: Project) -> None:
    [port] = free_ports(1)
    first = project.worker(FS_METRICS_PORT=str(port))
    assert port == await announced(first)

    second = project.worker(FS_METRICS_PORT=str(port))

    assert second.wait() == 2
    assert f"cannot serve metrics on 127.0.0.1:{port}: Address already in use" in second.log
    assert "0 for a free one" in second.log
    assert first.alive()


async def test_a_worker_without_the_setting_serves_none(project: Project) -> None:
    worker = project.worker()

    async def started() -> bool:
        return "worker started" in worker.log

    await until(started)
    assert port_of(worker) is None
