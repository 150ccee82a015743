"""The stack of parts that `dev` and `demo` run on, from inside a process."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.cli import http
from featurestore.cli.main import main
from featurestore.cli.parts import Stack
from featurestore.cli.streamed import StreamsError, stream_answer, stream_lines
from featurestore.errors import ConfigError, Unavailable


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["init", str(tmp_path / "shop")]) == 0
    return tmp_path / "shop"


@pytest.fixture
def stack(project: Path) -> Iterator[Stack]:
    with Stack(project / ".fs", definitions=str(project / "definitions.py")) as started:
        yield started


def _count(stack: Stack) -> Any:
    body = {"service": "customer_profile", "entities": {"customer_id": ["c-7"]}, "at": "2026-03-02T00:00:00Z"}
    answer = http.post(f"{stack.url}/v1/lookup", body)
    return answer["rows"][0]["values"][answer["features"].index("customer_orders.orders_7d")]


def _within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()


def _orders(path: Path, count: int) -> Path:
    """One customer's: all in one partition, and more bytes than the embedded broker keeps of it."""
    filler = "x" * 200
    event = {"ordered_at": "2026-03-01T09:00:00Z", "customer_id": "c-7", "amount": 1.0, "category": filler}
    path.write_text((json.dumps(event) + "\n") * count)
    return path


def test_a_worker_killed_while_much_is_published_changes_nothing(stack: Stack, project: Path) -> None:
    """30,000 events are 9 MB in one partition: without its waiting, `publish` would push the first ones out."""
    file = _orders(project / "many.jsonl", 30_000)
    killed = 0
    for said in stream_lines("publish", "orders", str(file), environment=stack.environment):
        if not killed and said.get("sent", 0) >= 8_000:
            killed = stack.kill_worker()
            assert stack.start_worker() == 1

    assert killed
    assert killed != stack.pids["worker"]
    assert _within(60, lambda: _count(stack) == 30_000), _count(stack)
    time.sleep(1.5)
    assert _count(stack) == 30_000


def test_a_killed_worker_is_no_reason_to_stop_and_a_dead_one_is(stack: Stack) -> None:
    stack.kill_worker()
    stack.check()
    assert {"broker", "redis", "api"} == set(stack.pids)
    assert [1, 2] == [stack.start_worker(), stack.start_worker()]
    stack._workers[1].kill()
    with pytest.raises(Unavailable, match="the worker-2 was ended by signal 9"):
        stack.wait()


def test_signals_are_as_before_when_it_has_stopped(project: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    stack = Stack(project / ".fs", definitions=str(project / "definitions.py"))
    with stack:
        pass
    stack.stop()

    assert before == [signal.getsignal(number) for number in numbers]
    assert stack.pids == {}


def test_topics_are_described(stack: Stack, project: Path) -> None:
    answer = stream_answer("topics", environment=stack.environment)

    assert answer["embedded"] is True
    assert {("shop.orders", "source"), ("shop.orders.dlq", "dead_letters")} == {
        (topic["topic"], topic["role"]) for topic in answer["topics"]
    }


def test_an_error_of_the_other_process_keeps_its_exit_code(stack: Stack) -> None:
    with pytest.raises(StreamsError) as caught:
        stream_answer("publish", "order", "x.jsonl", environment=stack.environment)

    assert (caught.value.code, caught.value.exit_code) == ("not_found", 1)
    assert "did you mean 'orders'?" in caught.value.message


def test_it_is_for_the_main_thread(project: Path) -> None:
    caught: list[Exception] = []

    def start() -> None:
        try:
            Stack(project / ".fs").start()
        except ConfigError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

    assert "main thread" in str(caught[0])
