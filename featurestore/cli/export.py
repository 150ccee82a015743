"""`export`: training sets, made, made again, and looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.environment import load
from featurestore.cli.output import FormOption, Output, print_table, say, talk_console
from featurestore.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from featurestore.offline.manifest import Manifest


def register(app: typer.Typer) -> None:
    app.command()(export)


def export(  # noqa: PLR0913, PLR0917 — the words of the verb
    context: typer.Context,
    features: Annotated[
        list[str] | None,
        typer.Argument(metavar="SERVICE | FEATURE…", help="As flight_delay@prod, or airport_delay.delay_mean_1h."),
    ] = None,
    spine: Annotated[
        Path | None, typer.Option(help="For whom and when: Parquet or CSV with the entity keys and a time.")
    ] = None,
    spine_sql: Annotated[str, typer.Option(metavar="SELECT", help="The spine by SQL over the lake's tables.")] = "",
    out: Annotated[Path | None, typer.Option(help="A new directory, or an earlier export to replace.")] = None,
    time_column: Annotated[str, typer.Option(help="The spine's column of instants.")] = "event_time",
    status: Annotated[bool, typer.Option("--status", help="Add a <feature>__status column for each.")] = False,
    as_of: Annotated[bool, typer.Option("--as-of", help="Add a <feature>__as_of column for each.")] = False,
    as_served: Annotated[
        bool, typer.Option("--as-served", help="Count only what could be read online by then.")
    ] = False,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Of all processes on this machine.")] = "2GiB",
    threads: Annotated[int, typer.Option(min=0, help="Processes on this machine; 0: one for each processor.")] = 0,
    executor: Annotated[str, typer.Option(metavar="URL", help="A cluster, as dask://host:port.")] = "",
    from_manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make the export of this manifest again, byte by byte.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Say whether an export is what its manifest says.")
    ] = None,
    output: FormOption = None,
) -> None:
    """Writes a training set.

    The spine's rows, in order, each with the values that the online store has at the row's instant. An export that was
    killed goes on when it is started again.
    """
    shown = Output(context, output)
    if verify is not None:
        _verify(shown, verify)
        return
    if out is None:
        raise UsageError("--out is missing", hint="give a new directory", field="out")
    words = {"time_column": time_column, "status": status, "as_of": as_of, "as_served": as_served}
    means = {"memory": _bytes(memory), "processes": threads, "executor": executor or None}
    if from_manifest is not None:
        given = bool(features or spine_sql or status or as_of or as_served or time_column != "event_time")
        if given:
            raise UsageError("--from-manifest says all that the export is: it goes with --spine and --out only",
                             hint="leave the other words out", field="from_manifest")  # fmt: skip
        manifest = _again(from_manifest, spine, out, means)
    else:
        manifest = _made(features or [], spine, spine_sql, out, words, means)
    document: dict[str, Any] = {"out": str(out), **json.loads(manifest.to_json())}
    shown.show(document, lambda c: _draw(c, document))
    if not manifest.rows:
        say("the spine is empty: the export has its columns and no rows")
    for view, known in (manifest.visibility or {}).items():
        if known.from_intake:
            say(f"{known.from_intake:,} events of {view} count from when intake took them, or their load says: "
                "nobody recorded when the view could be read with them")  # fmt: skip


def _made(
    features: list[str], spine: Path | None, sql: str, out: Path, words: Mapping[str, Any], means: Mapping[str, Any]
) -> Manifest:
    from featurestore.clock import SystemClock
    from featurestore.offline.asking import ask
    from featurestore.offline.lake import Lake
    from featurestore.offline.making import Means, Options, make
    from featurestore.offline.query import SQL, query
    from featurestore.registry.log import Registry

    if not features:
        raise UsageError("what is to be exported?", hint="a service, or features: fs export flight_delay …",
                         field="features")  # fmt: skip
    if (spine is None) == (not sql):
        raise UsageError("one of --spine and --spine-sql is wanted", hint="for whom, and when", field="spine")
    settings = load()
    lake = Lake(settings.lake)
    asked = ask(features if "." in features[0] or len(features) > 1 else features[0], Registry(settings.lake).head())
    given: Any = spine if spine is not None else query(lake, sql, memory=means["memory"] // 2)
    options = Options(**words, spine_name=SQL + sql if sql else str(spine))
    with _progress(f"exporting {' '.join(features)}") as progress:
        now = SystemClock().now()
        return make(asked, given, out, lake=lake, now=now, options=options, means=Means(**means, progress=progress))


def _again(manifest: Path, spine: Path | None, out: Path, means: Mapping[str, Any]) -> Manifest:
    from featurestore.offline.lake import Lake
    from featurestore.offline.making import Means
    from featurestore.offline.manifest import read_manifest_file
    from featurestore.offline.remaking import remake
    from featurestore.registry.catalog import catalog_of
    from featurestore.registry.log import Registry

    settings = load()
    registry = Registry(settings.lake)
    with _progress(f"making {manifest} again") as progress:
        return remake(
            read_manifest_file(manifest), out, lake=Lake(settings.lake), spine=spine,
            catalog_at=lambda number: catalog_of(registry.read(number)), means=Means(**means, progress=progress),
        )  # fmt: skip


def _verify(shown: Output, directory: Path) -> None:
    from featurestore.offline.remaking import verify

    with talk_console().status(f"reading {directory}"):
        found = verify(directory)
    document = {"directory": str(directory), "rows": found.manifest.rows, "files": len(found.manifest.files),
                "bytes": found.bytes, "service": found.manifest.service}  # fmt: skip
    shown.show(document, lambda out: out.print(
        f"{directory} is what its manifest says: {found.manifest.rows:,} rows in {len(found.manifest.files)} files"
    ))  # fmt: skip


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), Remaining())
    with Progress(*columns, console=talk_console(), transient=True) as progress:
        task = progress.add_task(title, total=None)
        doing = ""

        def told(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                progress.reset(task, total=total, description=f"{title}: {what}")
            progress.update(task, completed=done, total=total)

        yield told


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise UsageError(f"--memory {text}: expected a size", hint="as 2GiB", field="memory") from None


def _draw(out: Console, document: Mapping[str, Any]) -> None:
    of = f"{document['service']} version {document['version']}" if document["version"] else "a list"
    out.print(f"{document['rows']:,} rows × {len(document['columns'])} features of {of} in {document['out']}")
    rows = [(file["name"], file["rows"], file["sha256"][:16]) for file in document["files"]]
    print_table(out, ("file", ">rows", "sha256"), rows)
