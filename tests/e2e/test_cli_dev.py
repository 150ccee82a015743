"""`featurestore dev` and the verbs beside it, as a person uses them: processes, exit codes, stdout and stderr."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli.processes import child_environment
from tests.parts.process import free_ports

FS = [sys.executable, "-P", "-m", "featurestore.cli"]
AT = "2026-03-01T12:00:00Z"


def _environment() -> dict[str, str]:
    return child_environment({name: value for name, value in os.environ.items() if not name.startswith("FS_")})


def fs(*arguments: str, at: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FS, *arguments], cwd=at, env={**_environment(), **(env or {})}, capture_output=True, text=True, check=False
    )


def children(pid: int) -> set[int]:
    return {int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@dataclass
class Dev:
    """A running `featurestore dev` in a project of its own."""

    process: subprocess.Popen[bytes]
    project: Path
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def exports(self) -> dict[str, str]:
        """What it tells people to paste into another shell."""
        words = [shlex.split(line)[1] for line in re.findall(r"export .*", self.said)]
        return dict(word.split("=", 1) for word in words)

    def fs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return fs(*arguments, at=self.project, env=self.exports)

    def redis_directory(self) -> Path:
        return Path(self.exports["FS_REDIS"].removeprefix("unix://").partition("?")[0]).parent


@contextlib.contextmanager
def running(project: Path) -> Iterator[Dev]:
    log = project.parent / "dev.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*FS, "dev", "--port", "0"], cwd=project, env=_environment(), stdin=subprocess.DEVNULL,
            stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
    dev = Dev(process, project, log)
    try:
        ready = within(90, lambda: "Ctrl-C stops everything" in dev.said or process.poll() is not None)
        assert ready, dev.said
        assert process.poll() is None, dev.said
        yield dev
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a path with a space."""
    directory = tmp_path_factory.mktemp("with a space") / "a shop"
    assert fs("init", str(directory), at=directory.parent).returncode == 0
    return directory


@pytest.fixture(scope="module")
def dev(project: Path) -> Iterator[Dev]:
    """With the project's four orders published and readable."""
    with running(project) as started:
        published = started.fs("publish", "orders", "orders.jsonl", "--output", "json")
        assert published.returncode == 0, published.stderr
        assert json.loads(published.stdout)["rows"] == 4
        assert within(30, lambda: _lookup(started)["customer_orders.last_category"]["status"] == "ok")
        yield started


def _lookup(dev: Dev) -> dict[str, Any]:
    ran = dev.fs("lookup", "customer_profile", "customer_id=c-1", "--at", AT, "--output", "json")
    assert ran.returncode == 0, ran.stderr
    features: dict[str, Any] = json.loads(ran.stdout)["features"]
    return features


def test_it_says_that_its_broker_is_for_development(dev: Dev) -> None:
    assert "for development" in dev.said
    assert "5 MB" in dev.said


def test_what_was_published_can_be_looked_up(dev: Dev) -> None:
    values = {name: feature["value"] for name, feature in _lookup(dev).items()}

    assert values == {
        "customer_orders.orders_1h": 1,
        "customer_orders.orders_7d": 3,
        "customer_orders.spent_7d": 35.5,
        "customer_orders.refunded_7d": 1,
        "customer_orders.refunded_share_7d": 1 / 3,
        "customer_orders.last_category": "garden",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("customer_profil", "customer_id=c-1"), 1, "did you mean 'customer_profile'?"),
        (("customer_profile", "customer=c-1"), 2, "customer_id"),
        (("customer_profile", "customer_id=c-1", "--at", "yesterday"), 2, "RFC 3339"),
    ],
)
def test_a_lookup_that_cannot_be(dev: Dev, arguments: tuple[str, ...], code: int, said: str) -> None:
    ran = dev.fs("lookup", *arguments)

    assert ran.returncode == code
    assert said in ran.stderr
    assert ran.stdout == ""


def test_status_accounts_for_every_event(dev: Dev) -> None:
    document = json.loads(dev.fs("status", "--output", "json").stdout)
    [source], [view] = document["sources"], document["views"]

    assert sum(p["ledger"]["consumed"] for p in source["partitions"]) == 4
    assert sum(p["lag"] for p in source["partitions"] + view["partitions"]) == 0
    assert sum(p["applied"] for p in view["ledger"]) == 4
    assert {"ok"} == {p["status"] for p in view["partitions"]}
    for row in view["ledger"]:
        parts = ("applied", "duplicate", "late", "dead_lettered", "filtered")
        assert row["consumed"] == sum(row[name] for name in parts)


def test_status_is_a_table_too(dev: Dev) -> None:
    ran = dev.fs("status")

    assert ran.returncode == 0
    assert "source orders (topic shop.orders)" in ran.stdout
    assert "view customer_orders@1 (fresh within 30 s)" in ran.stdout


def test_doctor_finds_nothing_to_repair_and_knows_the_embedded_broker(dev: Dev) -> None:
    ran = dev.fs("doctor")

    assert ran.returncode == 0, ran.stdout
    assert "is an embedded broker" in ran.stdout
    assert "nothing to repair" in ran.stderr


def test_an_export_has_the_values_of_the_lookup(dev: Dev) -> None:
    table = pa.table({"customer_id": ["c-1", None], "event_time": [AT, AT], "label": [1, 0]})
    pq.write_table(table, dev.project / "spine.parquet")
    ran = dev.fs("export", "customer_profile", "--spine", "spine.parquet", "--out", "training", "--output", "json")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    rows = pq.read_table(dev.project / "training" / document["files"][0]["name"]).to_pylist()

    assert [1, 0] == [row["label"] for row in rows]
    assert {name: feature["value"] for name, feature in _lookup(dev).items()} == {
        name: rows[0][name] for name in document["columns"]
    }


def test_a_second_one_in_the_same_directory_is_refused(dev: Dev) -> None:
    ran = fs("dev", "--port", "0", at=dev.project)

    assert ran.returncode == 2
    assert "is in use" in ran.stderr
    assert dev.process.poll() is None


def test_a_worker_that_dies_ends_it_with_the_workers_last_words(project: Path) -> None:
    shop = project.parent / "worker dies"
    assert fs("init", str(shop), at=project.parent).returncode == 0
    with running(shop) as dev:
        parts = children(dev.process.pid)
        worker = next(p for p in parts if b"streams.worker" in Path(f"/proc/{p}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)

        assert dev.process.wait(60) == 1
        assert "the worker was ended by signal 9" in dev.said
        assert within(5, lambda: all(gone(pid) for pid in parts))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_of_it(tmp_path: Path, number: signal.Signals, code: int) -> None:
    shop = tmp_path / "shop"
    assert fs("init", str(shop), at=tmp_path).returncode == 0
    with running(shop) as dev:
        parts, redis = children(dev.process.pid), dev.redis_directory()
        assert len(parts) == 4
        assert redis.is_dir()
        dev.process.send_signal(number)

        assert dev.process.wait(60) == code
        assert within(5, lambda: all(gone(pid) for pid in parts))
        assert redis.exists() is (number is signal.SIGKILL)  # nobody is left to remove it
        shutil.rmtree(redis, ignore_errors=True)


def test_each_start_is_a_fresh_one_so_that_definitions_can_be_tried(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    assert fs("init", str(shop), at=tmp_path).returncode == 0
    with running(shop) as dev:
        assert dev.fs("publish", "orders", "orders.jsonl").returncode == 0
        # Stored, so that the next broker's offsets would contradict the lake.
        assert within(30, lambda: any((shop / ".fs" / "lake" / "events").rglob("*.parquet")))
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(60) == 0
    definitions = shop / "definitions.py"
    definitions.write_text(
        definitions.read_text().replace('orders_1h = agg.count(window="1h")', "orders_1h = agg.count()")
    )
    with running(shop) as dev:
        assert dev.fs("publish", "orders", "orders.jsonl").returncode == 0

        assert within(30, lambda: _lookup(dev)["customer_orders.orders_1h"]["value"] == 3)


def test_a_port_that_is_taken_is_said_with_the_apis_own_words(project: Path, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    assert fs("init", str(shop), at=tmp_path).returncode == 0
    with running(shop) as dev:
        taken = dev.exports["FS_PORT"]
        ran = fs("dev", "--directory", "other", "--port", taken, at=shop)

        assert ran.returncode == 1
        assert f"cannot listen on 127.0.0.1:{taken}" in ran.stderr
        assert str(shop / "other" / "logs" / "api.log") in ran.stderr


def test_definitions_with_faults_start_nothing(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    assert fs("init", str(shop), at=tmp_path).returncode == 0
    (shop / "definitions.py").write_text("import nothing_of_that_name")
    ran = fs("dev", "--port", "0", at=shop)

    assert ran.returncode == 2
    assert "nothing_of_that_name" in ran.stderr


def test_a_lake_of_another_broker_is_refused(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    assert fs("init", str(shop), at=tmp_path).returncode == 0
    with running(shop) as dev:
        assert dev.fs("publish", "orders", "orders.jsonl").returncode == 0
        assert within(30, lambda: any((shop / ".fs" / "lake" / "events").rglob("*.parquet")))
    (shop / ".fs" / "lake").rename(shop / "kept")
    ran = fs("dev", "--port", "0", at=shop, env={"FS_LAKE": "kept"})

    assert ran.returncode == 2
    assert "offsets of another broker" in ran.stderr
    assert any((shop / "kept" / "events").rglob("*.parquet"))


def test_a_directory_that_holds_other_things_is_never_emptied(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    assert fs("init", str(shop), at=tmp_path).returncode == 0
    (shop / ".fs" / "lake").mkdir(parents=True)
    (shop / ".fs" / "lake" / "thesis.txt").write_text("mine")
    ran = fs("dev", "--port", "0", at=shop)

    assert ran.returncode == 2
    assert "thesis.txt" in ran.stderr
    assert (shop / ".fs" / "lake" / "thesis.txt").read_text() == "mine"


def test_serve_and_worker_wait_for_redis_and_kafka_and_end_in_order(project: Path, tmp_path: Path) -> None:
    kafka, redis = free_ports(2)
    env = {"FS_KAFKA": f"127.0.0.1:{kafka}", "FS_REDIS": f"redis://127.0.0.1:{redis}/0", "FS_LAKE": str(tmp_path)}
    for verb, words in (("worker", "waiting for kafka"), ("serve", "read API on")):
        log = tmp_path / f"{verb}.log"
        with log.open("wb") as said:
            arguments = ["--port", "0"] if verb == "serve" else []
            process = subprocess.Popen(
                [*FS, verb, *arguments], env={**_environment(), **env}, stdout=said, stderr=said, cwd=project
            )
        try:
            assert within(40, lambda log=log, words=words: words in log.read_text()), log.read_text()  # type: ignore[misc]
            assert process.poll() is None
            if verb == "serve":  # its port is open before its handlers are there
                assert within(40, lambda log=log: "startup complete" in log.read_text())  # type: ignore[misc]
            process.terminate()

            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
