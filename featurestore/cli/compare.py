"""`compare`: two versions of a view, or a view and the lake."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.environment import load
from featurestore.cli.output import FormOption, Output, print_table, say
from featurestore.errors import NotFound

if TYPE_CHECKING:
    from rich.console import Console

    from featurestore.config import Settings
    from featurestore.definitions.compiled import CompiledView
    from featurestore.monitor.comparing import Comparison
    from featurestore.registry.catalog import Catalog


def register(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    context: typer.Context,
    view: Annotated[str, typer.Argument(metavar="VIEW@V", help="A published version of a view.")],
    other: Annotated[
        str, typer.Argument(metavar="[VIEW@V]", help="Another of the same entity; default: the events in the lake.")
    ] = "",
    sample: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Entities that are compared.")] = 1_000,
    output: FormOption = None,
) -> None:
    """Compares online values of two versions, or those of one with what the lake says they are.

    Exit code 1 where some differ for another reason than a changed definition.
    """
    from featurestore.registry.log import Registry

    settings = load("redis")
    catalog = Registry(settings.lake).head()
    left, right = _view(catalog, view), _view(catalog, other) if other else None
    found = asyncio.run(_compare(settings, catalog, left, right, sample))
    document = _document(found)
    Output(context, output).show(document, lambda out: _draw(out, document))
    for line in _talk(found):
        say(line)
    if found.unexplained:
        raise typer.Exit(1)


async def _compare(
    settings: Settings, catalog: Catalog, left: CompiledView, right: CompiledView | None, sample: int
) -> Comparison:
    from featurestore.clock import SystemClock
    from featurestore.monitor.comparing import compare_versions, compare_with_lake
    from featurestore.offline.lake import Lake
    from featurestore.online.store import OnlineStore

    async with OnlineStore.connect(settings.redis, project=settings.project) as store:
        if right is not None:
            return await compare_versions(store, left, right, sample=sample, clock=SystemClock())
        source = catalog.sources.get(left.source.name, left.source)
        return await compare_with_lake(store, Lake(settings.lake), source, left, sample=sample, clock=SystemClock())


def _view(catalog: Catalog, name: str) -> CompiledView:
    views = {view.id: view for view in catalog.views.values()}
    if name not in views:
        raise NotFound("view", name, views, hint="write it as name@version; `featurestore status` lists them")
    return views[name]


def _document(found: Comparison) -> dict[str, Any]:
    from dataclasses import asdict

    document = asdict(found)
    for feature in document["features"]:
        feature["share"] = feature["equal"] / feature["compared"] if feature["compared"] else None
    return {**document, "unexplained": found.unexplained}


def _talk(found: Comparison) -> list[str]:
    lines = []
    if not found.compared:
        lines.append(f"nothing was compared: {found.sampled} entities in the sample, {found.moving} of them changing")
    elif found.moving:
        lines.append(f"{found.moving} entities changed all the time, and are left out")
    for name, keys in ((found.left, found.only_left), (found.right, found.only_right)):
        if keys:
            lines.append(f"only {name} has {len(keys)} of the entities, as {keys[0]}")
    if found.unmatched:
        lines.append(f"not compared, since only one has them, or of another type: {', '.join(found.unmatched)}")
    if any("history" in feature.causes for feature in found.features):
        lines.append("one side lacks history that was loaded; `featurestore status` says which, and what to run")
    return lines


def _draw(out: Console, document: Mapping[str, Any]) -> None:
    rows = [
        (f["feature"], f["compared"], f["equal"], f"{f['share']:.2%}" if f["share"] is not None else None,
         ", ".join(f"{cause} {count:,}" for cause, count in f["causes"].items()), _worst(f["worst"]))
        for f in document["features"]
    ]  # fmt: skip
    columns = ("feature", ">compared", ">equal", ">share", "causes", "worst")
    title = f"{document['left']} and {document['right']}: {document['compared']:,} entities"
    print_table(out, columns, rows, title=title)


def _worst(worst: list[Mapping[str, Any]]) -> str:
    return f"{worst[0]['entity']}: {worst[0]['left']} | {worst[0]['right']}" if worst else ""
