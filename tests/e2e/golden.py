"""Random streams through a real broker, real workers, Redis, the lake and the HTTP API, for the golden law."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaException, Message, Producer
from confluent_kafka.cimpl import TopicPartition

from featurestore.cli.processes import Child, child_environment, module_command
from featurestore.clock import SystemClock, format_instant
from featurestore.definitions.compiled import CompiledView
from featurestore.definitions.load import load_definitions
from featurestore.online.fences import Fence, IntakeMark
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from streams.topics import dead_letter_topic, shuffle_topic
from tests.e2e.golden_streams import Case, Key, Record
from tests.e2e.golden_views import SCHEMA, SourceOf, definitions
from tests.parts.redis import RedisServer

QUIET_SECONDS = 90.0
_PASSING = {"stale", "late_pipeline", "unavailable", "deadline"}
_LISTENS = re.compile(r"read API on (http://\S+)")

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """Of one lookup: per row and feature (`view.feature`) the value as JSON has it, and its status."""

    at: str
    source: str
    values: list[dict[str, Any]]
    statuses: list[dict[str, str]]


@dataclass(frozen=True)
class Letter:
    partition: int
    offset: int
    reason: str
    key: bytes | None
    value: bytes | None


class Golden:
    """A store of its own on a broker that others may use too. `stop` ends every process."""

    def __init__(self, bootstrap: str, directory: Path, cases: Sequence[Case], **environment: str) -> None:
        self.cases = cases
        self.lake = str(directory / "lake")
        self._directory, self._bootstrap = directory, bootstrap
        self._logs = 0
        self._redis = RedisServer().start()
        self._runner = asyncio.Runner()
        self.project = f"g{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self._environment = {
            **os.environ, "FS_KAFKA": bootstrap, "FS_REDIS": self._redis.url, "FS_LAKE": self.lake,
            "FS_PROJECT": self.project, "FS_LOG": "json", "FS_LAKE_INTERVAL_SECONDS": "0.5", **environment,
        }  # fmt: skip
        self._store = self._runner.run(self._connect())
        self._workers: dict[str, Child] = {}
        self._api: Child | None = None
        self._client = httpx.Client(timeout=40)
        # Each record must keep its place in its partition, also where one has to be sent again.
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "linger.ms": 2, "enable.idempotence": True, "log_level": 0}
        )
        self._watcher = Consumer(self._consuming("watcher"))

    async def _connect(self) -> OnlineStore:
        return OnlineStore.connect(self._redis.url, project=self.project)

    def _consuming(self, name: str) -> dict[str, Any]:
        group = f"{self.project}-{name}"
        return {"bootstrap.servers": self._bootstrap, "group.id": group, "enable.auto.commit": False, "log_level": 0}

    def start(self) -> Self:
        """Publishes the definitions and starts the API; workers are started one by one."""
        schemas = self._directory / "schemas" / "events"
        schemas.mkdir(parents=True)
        (schemas / "v1.avsc").write_text(json.dumps(SCHEMA))
        file = self._directory / "definitions.py"
        file.write_text(definitions(SourceOf(c.name, c.topic, c.lateness) for c in self.cases))
        self.catalog = apply(Registry(self.lake), load_definitions(str(file)), now=SystemClock().now())
        self._api = self._child("api", *module_command("featurestore.cli", "serve", "--port", "0"))
        return self

    def stop(self) -> None:
        for child in (*self._workers.values(), *([self._api] if self._api else [])):
            child.kill()
        self._client.close()
        self._watcher.close()
        self._runner.run(self._store.close())
        self._runner.close()
        self._redis.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # Workers

    def start_worker(self, name: str) -> None:
        """Returns at once. A worker that comes back under its name takes its partitions over."""
        self._workers[name] = self._child(f"worker-{name}", *module_command("streams.worker", "--instance", name))

    def kill_worker(self, name: str) -> None:
        """SIGKILL."""
        self._workers.pop(name).kill()

    def restart_worker(self, name: str) -> None:
        self.kill_worker(name)
        self.start_worker(name)

    def drain_worker(self, name: str) -> int:
        """SIGTERM; the exit code."""
        child = self._workers.pop(name)
        child.terminate()
        assert child.wait(30), child.tail()
        code = child.returncode
        assert code is not None
        return code

    def _child(self, name: str, *argv: str) -> Child:
        self._logs += 1
        return Child(name, argv, self._environment, self._directory / f"{name}-{self._logs}.log")

    # Streams

    def publish(self, parts: Iterable[Sequence[tuple[Case, Record]]], pause: Callable[[], None] = lambda: None) -> None:
        """Sends part after part, with a pause behind each; afterwards every record knows its offset."""
        for part in parts:
            for case, record in part:
                self._send(case, record)
            left = self._producer.flush(60)
            assert left == 0, f"{left} records were not acknowledged"
            pause()

    def _send(self, case: Case, record: Record) -> None:
        def delivered(error: Any, message: Message) -> None:
            if error is not None:
                raise KafkaException(error)
            offset = message.offset()
            assert offset is not None
            record.arrived(offset)

        self._producer.produce(
            case.topic, value=record.value, key=record.key, partition=record.partition, on_delivery=delivered
        )
        self._producer.poll(0)

    def letters(self, case: Case) -> list[Letter]:
        """Everything in the dead-letter topic."""
        topic = dead_letter_topic(case.topic)
        ends = {p: self._end(topic, p) for p in range(case.partitions)}
        consumer = Consumer(self._consuming("letters"))
        try:
            consumer.assign([TopicPartition(topic, p, 0) for p in ends])
            found: list[Letter] = []
            while len(found) < sum(ends.values()):
                message = consumer.poll(10)
                assert message is not None, f"{len(found)} of {ends}"
                assert message.error() is None, message.error()
                found.append(_letter(message))
            return found
        finally:
            consumer.close()

    def _end(self, topic: str, partition: int) -> int:
        return int(self._watcher.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])

    # Progress

    def views(self, case: Case) -> list[CompiledView]:
        return [view for view in self.catalog.views.values() if view.source.name == case.name]

    def fences(self, view: CompiledView) -> dict[int, Fence]:
        return self._runner.run(self._store.fences(view.id))

    def marks(self, case: Case) -> dict[int, IntakeMark]:
        return self._runner.run(self._store.intake_marks(case.name))

    def applied(self) -> int:
        """Rows that any view has taken so far, duplicates included."""
        fences = [f for case in self.cases for view in self.views(case) for f in self.fences(view).values()]
        return sum(counts[0] for fence in fences for counts in fence.ledger.values())

    def until_beating(self, since: int) -> None:
        """Until workers vouch for every partition of every source, all of them after the instant `since`."""

        def beating() -> bool:
            beats = [self._runner.run(self._store.beats(f"intake:{case.name}")) for case in self.cases]
            return all(
                len(of_case) == case.partitions and all(beat.at > since for beat in of_case.values())
                for case, of_case in zip(self.cases, beats, strict=True)
            )

        self._until(beating, "workers do not beat")

    def until_applied(self, more_than: int) -> None:
        self._until(lambda: self.applied() > more_than, "nothing is applied", every=0.02)

    def settle(self) -> None:
        """Until every mark and fence is at the end of its log, and the API says that all is fresh."""
        self._until(lambda: not self._behind(), "it does not settle", every=0.2)
        for case in self.cases:
            self.lookup(case, case.rows()[:1], None)

    def _until(self, happened: Callable[[], bool], what: str, every: float = 0.1) -> None:
        deadline = time.monotonic() + QUIET_SECONDS
        while not happened():
            for child in self._workers.values():
                child.require_alive()
            assert time.monotonic() < deadline, f"{what}: {self._behind()}\n{self._tails()}"
            time.sleep(every)

    def _behind(self) -> list[str]:
        found: list[str] = []
        for case in self.cases:
            ends = _ends(case.records)
            lanes = {view.lane for view in self.views(case) if not view.aligned}
            for p, mark in ({p: self.marks(case).get(p) for p in ends}).items():
                if mark is None or mark.offset < ends[p] - 1 or any(mark.lanes[lane] < ends[p] - 1 for lane in lanes):
                    found.append(f"intake of {case.name}/{p}: {mark}, the end is {ends[p]}")
            for view in self.views(case) if not found else ():
                found += self._folds_behind(case, view, ends)
        return found

    def _folds_behind(self, case: Case, view: CompiledView, ends: Mapping[int, int]) -> list[str]:
        topic = shuffle_topic(self.project, view)
        wanted = dict(ends) if view.aligned else {p: self._end(topic, p) for p in range(case.partitions)}
        fences = self.fences(view)
        at = {p: fences[p].offset if p in fences else -1 for p in wanted}
        return [f"{view.id}/{p}: {at[p]}, the end is {end}" for p, end in wanted.items() if at[p] != end - 1]

    def _tails(self) -> str:
        return "\n".join(f"{child.name}:\n{child.tail(8)}" for child in self._workers.values())

    # Reading

    @property
    def url(self) -> str:
        api = self._api
        assert api is not None
        api.wait_until(lambda: _LISTENS.search(api.text()) is not None, 30)
        found = _LISTENS.search(api.text())
        assert found
        return found[1]

    def lookup(self, case: Case, rows: Sequence[Key], at: int | None, shape: str = "columns") -> Answer:
        """Of the case's service, once no value is stale or behind. AssertionError where it is refused."""
        body = {
            "service": case.name,
            "entities": {name: [row[name] for row in rows] for name in ("user", "shop", "flag")},
            "at": None if at is None else format_instant(at),
        }
        deadline = time.monotonic() + 30
        while True:
            answer = self._ask(body, rows, shape)
            passing = answer is None or any(s in _PASSING for row in answer.statuses for s in row.values())
            if answer is not None and not passing:
                return answer
            assert time.monotonic() < deadline, f"still not fresh: {answer and answer.statuses[0]}\n{self._tails()}"
            time.sleep(0.2)

    def _ask(self, body: Mapping[str, Any], rows: Sequence[Key], shape: str) -> Answer | None:
        """None while the API is not ready."""
        try:
            response = self._client.post(f"{self.url}/v1/lookup?shape={shape}", json=body)
        except httpx.ConnectError:
            return None
        if response.status_code == 503:
            return None
        assert response.status_code == 200, response.text
        said = response.json()
        assert len(said["features"]) == sum(len(view.order) for view in self.catalog.views.values()) // len(self.cases)
        values, statuses = SHAPES[shape](said, rows)
        assert len(values) == len(statuses) == len(rows)
        return Answer(said["at"], said["source"], values, statuses)

    def export(self, case: Case, rows: Sequence[Key], at: Sequence[int]) -> pa.Table:
        """The training set of the case's service, with statuses, for row i at instant i."""
        spine, out = self._directory / f"{case.name}.parquet", self._directory / f"{case.name}-export"
        kinds = {"user": pa.string(), "shop": pa.int64(), "flag": pa.bool_()}
        data = {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
        pq.write_table(pa.table({**data, "event_time": pa.array(at, pa.timestamp("us", "UTC"))}), spine)
        command = module_command(
            "featurestore.cli", "export", case.name, "--spine", str(spine), "--out", str(out), "--status"
        )
        done = subprocess.run(
            command, env=child_environment(self._environment), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return pa.concat_tables([pq.read_table(file) for file in sorted(out.glob("*.parquet"))])


Told = tuple[list[dict[str, Any]], list[dict[str, str]]]


def _columns(said: Any, rows: Sequence[Key]) -> Told:
    names = said["features"]
    columns = [c["values"] for c in said["columns"]]
    statuses = [_spread(c["status"], len(rows)) for c in said["columns"]]
    return (
        [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
        [dict(zip(names, row, strict=True)) for row in zip(*statuses, strict=True)],
    )


def _lean(said: Any, rows: Sequence[Key]) -> Told:
    names = said["features"]
    statuses = [_spread(row["status"], len(names)) for row in said["rows"]]
    return (
        [dict(zip(names, row["values"], strict=True)) for row in said["rows"]],
        [dict(zip(names, row, strict=True)) for row in statuses],
    )


def _full(said: Any, rows: Sequence[Key]) -> Told:
    assert [row["entity"] for row in said["rows"]] == list(rows)
    features = [row["features"] for row in said["rows"]]
    assert all(list(row) == said["features"] for row in features)
    return (
        [{name: told["value"] for name, told in row.items()} for row in features],
        [{name: told["status"] for name, told in row.items()} for row in features],
    )


SHAPES: Mapping[str, Callable[[Any, Sequence[Key]], Told]] = {"columns": _columns, "lean": _lean, "full": _full}


def _spread(status: Any, count: int) -> list[str]:
    statuses: list[str] = [status] * count if isinstance(status, str) else status
    return statuses


def _letter(message: Message) -> Letter:
    headers = {name: value for name, value in dict(message.headers() or []).items() if isinstance(value, bytes)}
    return Letter(
        int(headers["fs.partition"]),
        int(headers["fs.offset"]),
        headers["fs.reason"].decode(),
        message.key(),
        message.value(),
    )


def _ends(records: Iterable[Record]) -> dict[int, int]:
    """Partition → the offset after the last record that was sent."""
    ends: dict[int, int] = {}
    for record in records:
        if record.offset >= 0:
            ends[record.partition] = max(record.offset + 1, ends.get(record.partition, 0))
    return ends


def shuffled(cases: Sequence[Case], rng: random.Random) -> list[tuple[Case, Record]]:
    """The records of all cases: each partition in its order, partitions and cases in any order."""
    queues = [
        [(case, record) for record in case.records if record.partition == p]
        for case in cases
        for p in range(case.partitions)
    ]
    turns = [i for i, queue in enumerate(queues) for _ in queue]
    rng.shuffle(turns)
    following = [iter(queue) for queue in queues]
    return [next(following[i]) for i in turns]


def cut(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    size = -(-len(items) // parts)
    return [items[start : start + size] for start in range(0, len(items), size)]
