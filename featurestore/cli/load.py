"""`load`: history from files into the lake."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.environment import load as load_environment
from featurestore.cli.output import FormOption, Output, print_table, say, talk_console
from featurestore.errors import NotFound, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from featurestore.config import Settings
    from featurestore.offline.loading import LoadedFile, Terms
    from featurestore.registry.catalog import Catalog


def register(app: typer.Typer) -> None:
    app.command()(load)


def load(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A published source, as departures.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Parquet, with the contract's fields.")],
    before: Annotated[
        str, typer.Option(metavar="INSTANT", help="Leave out events at or after it, as 2026-03-01T00:00:00Z.")
    ] = "",
    visible_time: Annotated[
        str, typer.Option(metavar="COLUMN", help="When each event became known; default: when it is loaded.")
    ] = "",
    rejects: Annotated[Path, typer.Option(metavar="DIR", help="Where rows that are refused are written.")] = Path(),
    output: FormOption = None,
) -> None:
    """Loads history into the lake, for training sets and backfills.

    Each file is loaded once, whatever its name, and as a whole or not at all. Rows that break the contract are written
    to a file of their own, with the reason.
    """
    from featurestore.offline.loading import Terms
    from featurestore.registry.log import Registry
    from featurestore.telemetry import this_process

    settings = load_environment()
    catalog = Registry(settings.lake).head()
    terms = Terms(_instant(before), visible_time, rejects, settings.stop_share, this_process())
    started = time.monotonic()
    found = _load_all(settings, catalog, source, files, terms)
    document = _document(source, found, time.monotonic() - started)
    document["incomplete"] = _incomplete(catalog, source, found)
    Output(context, output).show(document, lambda out: _draw(out, document))
    for file in found:
        if file.rejected:
            say(f"{file.file}: {file.rejected:,} rows are refused; {file.rejects} has them, with reasons")
    if document["incomplete"]:
        say(f"online values lack what was loaded; run: featurestore backfill {' '.join(document['incomplete'])}")


def _load_all(settings: Settings, catalog: Catalog, name: str, files: Sequence[Path], terms: Terms) -> list[LoadedFile]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from featurestore.clock import SystemClock
    from featurestore.offline.lake import Lake
    from featurestore.offline.loading import Loader

    source = catalog.sources.get(name)
    if source is None:
        published = ", ".join(sorted(catalog.sources))
        hint = f"published: {published}" if published else "run: featurestore apply"
        raise NotFound("source", name, catalog.sources, hint=hint)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found = []
    with Progress(*columns, console=talk_console(), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def tell(said: Mapping[str, Any]) -> None:
            progress.update(task, description=Path(said["file"]).name, completed=said["rows"], total=said["of"])

        loader = Loader(Lake(settings.lake), source, terms, SystemClock(), tell)
        for path in files:
            started = time.monotonic()
            file = loader.load(path)
            file.seconds = round(time.monotonic() - started, 3)
            found.append(file)
    return found


def _instant(text: str) -> int | None:
    from featurestore.clock import parse_instant

    if not text:
        return None
    try:
        return parse_instant(text)
    except ValueError as error:
        raise UsageError(f"--before: {error}", hint="as 2026-03-01T00:00:00Z", field="before") from None


def _incomplete(catalog: Catalog, source: str, files: Sequence[LoadedFile]) -> list[str]:
    """Views that can look back at something that was loaded now."""
    from featurestore.clock import SystemClock

    latest = [file.latest for file in files if file.latest is not None and not file.already]
    if not latest:
        return []
    age = SystemClock().now() - max(latest)
    views = [view for view in catalog.views.values() if view.source.name == source]
    return sorted(view.id for view in views if view.reach is None or age <= view.reach)


def _document(source: str, files: Sequence[LoadedFile], seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    from featurestore.clock import format_instant

    counts = {name: sum(getattr(file, name) for file in files) for name in ("rows", "loaded", "left_out", "rejected")}
    told = [asdict(file) for file in files]
    for file in told:
        for name in ("earliest", "latest"):
            file[name] = None if file[name] is None else format_instant(file[name])
    fresh = sum(file.rows for file in files if not file.already)
    rate = round(fresh / seconds) if seconds and fresh else None
    return {"source": source, **counts, "seconds": round(seconds, 3), "rows_per_second": rate, "files": told}


def _draw(out: Console, document: Mapping[str, Any]) -> None:
    rows = [
        (f["file"], "already there" if f["already"] else f["loaded"], f["left_out"], f["rejected"], f["earliest"],
         f["latest"], f["seconds"])
        for f in document["files"]
    ]  # fmt: skip
    columns = ("file", ">loaded", ">left out", ">refused", "earliest", "latest", ">seconds")
    title = f"{document['loaded']:,} events into {document['source']}"
    if document["rows_per_second"]:
        title += f", {document['rows_per_second']:,} rows/s"
    print_table(out, columns, rows, title=title)
