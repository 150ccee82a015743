"""`compact`: upkeep of the lake's tables."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.environment import load
from featurestore.cli.output import FormOption, Output, print_table, say, talk_console
from featurestore.errors import NotFound

if TYPE_CHECKING:
    from rich.console import Console

RETENTION_HOURS = 168


def register(app: typer.Typer) -> None:
    app.command()(compact)


def compact(
    context: typer.Context,
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE…]", help="As events/departures; default: all.")
    ] = None,
    retention_hours: Annotated[
        int, typer.Option(min=24, metavar="H", help="How long files that were replaced are kept, for older versions.")
    ] = RETENTION_HOURS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be merged and swept.")] = False,
    output: FormOption = None,
) -> None:
    """Merges small files of the lake, and sweeps those that no version of the retention has.

    Workers, loads and exports may run. What is read stays the same, row by row.
    """
    from dataclasses import asdict

    from featurestore.clock import SystemClock
    from featurestore.offline.compacting import Compactor
    from featurestore.offline.lake import Lake

    settings = load()
    lake = Lake(settings.lake)
    known = lake.tables()
    for name in tables or ():
        if name not in known:
            raise NotFound("table", name, known, hint="write it as events/departures")
    started = time.monotonic()
    with talk_console().status("compacting") as status:

        def tell(said: Mapping[str, Any]) -> None:
            status.update(f"{said['table']}: merging {said['merging']} files, {said['rows']:,} rows")

        compactor = Compactor(lake, SystemClock(), tell)
        done = [compactor.run(name, retention_hours=retention_hours, dry=dry_run) for name in tables or known]
    document = {
        "dry_run": dry_run,
        "retention_hours": retention_hours,
        "seconds": round(time.monotonic() - started, 3),
        "tables": [asdict(table) for table in done],
    }
    Output(context, output).show(document, lambda out: _draw(out, document))
    if not done:
        say("the lake has no tables yet")


def _draw(out: Console, document: Mapping[str, Any]) -> None:
    rows = [
        (t["table"], t["files_before"], t["files_after"], t["merged"], t["rows"], t["swept"])
        for t in document["tables"]
    ]
    columns = ("table", ">files before", ">after", ">merged", ">rows", ">swept")
    print_table(out, columns, rows, title="what would be done" if document["dry_run"] else "")
