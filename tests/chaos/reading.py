"""Somebody who asks the read API all the time: no answer may be wrong and look right.

The answers are kept and judged afterwards, against what had been published when they were given. `n_all` of a shop
only grows, and `own` of an entity is its own key, so that every value tells whether it is whole and whose it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import sys
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.chaos.load import SHOPS
from tests.chaos.run import FRESHNESS_SECONDS, Run
from tests.parts.process import ServerProcess, free_ports

EVERY_SECONDS = 0.05
ASKED = 4
"""Shops, and as many users, of one request."""
NOTICE_SECONDS = 9.0
"""Until a silent worker is noticed: 5 s of grace, a heartbeat, a poll, and what a shared machine adds."""
LOSS_SECONDS = 1.5
"""Until lost writes of Redis are noticed. Answers meanwhile are told apart, and may be behind."""
_SLOW_SECONDS = 10.0
_ROOT = Path(__file__).resolve().parents[2]
_SERVING = _ROOT / "docs" / "serving.md"
_STATUS_TABLE = re.compile("^## What each status means$", re.MULTILINE)
_GOOD = {"ok", "default"}
_CLAIMS = _GOOD | {"not_found"}
"""Statuses that vouch for what is answered."""

Published = tuple[float, list[tuple[int, int]]]
"""When, and of each load how many records were given to the producer and how many it has acknowledged."""


class Api(ServerProcess):
    """`featurestore serve`, on the Redis and the lake of a run."""

    name = "api"

    def __init__(self, run: Run) -> None:
        super().__init__()
        [self._port] = free_ports(1)
        project = run.project
        self._settings = {
            "PYTHONPATH": str(_ROOT),
            "FS_PROJECT": run.id,
            "FS_REDIS": project.redis,
            "FS_LAKE": project.lake,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def argv(self) -> list[str]:
        # `env` becomes the server itself, so that signals reach it.
        settings = [f"{name}={value}" for name, value in self._settings.items()]
        return ["env", *settings, sys.executable, "-m", "featurestore.cli", "serve", "--port", str(self._port)]

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/healthz", timeout=1).status_code == 200
        return False


@dataclass(frozen=True, slots=True)
class Answer:
    asked_at: float
    came_at: float
    code: int
    entities: Sequence[tuple[str, str]]
    """(user, shop) of each row that was asked for."""
    body: Any


@dataclass
class Reading:
    """What was asked and answered in a run, and how much had been published meanwhile."""

    run: Run
    rng: random.Random
    api: Api | None = None
    """None until the run has a worker: only then it is known how Redis is reached."""
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Requests that got no answer at all."""
    published: list[Published] = field(default_factory=list)

    async def go_on(self) -> None:
        """Asks until it is cancelled."""
        await self.run.until(self._has_workers, "the run has a worker")
        self.api = Api(self.run)
        self.api.start()  # in this thread, whose end would be that of the process
        async with self._client() as client:
            await self.run.until(lambda: _is_ready(client), "the API is ready")
            while True:
                self.published.append((time.monotonic(), self.run.progress()))
                await self.ask(client)
                await asyncio.sleep(EVERY_SECONDS)

    async def ask(self, client: httpx.AsyncClient) -> Answer | None:
        entities = [(f"u{self.rng.randrange(40)}", f"s{self.rng.randrange(SHOPS)}") for _ in range(ASKED)]
        users, shops = ([pair[side] for pair in entities] for side in (0, 1))
        asked_at = time.monotonic()
        try:
            response = await client.post(
                "/v1/lookup?shape=full", json={"service": "clicks", "entities": {"user": users, "shop": shops}}
            )
        except httpx.HTTPError as error:
            self.failures.append(f"{type(error).__name__} after {time.monotonic() - asked_at:.1f} s")
            self.run.note("no answer", error=repr(error))
            return None
        answer = Answer(asked_at, time.monotonic(), response.status_code, entities, response.json())
        if not self.answers or _statuses(self.answers[-1]) != _statuses(answer):
            self.run.note("answers", code=answer.code, statuses=dict(_statuses(answer)))
        self.answers.append(answer)
        return answer

    async def _has_workers(self) -> bool:
        return bool(self.run.workers)

    async def all_good(self) -> bool:
        """Whether an answer of now is one to predict from."""
        async with self._client() as client:
            answer = await self.ask(client)
        return answer is not None and set(_statuses(answer)) <= _CLAIMS

    def second(self, answer: Answer) -> str:
        """Since the reader began."""
        return f"{answer.asked_at - self.published[0][0]:.2f}"

    def _client(self) -> httpx.AsyncClient:
        assert self.api is not None, "the API was never started"
        return httpx.AsyncClient(base_url=self.api.url, timeout=_SLOW_SECONDS)


async def _is_ready(client: httpx.AsyncClient) -> bool:
    """The registry is read; whether Redis is there is what the answers are for."""
    checks = (await client.get("/readyz")).json()["checks"]
    return any(check["name"] == "registry" and check["ok"] for check in checks)


def _statuses(answer: Answer) -> Counter[str]:
    if answer.code != 200:
        return Counter({f"http {answer.code}": 1})
    return Counter(value["status"] for row in answer.body["rows"] for value in row["features"].values())


@contextlib.asynccontextmanager
async def reading(run: Run) -> AsyncIterator[Reading]:
    """Asks while the block runs."""
    found = Reading(run, random.Random(f"{run.row}/{run.seed}/reader"))
    task = asyncio.create_task(found.go_on())
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if found.api is not None:
            found.api.stop()


async def check_answers(run: Run, read: Reading) -> None:
    """AssertionError where an answer was wrong, or where they do not become good again after the last fault."""
    assert len(read.answers) > 10, f"only {len(read.answers)} answers; {read.failures[:3]}"
    assert not read.failures, f"{len(read.failures)} requests had no answer: {read.failures[:3]}"
    if not run.stopped:
        await run.until(read.all_good, "answers are good again")
    last = (time.monotonic(), run.progress())
    faults = [*_unexpected(read), *_foreign(read), *_too_much(read, last), *_gone_back(read), *_too_old(read)]
    run.note("answers judged", count=len(read.answers), faults=len(faults))
    assert not faults, f"{len(faults)} answers were wrong: {faults[:3]}"


def _unexpected(read: Reading) -> Iterator[str]:
    """Codes and statuses that a client is not told to expect."""
    documented = set(re.findall(r"^\| `(\w+)` \|", _STATUS_TABLE.split(_SERVING.read_text())[1], re.MULTILINE))
    for answer in read.answers:
        unknown = set(_statuses(answer)) - documented
        if unknown:
            yield f"{sorted(unknown)}: {str(answer.body)[:300]}"


def _values(answer: Answer) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(user, shop, features) of each row."""
    if answer.code == 200:
        for (user, shop), row in zip(answer.entities, answer.body["rows"], strict=True):
            assert row["entity"] == {"user": user, "shop": shop}, f"{row['entity']} is answered for {user}, {shop}"
            yield user, shop, row["features"]


def _foreign(read: Reading) -> Iterator[str]:
    """Values of another entity than was asked for."""
    for answer in read.answers:
        for user, shop, features in _values(answer):
            for asked, name in ((user, "user_clicks.own"), (shop, "shop_clicks.own")):
                said = features[name]
                if said["value"] != asked and (said["value"] is not None or said["status"] in _GOOD):
                    yield f"{asked} is answered with {said}"


def _counts(read: Reading) -> Iterator[tuple[int, Answer, int, dict[str, Any]]]:
    """(place of the answer, answer, number of the shop, its lifetime count)."""
    for place, answer in enumerate(read.answers):
        for _, shop, features in _values(answer):
            yield place, answer, int(shop[1:]), features["shop_clicks.n_all"]


def _too_much(read: Reading, last: Published) -> Iterator[str]:
    """Counts above what had been handed to the producer when the answer came: something was counted twice."""
    instants = [at for at, _ in read.published]
    for _, answer, shop, said in _counts(read):
        place = bisect_left(instants, answer.came_at)
        _, loads = read.published[place] if place < len(instants) else last
        most = _events_of_shop(read.run, shop, [given for given, _ in loads])
        if said["value"] is not None and said["value"] > most:
            yield f"s{shop} has {said} of {most} events"


def _gone_back(read: Reading) -> Iterator[str]:
    """Good answers below an earlier good one, but for the moment until a loss is noticed."""
    highest: dict[int, int] = {}
    for _, answer, shop, said in _counts(read):
        if said["status"] not in _CLAIMS or _is_unnoticed_loss(read.run, answer):
            continue
        if said["value"] < highest.get(shop, 0):
            yield f"s{shop} was {highest[shop]} and is {said} at {read.second(answer)} s"
        highest[shop] = max(highest.get(shop, 0), said["value"])


def _too_old(read: Reading) -> Iterator[str]:
    """Good answers that lack events which were acknowledged longer ago than anything may be without a label."""
    certain = [(at, [given for given, _ in loads]) for at, loads in read.published if all(g == a for g, a in loads)]
    instants = [at for at, _ in certain]
    for _, answer, shop, said in _counts(read):
        place = bisect_right(instants, answer.asked_at - FRESHNESS_SECONDS - NOTICE_SECONDS)
        if not place or said["status"] not in _CLAIMS or _is_unnoticed_loss(read.run, answer):
            continue
        least = _events_of_shop(read.run, shop, certain[place - 1][1])
        if said["value"] < least:
            yield f"s{shop} is {said} at {read.second(answer)} s, and {least} events were there long ago"


def _events_of_shop(run: Run, shop: int, given: Sequence[int]) -> int:
    """How many of the first `given` records of each load are events of the shop."""
    return sum(
        int(np.count_nonzero((load.shop[:n] == shop) & (load.bad[:n] == 0)))
        for load, n in zip(run.loads, given, strict=False)
    )


def _is_unnoticed_loss(run: Run, answer: Answer) -> bool:
    return any(began <= answer.came_at and answer.asked_at <= ended + LOSS_SECONDS for began, ended in run.losses)
