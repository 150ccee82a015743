"""The whole way of a dead letter: refused, listed, shown, sent again when its cause is gone, and counted once."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from featurestore.clock import SECOND, SystemClock, format_instant
from featurestore.offline.lake import Lake
from featurestore.online.store import OnlineStore
from streams.folding import Count
from streams.scanning import scan
from tests.e2e.streaming import (
    DEFINITIONS,
    PARTITIONS,
    TOPIC,
    VIEWS,
    Project,
    Sent,
    assert_oracle,
    folded,
    records_of,
    send,
    until_done,
)
from tests.e2e.test_cli_dev import fs

AHEAD = 12 * SECOND
IMPATIENT = DEFINITIONS.replace('key=["user"])', 'key=["user"], max_future_skew="1s")')


@pytest.fixture
def broker(either_broker: str) -> str:
    return either_broker


class Dlq:
    """`featurestore dlq` beside a project."""

    def __init__(self, project: Project) -> None:
        self._at = project.directory
        self._env = {"FS_KAFKA": project.bootstrap, "FS_REDIS": project.redis, "FS_LAKE": project.lake}

    async def run(self, *words: str) -> tuple[int, str, str]:
        ran = await asyncio.to_thread(fs, "dlq", *words, at=self._at, env=self._env)
        return ran.returncode, ran.stdout, ran.stderr

    async def __call__(self, *words: str) -> Any:
        """The document."""
        code, out, err = await self.run(*words, "--output", "json")
        assert 0 == code, err
        return json.loads(out)


def event_at(at: int, n: int) -> Sent:
    user = f"u{n}"
    event = {"at": at, "user": user, "shop": f"s{n % 2}", "amount": 1.5, "items": 2}
    partition = sum(user.encode()) % PARTITIONS
    return Sent(partition, user.encode(), json.dumps(event).encode(), event | {"event_time": at})


async def replays_in(bootstrap: str) -> dict[str, Any]:
    """Letter's place → the record of the source's topic that it became."""
    async with scan(bootstrap, TOPIC, PARTITIONS) as all_:
        records = [record async for batch in all_.batches() for record in batch]
    last = [(record.headers[-1] if record.headers else ("", b""), record) for record in records]
    return {place.decode(): record for (name, place), record in last if name == "fs.replay"}


async def test_events_from_the_future_are_sent_again_when_their_time_has_come(
    project: Project, store: OnlineStore
) -> None:
    catalog, dlq = project.publish(IMPATIENT), Dlq(project)
    good = [record for record in records_of(400, seed=61) if record.event is not None]
    await send(project.bootstrap, good)
    project.worker()
    await until_done(store, good, VIEWS)
    at = SystemClock().now() + AHEAD
    early = [event_at(at, n) for n in range(5)]
    poison = [Sent(0, b"u1", b"{", None), Sent(1, b"u2", b"\xff\xfe", None), Sent(2, None, None, None)]
    bad = [Sent(e.partition, e.key, e.value, None) for e in early] + poison
    await send(project.bootstrap, bad)
    await until_done(store, [*good, *bad], VIEWS)

    listed = await dlq("list", TOPIC)
    assert (8, 0, 0) == (listed["letters"], listed["replayed"], listed["foreign"])
    assert {"future_event": 5, "empty": 1} == {
        r["reason"]: r["count"] for r in listed["reasons"] if r["reason"] in ("future_event", "empty")
    }
    shown = await dlq("show", TOPIC, str(bad[0].partition), str(bad[0].offset))
    assert ("future_event", "clicks/v1", "1") == (shown["reason"], shown["contract"], shown["revision"])
    assert format_instant(at) in shown["error"]
    assert (bad[0].key or b"").decode() == shown["key"]["text"]
    assert (bad[0].value or b"").decode() == shown["value"]["text"]
    assert None is (await dlq("show", TOPIC, "2", str(poison[2].offset)))["value"]
    await dlq("show", TOPIC, "1", str(poison[1].offset), "--raw", "value.bin")
    assert b"\xff\xfe" == (project.directory / "value.bin").read_bytes()

    await asyncio.sleep(max(0, at - SystemClock().now()) / SECOND)
    replayed = await dlq("replay", TOPIC, "--reason", "future_event")
    assert (5, 5, 0) == (replayed["selected"], replayed["sent"], replayed["already_replayed"])
    back = await replays_in(project.bootstrap)
    for event, letter in zip(early, bad, strict=False):
        event.offset = back[f"{letter.partition}/{letter.offset}"].offset
        assert event.event is not None
        event.event |= {"partition": event.partition, "offset": event.offset}
    everything = [*good, *bad, *early]
    await until_done(store, everything, VIEWS)
    again = await dlq("replay", TOPIC, "--reason", "future_event")
    assert (5, 0, 5) == (again["selected"], again["sent"], again["already_replayed"])
    assert 5 == (await dlq("list", TOPIC))["replayed"]

    events = len(good) + len(early)
    for view in catalog.views.values():
        assert await assert_oracle(store, view, everything) > 10
        ledger = await folded(store, view.id)
        assert events == ledger[Count.CONSUMED] - ledger[Count.DUPLICATE]
    snapshot = Lake(project.lake).snapshot(f"events/{TOPIC}")
    assert snapshot is not None
    marks = (await store.intake_marks(TOPIC)).values()
    assert events == sum(mark.ledger["forwarded"] for mark in marks)
    assert len(everything) == sum(mark.ledger["consumed"] for mark in marks)
    assert 8 == sum(mark.ledger["dead_lettered"] for mark in marks)


async def test_a_letter_that_is_still_bad_becomes_a_new_one(project: Project, store: OnlineStore) -> None:
    project.publish()
    dlq, bad = Dlq(project), [Sent(3, b"u1", b"{", None)]
    await send(project.bootstrap, bad)
    project.worker()
    await until_done(store, bad, ())
    assert 1 == (await dlq("replay", TOPIC, "--all"))["sent"]
    moved = Sent(3, b"u1", b"{", None, bad[0].offset + 1)
    await until_done(store, [moved], ())

    listed = await dlq("list", TOPIC)
    assert [(moved.offset, False), (bad[0].offset, True)] == [(e["offset"], e["replayed"]) for e in listed["newest"]]
    shown = await dlq("show", TOPIC, "3", str(moved.offset))
    assert f"3/{bad[0].offset}" in [h["value"]["text"] for h in shown["headers"] if h["name"] == "fs.replay"]


async def test_a_refused_record_comes_back_byte_for_byte(project: Project, store: OnlineStore) -> None:
    project.publish()
    huge = random.Random(8).randbytes(900_000)
    headers = [("h", b"\xff\x00"), ("h", b""), ("n", None), ("é", b"t"), ("h", b"\xff\x00")]
    pairs = [(None, None), (b"", b""), (b"k", None), (None, b"\xff{"), (b"\x00\xff", huge)]
    bad = [Sent(n % PARTITIONS, key, value, None) for n, (key, value) in enumerate(pairs)]
    async with AIOKafkaProducer(bootstrap_servers=project.bootstrap, acks="all") as producer:
        for record in bad:
            batch = producer.create_batch()
            assert batch.append(key=record.key, value=record.value, timestamp=None, headers=headers)
            sent = await producer.send_batch(batch, TOPIC, partition=record.partition)
            record.offset = (await sent).offset
    project.worker()
    await until_done(store, bad, ())
    replayed = await Dlq(project)("replay", TOPIC, "--all")
    assert (5, {}) == (replayed["sent"], replayed["skipped"])

    back = await replays_in(project.bootstrap)
    for record in bad:
        found = back[f"{record.partition}/{record.offset}"]
        assert (record.partition, record.key, record.value) == (found.partition, found.key, found.value)
        assert headers == list(found.headers[:-1])


async def test_an_event_that_only_a_view_refused_is_shown_as_what_it_is_and_never_sent(
    project: Project, store: OnlineStore
) -> None:
    project.publish()
    dlq, long = Dlq(project), event_at(SystemClock().now(), 1)
    long.value = json.dumps(json.loads(long.value or b"") | {"shop": "s" * 1100}).encode()
    await send(project.bootstrap, [long])
    project.worker()
    await until_done(store, [long], VIEWS)

    shown = await dlq("show", TOPIC, str(long.partition), str(long.offset))
    assert ("key_too_long", "json", "s" * 1100) == (shown["reason"], shown["encoded"], shown["key"]["text"])
    assert {"key_too_long": 1} == (await dlq("replay", TOPIC, "--all"))["skipped"]
    _, out, _ = await dlq.run("replay", TOPIC, "--reason", "key_too_long")
    assert "1 skipped, key_too_long: only a view refused it" in out


async def test_people_read_tables_and_are_told_when_there_is_nothing(project: Project, store: OnlineStore) -> None:
    project.publish()
    dlq = Dlq(project)
    code, out, err = await dlq.run("list", TOPIC)
    assert (0, "") == (code, out)
    assert "no dead letters in clicks.dlq" in err
    assert 0 == (await dlq("replay", TOPIC, "--all"))["selected"]
    bad = [Sent(0, b"u1", b'{"at": "\x1b[2Jnow"}', None), Sent(0, b"u1", b"\x1b[2J", None)]
    await send(project.bootstrap, bad)
    project.worker()
    await until_done(store, bad, ())

    _, out, _ = await dlq.run("list", TOPIC, "--limit", "1")
    assert "dead letters of clicks" in out
    assert "the newest 1" in out
    code, out, _ = await dlq.run("show", TOPIC, "0", str(bad[1].offset))
    assert 0 == code
    assert "4 bytes: 1b 5b 32 4a" in out
    assert "\x1b" not in out
    _, out, _ = await dlq.run("replay", TOPIC, "--all", "--dry-run")
    assert "2 would be sent to clicks, 0 replayed before" in out
    code, _, err = await dlq.run("show", TOPIC, "0", "77")
    assert 1 == code
    assert "unknown dead letter '0/77'" in err
    code, _, err = await dlq.run("show", TOPIC, "0", str(bad[0].offset), "--raw", str(Path("worker-0.log")))
    assert 2 == code
    assert "worker-0.log cannot be written: File exists" in err
