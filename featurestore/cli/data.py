"""`publish`, `lookup`: events in, values out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.environment import load
from featurestore.cli.output import FormOption, Output, print_table, talk_console
from featurestore.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    app.command()(publish)
    app.command()(lookup)


def publish(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A published source, as departures.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Parquet, or JSON lines.")],
    output: FormOption = None,
) -> None:
    """Sends a file of events to the source's topic.

    All of it is checked against the contract before the first event is sent. What is sent twice is counted twice.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from featurestore.cli.streamed import stream_lines

    settings = load("kafka", "redis")
    environment = {**os.environ, "FS_KAFKA": settings.kafka, "FS_REDIS": settings.redis, "FS_LAKE": settings.lake}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    answer: dict[str, Any] = {}
    with Progress(*columns, console=talk_console(), transient=True) as progress:
        task = progress.add_task("checking", total=None)
        for said in stream_lines("publish", source, *map(str, files), environment=environment):
            if "sent" in said:
                doing = f"waiting for the {said['waiting']}" if "waiting" in said else "sending"
                progress.update(task, completed=said["sent"], total=said["rows"], description=doing)
            if said.get("done"):
                answer = {name: said[name] for name in ("source", "topic", "rows", "seconds")}
    Output(context, output).show(
        answer, lambda out: out.print(f"{answer['rows']:,} events to {answer['topic']} in {answer['seconds']:.1f} s")
    )


def lookup(
    context: typer.Context,
    service: Annotated[str, typer.Argument(help="As flight_delay, flight_delay@prod, flight_delay@3.")],
    keys: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="Every entity key of the service.")],
    request: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="A request field of the service; may be repeated.")
    ] = None,
    at: Annotated[str, typer.Option(help="An instant with its zone, as 2013-07-04T12:00:00Z; default now.")] = "",
    url: Annotated[str, typer.Option(help="The read API; default http://FS_HOST:FS_PORT.")] = "",
    output: FormOption = None,
) -> None:
    """Asks the read API for one entity's features."""
    from featurestore.cli import http

    base = http.require_http(url) if url else http.api_url(load())
    keyed, fields = _pairs(keys), _pairs(request or [])
    catalog = http.get(f"{base}/v1/services")
    entity = _typed_pairs(keyed, _types(catalog, service, "entities"))
    body = {
        "service": service,
        "entities": {name: [value] for name, value in entity.items()},
        "at": at or None,
        "request": _typed_pairs(fields, _types(catalog, service, "request")) or None,
    }
    answer = http.post(f"{base}/v1/lookup?shape=full", body)
    row = answer["rows"][0]
    envelope = {name: answer[name] for name in ("service", "version", "revision", "at")}
    document = {**envelope, "entity": row["entity"], "features": row["features"]}
    Output(context, output).show(document, lambda out: _draw_lookup(out, document))


def _pairs(given: list[str]) -> dict[str, str]:
    """Raises UsageError for what is not KEY=VALUE, or is there twice."""
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{text!r} is no KEY=VALUE", hint="as origin=JFK", field=text)
        if name in pairs:
            raise UsageError(f"{name} is given twice", hint="one lookup is for one entity", field=name)
        pairs[name] = value
    return pairs


def _types(catalog: Mapping[str, Any], service: str, part: str) -> dict[str, str]:
    """Types of the service's `entities` or `request`. One that is not there has none; the lookup then says so."""
    wanted = service.partition("@")[0]
    known = {summary["name"]: summary[part] for summary in catalog["services"]}
    return {member["name"]: member["type"] for member in known.get(wanted, ())}


def _typed_pairs(texts: Mapping[str, str], types: Mapping[str, str]) -> dict[str, Any]:
    return {name: _typed(name, text, types.get(name, "string")) for name, text in texts.items()}


def _typed(name: str, text: str, kind: str) -> Any:
    try:
        return _PARSERS[kind](text)
    except (ValueError, KeyError):
        raise UsageError(f"{name}={text}: expected {_EXPECTED.get(kind, kind)}", field=name) from None


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(number)
    return number


_PARSERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "int": int,
    "float": lambda text: _finite(float(text)),
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}
_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def _draw_lookup(out: Console, document: Mapping[str, Any]) -> None:
    entity = ", ".join(f"{name}={value}" for name, value in document["entity"].items())
    title = f"{document['service']} version {document['version']}, {entity}, at {document['at']}"
    rows = [
        (name, feature["value"], feature["status"], feature["as_of"], feature["age_seconds"])
        for name, feature in document["features"].items()
    ]
    print_table(out, ("feature", ">value", "status", "as of", ">age (s)"), rows, title=title)
