"""`worker`, `serve`, `dev`: what runs until it is told to stop."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.environment import DefinitionsArgument, definitions_target, load
from featurestore.cli.output import say

if TYPE_CHECKING:
    from featurestore.cli.parts import Stack

DEV_DIRECTORY = Path(".fs")


def register(app: typer.Typer) -> None:
    app.command()(dev)
    app.command()(worker)
    app.command()(serve)


def worker(
    instance: Annotated[str, typer.Option(help="A name kept over restarts: it then resumes at once.")] = "",
) -> None:
    """Runs one stream worker until SIGTERM.

    It then finishes what it has begun. Waits for Kafka and Redis where they are not there yet, and says so.
    """
    from featurestore.cli.processes import child_environment, module_command

    load("kafka", "redis")
    argv = module_command("streams.worker", *(["--instance", instance] if instance else []))
    # In this process's place, so that a supervisor's signals reach the worker itself.
    os.execve(argv[0], argv, child_environment(os.environ))  # noqa: S606 — a fixed program


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default FS_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for a free one; default FS_PORT.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the port.", min=1)] = 1,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM; default FS_TLS_CERT.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM; default FS_TLS_KEY.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Only clients with a certificate of these may connect; default FS_TLS_CA.")
    ] = None,
) -> None:
    """Runs the read API until SIGTERM.

    On another address than this machine's own it must know its callers: see `featurestore keys new`.
    """
    from featurestore.serving.server import serve as listen
    from featurestore.telemetry import setup_logging

    settings = load("redis", host=host, port=port, tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca)
    setup_logging(settings.log)
    listen(settings, settings.host, settings.port, workers)


def dev(
    definitions: DefinitionsArgument = "",
    directory: Annotated[Path, typer.Option(help="For logs, and the lake unless FS_LAKE is set.")] = DEV_DIRECTORY,
    port: Annotated[int | None, typer.Option(help="Of the read API, 0 for a free one; default FS_PORT.")] = None,
) -> None:
    """Runs everything on this machine until Ctrl-C.

    A broker, Redis, a worker and the read API in one process group. Broker and Redis are embedded unless FS_KAFKA or
    FS_REDIS names others. The embedded ones are for development: they keep everything in memory, so each start is a
    fresh one, without the events and values of the last.
    """
    from featurestore.cli.parts import Stack
    from featurestore.config import EMBEDDED

    settings = load(port=port)
    stack = Stack(
        directory,
        definitions=definitions_target(settings, definitions),
        schemas=settings.schemas,
        kafka=os.environ.get("FS_KAFKA") or EMBEDDED,
        redis=os.environ.get("FS_REDIS") or EMBEDDED,
        lake=os.environ.get("FS_LAKE") or "",
        host=settings.host,
        port=settings.port,
        say=lambda part: say(f"starting: {part}"),
    )
    with stack:
        _say_ready(stack)
        try:
            stack.wait()
        except KeyboardInterrupt:
            say("\nstopping")


def _say_ready(stack: Stack) -> None:
    from featurestore.cli.parts import EMBEDDED_LIMITS

    say(f"\nread API   {stack.url}   (try {stack.url}/docs)")
    say(f"logs       {stack.logs}")
    say("\nfor another shell:")
    for name, value in stack.addresses.items():
        say(f"  export {name}={shlex.quote(value)}")
    catalog = stack.catalog
    if catalog is not None and catalog.sources and catalog.services:
        service = next(iter(catalog.services.values()))
        newest = service[max(service)]
        keys = {name for view in newest.views for name in catalog.views[view].keys}
        say(f"  featurestore publish {next(iter(catalog.sources))} EVENTS.jsonl")
        say(f"  featurestore lookup {newest.name} {' '.join(f'{name}=…' for name in sorted(keys))}")
    if stack.embedded_broker:
        say(f"\n{EMBEDDED_LIMITS}")
    say("\nCtrl-C stops everything")
