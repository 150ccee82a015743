"""`rebuild`, `backfill`: the online store's values from the lake, after a loss and beside those that are served."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.environment import load
from featurestore.cli.output import FormOption, Output, print_table, say, talk_console

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    app.command()(rebuild)
    app.command()(backfill)


def rebuild(
    context: typer.Context,
    view: Annotated[
        list[str] | None, typer.Option(metavar="NAME@V", help="A view to rebuild, also several times; default all.")
    ] = None,
    output: FormOption = None,
) -> None:
    """Computes the values of the online store anew, from the lake.

    For a store that lost what workers cannot replay. Workers may run: they go on from where the lake ends. Until a view
    is done, lookups answer its values as unavailable. What was killed goes on where it was when it is run again.
    """
    document = _ask("rebuild", "--", *(view or ()))
    Output(context, output).show(document, lambda out: _draw(out, document, "rebuilt"))
    if not document["views"]:
        say("no view is published yet; run: featurestore apply")


def backfill(
    context: typer.Context,
    views: Annotated[
        list[str] | None, typer.Argument(metavar="[VIEW@V…]", help="Default: those that lack loaded history.")
    ] = None,
    rate: Annotated[
        int, typer.Option(min=0, metavar="N", help="Entities written per second at most; 0 is no limit.")
    ] = 10_000,
    output: FormOption = None,
) -> None:
    """Computes values from the lake, with all history, while the old ones are served.

    After a load, and for a new version of a view. Workers may run: they go on from where the new values end. What was
    killed goes on where it was when it is run again.
    """
    document = _ask("backfill", f"--rate={rate}", "--", *(views or ()))
    Output(context, output).show(document, lambda out: _draw(out, document, "backfilled"))
    if not document["views"]:
        say("nothing to do: no view lacks history that was loaded; name views to backfill them all the same")


def _ask(*words: str) -> dict[str, Any]:
    """The summary of the other process, with progress on a terminal until then."""
    from rich.progress import BarColumn, Progress, TextColumn

    from featurestore.cli.streamed import stream_lines

    settings = load("kafka", "redis")
    environment = {**os.environ, "FS_KAFKA": settings.kafka, "FS_REDIS": settings.redis, "FS_LAKE": settings.lake}
    answer: dict[str, Any] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"))
    with Progress(*columns, console=talk_console(), transient=True) as progress:
        task = progress.add_task("starting", total=None, counts="")
        for said in stream_lines(*words, environment=environment):
            if "doing" in said:
                written = f", {said['entities']:,} entities" if "entities" in said else ""
                counts = f"{said['events']:,} events{written}"
                progress.update(task, description=f"{said['view']}: {said['doing']}", completed=said.get("filled", 0),
                                total=said.get("buckets"), counts=counts)  # fmt: skip
            answer = said
    answer.pop("done")
    return {**answer, "views": [_with_rate(done) for done in answer["views"]]}


def _with_rate(done: Mapping[str, Any]) -> dict[str, Any]:
    seconds = done["seconds"]
    return {**done, "entities_per_second": round(done["entities"] / seconds) if seconds else None}


def _draw(out: Console, document: Mapping[str, Any], done: str) -> None:
    rows = [
        (d["view"], str(d["generation"]), d["entities"], d["events"], d["seconds"], d["entities_per_second"],
         "yes" if d["resumed"] else "no")
        for d in document["views"]
    ]  # fmt: skip
    columns = ("view", ">generation", ">entities", ">events", ">seconds", ">entities/s", "resumed")
    if rows:
        print_table(out, columns, rows, title=f"{done} in {document['seconds']:.1f} s")
