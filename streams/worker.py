"""`python -m streams.worker`: one stream worker, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvloop

from featurestore.allocator import keep_freed_memory
from featurestore.config import Settings, load_settings
from featurestore.errors import FeatureStoreError
from featurestore.telemetry import get_logger, metrics_served, setup_logging
from streams.app import Runtime, create_app
from streams.records import hand_out_decoded_records

_QUIET = ("aiokafka", "faust", "mode")
"""What of them matters is logged by the lanes, in words for who runs the worker."""
_AT_ONCE = 143
"""128 + SIGTERM: what a shell shows for a process that the signal ended."""

_COLLECT_AFTER = (50_000, 20, 100)
"""Objects that are new when Python looks for cycles, and how rarely it looks at old ones. Every record is an object:
with the default of 700 a sixth of the processor time goes into looking, and finds nothing."""

_SWITCH_SECONDS = 0.001
"""How long a thread that appends to the lake may keep the interpreter from the event loop, on which all the rest runs:
threads that compute beside it would spend more on handing the interpreter over than they gain."""

_log = get_logger(__name__)


def run_worker(settings: Settings, *, instance: str | None = None) -> int:
    """Runs until SIGTERM or SIGINT: finishes the running batches and returns 0. A second signal ends the process.

    Waits, and says so, for Kafka, Redis and the lake where they are not there yet. Returns an error's exit code
    where it cannot run at all, 1 after a crash.
    """
    setup_logging(settings.log)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    keep_freed_memory()
    hand_out_decoded_records()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with _metrics(settings):
            return uvloop.run(_run(settings, instance))
    except FeatureStoreError as error:
        _log.error("the worker cannot run", reason=error.message, hint=error.hint)
        return error.exit_code


@contextmanager
def _metrics(settings: Settings) -> Iterator[None]:
    """From before the parts are waited for: that is when somebody wants to know."""
    if settings.metrics_port is None:
        yield
        return
    with metrics_served(settings.metrics_host, settings.metrics_port) as port:
        _log.info("serving metrics", host=settings.metrics_host, port=port)
        yield


async def _run(settings: Settings, instance: str | None) -> int:
    runtime = Runtime(settings, instance=instance)
    stop = _on_signals()
    waiting = asyncio.create_task(runtime.wait_for_parts())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            return 0
        waiting.result()
        return await _host(runtime, stopping)
    finally:
        waiting.cancel()
        stopping.cancel()
        await runtime.close()


async def _host(runtime: Runtime, stopping: asyncio.Task[bool]) -> int:
    app = create_app(runtime)
    await app.start()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    _log.info("worker started", project=runtime.parts.settings.project, pid=os.getpid())
    crashed = asyncio.create_task(app._crashed.wait())
    try:
        await asyncio.wait([stopping, crashed], return_when=asyncio.FIRST_COMPLETED)
    finally:
        failed = crashed.done() and not stopping.done()
        crashed.cancel()
        await app.stop()
    if failed:
        _log.error("the worker crashed", exc_info=app._crash_reason)
        return 1
    _log.info("worker stopped")
    return 0


def _on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second does not wait for anything."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(_AT_ONCE)
        _log.info("stopping: the running batches are finished first", signal=signal.Signals(number).name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m streams.worker", description=run_worker.__doc__)
    parser.add_argument("--instance", help="a name that this worker keeps over restarts: it then resumes at once")
    given = parser.parse_args(arguments)
    try:
        settings = load_settings()
    except FeatureStoreError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return run_worker(settings, instance=given.instance)


if __name__ == "__main__":
    sys.exit(main())
