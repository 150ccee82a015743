"""Where the tasks of an export run: in this process, in others of this machine, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from featurestore.errors import FeatureStoreError, Unavailable, UsageError

Task = tuple[Any, ...]
Finished = Callable[[Any], None]

_CONNECT_SECONDS = 10
_WAITING_TASKS = 4
"""For each process, beside the one that runs."""


class Runner:
    """Runs tasks, in any order; what they return is handed over as it comes."""

    def run(self, function: Callable[..., Any], tasks: Sequence[Task], finished: Finished) -> None:
        for task in tasks:
            finished(function(*task))


class PoolRunner(Runner):
    def __init__(self, pool: Executor, lost: str) -> None:
        """`lost` says what a process that ended in the middle of a task means to the one who reads it."""
        self._pool, self._lost = pool, lost

    def run(self, function: Callable[..., Any], tasks: Sequence[Task], finished: Finished) -> None:
        futures = [self._pool.submit(function, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                finished(future.result())
        except BrokenProcessPool as error:
            raise FeatureStoreError(self._lost, hint="run the same export again: it goes on from there") from error
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def runner(executor: str | Executor | None, processes: int) -> Iterator[Runner]:
    """`executor`: a `dask://host:port`, anything that is a `concurrent.futures.Executor`, or None for local processes
    (none but this where one is enough)."""
    if isinstance(executor, Executor):
        yield PoolRunner(executor, "a process of the executor ended in the middle of the export")
    elif executor:
        with _dask(executor) as pool:
            yield PoolRunner(pool, "a worker of the cluster ended in the middle of the export")
    elif processes < 2:
        yield Runner()
    else:
        # Not forked: Arrow's and the object store's threads do not survive that.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            lost = "a process of the export was ended from outside, perhaps since memory was short: set --memory lower"
            yield PoolRunner(pool, lost)


@contextmanager
def _dask(url: str) -> Iterator[Executor]:
    parts = urlsplit(url)
    if parts.scheme != "dask" or not parts.hostname or not parts.port:
        raise UsageError(f"{url} is no executor", hint="write it as dask://host:port", field="executor")
    try:
        from distributed import Client  # noqa: PLC0415 — an extra
    except ImportError:
        hint = "pip install 'featurestore[dask]'"
        raise UsageError("dask:// needs the package `distributed`", hint=hint, field="executor") from None
    try:
        client: Any = Client(f"tcp://{parts.hostname}:{parts.port}", timeout=_CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError) as error:
        raise Unavailable("dask", f"no scheduler answers at {url}", hint="is the address right?") from error
    try:
        # The scheduler gives a task whose worker died to another one.
        yield client.get_executor(pure=False)
    finally:
        client.close()
