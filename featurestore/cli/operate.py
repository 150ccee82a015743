"""`status`, `doctor`: how things stand, and what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from featurestore.cli.environment import load
from featurestore.cli.output import Form, FormOption, Output, console, print_table, say

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"ok": "green", "advice": "yellow", "fault": "bold red"}


def register(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(doctor)


def status(context: typer.Context, output: FormOption = None) -> None:
    """Shows how far every source and view is.

    Per partition: lag, ledger, fences, freshness against the view's objective, what is stopped or waited for.
    """
    from featurestore.cli.standing import standing
    from featurestore.clock import SystemClock
    from featurestore.registry.log import Registry

    settings = load("kafka", "redis")
    catalog = Registry(settings.lake).head()
    topics, trouble = _topics()
    ends = {topic["topic"]: topic["partitions"] for topic in topics if topic["exists"]}
    document = asyncio.run(standing(settings, catalog, None if trouble else ends, SystemClock()))
    document = {**document, "kafka": {"reachable": not trouble, "error": trouble}}
    Output(context, output).show(document, lambda out: _draw(out, document))
    if trouble:
        say(f"Kafka does not answer, so ends and lags are those that the worker last saw: {trouble}")
    if not catalog.revision:
        say("nothing is published yet; run: featurestore apply")
    for line in _troubles(document):
        say(line)


def doctor(context: typer.Context, output: FormOption = None) -> None:
    """Checks every part and says what to do. Exit code 1 when something must be repaired."""
    from rich.text import Text

    from featurestore.cli.checks import examine
    from featurestore.online.health import Level

    load_quietly()
    form = Output(context, output)
    out, lines = console(), []
    for line in examine():
        lines.append(line)
        if form.form is Form.TABLE:
            took = f"{line.ms:,.0f} ms" if line.ms is not None else ""
            out.print(Text(f"{line.level:<7}", style=_STYLES[line.level]), f"{line.part:<12}{took:>9}  {line.message}",
                      markup=False, soft_wrap=True)  # fmt: skip
            if line.hint:
                out.print(f"{'':<30}-> {line.hint}", markup=False, soft_wrap=True)
    faults = [line for line in lines if line.level == Level.FAULT]
    if form.form is Form.JSON:
        form.show({"healthy": not faults, "findings": [line.document() for line in lines]}, lambda _: None)
    say(f"{len(faults)} to repair" if faults else "nothing to repair")
    if faults:
        raise typer.Exit(1)


def load_quietly() -> None:
    """Logging only: what is wrong with the settings is a finding of its own."""
    import logging

    from featurestore.telemetry import setup_logging

    setup_logging("console", level=logging.ERROR)


def _topics() -> tuple[list[dict[str, Any]], str]:
    from featurestore.cli.streamed import stream_answer
    from featurestore.errors import FeatureStoreError

    try:
        return stream_answer("topics")["topics"], ""
    except FeatureStoreError as error:
        return [], error.message


def _draw(out: Console, document: Mapping[str, Any]) -> None:
    out.print(f"revision {document['revision']}")
    for source in document["sources"]:
        rows = [
            (p["partition"], p["lag"], p["behind_seconds"], *p["ledger"].values(), _reasons(p), _life(p))
            for p in source["partitions"]
        ]
        columns = (">partition", ">lag", ">behind (s)", ">consumed", ">forwarded", ">dead letters", "reasons", "worker")
        print_table(out, columns, rows, title=f"source {source['source']} (topic {source['topic']})")
    for view in document["views"]:
        _draw_view(out, view)


def _draw_view(out: Console, view: Mapping[str, Any]) -> None:
    objective = view["freshness_seconds"]
    title = f"view {view['view']}" + (f" (fresh within {objective:g} s)" if objective else "")
    rows = [
        (p["partition"], p["status"], p["lag"], p["behind_seconds"], *_fence(p["fence"]), _life(p))
        for p in view["partitions"]
    ]
    columns = (">partition", "status", ">lag", ">behind (s)", ">fence", "newest event", "worker")
    print_table(out, columns, rows, title=title)
    if view["ledger"]:
        columns = (">source partition", ">consumed", ">applied", ">duplicate", ">late", ">dead letters", ">filtered")
        print_table(out, columns, [tuple(row.values()) for row in view["ledger"]])


def _fence(fence: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Generation and offset, and the newest event time."""
    return (None, None) if fence is None else (f"{fence['generation']}/{fence['offset']}", fence["event_time"])


def _reasons(partition: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in partition["dead_letters"].items()) or "–"


def _life(partition: Mapping[str, Any]) -> str:
    if partition["stopped"]:
        return "STOPPED"
    if partition["waiting_for"]:
        return f"waits for {partition['waiting_for']}"
    age = partition["beat_age_seconds"]
    return "never seen" if age is None else f"seen {age:.1f} s ago"


def _rebuilding(view: str, rebuild: Mapping[str, Any]) -> str:
    doing = {"rebuild": "rebuilt", "backfill": "backfilled"}[rebuild["verb"]]
    told = f"view {view} is being {doing} by {rebuild['by']}, since {rebuild['since']}: {rebuild['done']:.0%} done"
    if not rebuild["abandoned"]:
        return told
    silent = rebuild["silent_seconds"]
    return f"{told}, but no sign of life for {silent:,.0f} s; complete it with: featurestore {rebuild['verb']}"


def _troubles(document: Mapping[str, Any]) -> list[str]:
    """What the tables have no room for: why a partition is stopped, and which topic is missing."""
    groups = [(f"source {s['source']}", s) for s in document["sources"]]
    groups += [(f"view {v['view']}", v) for v in document["views"]]
    lines = [
        f"{name}, partition {p['partition']} is stopped: {p['stopped']}"
        for name, group in groups
        for p in group["partitions"]
        if p["stopped"]
    ]
    lines += [f"view {v['view']} lacks {v['incomplete']}" for v in document["views"] if v["incomplete"]]
    lines += [_rebuilding(v["view"], v["rebuild"]) for v in document["views"] if v["rebuild"]]
    missing = [s for s in document["sources"] if s["exists"] is False]
    return lines + [f"source {s['source']}: topic {s['topic']} does not exist" for s in missing]
