"""`plan`, `apply`, `alias`: what is published, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.environment import DefinitionsArgument, load, read_definitions
from featurestore.cli.output import FormOption, Output, print_table, say

if TYPE_CHECKING:
    from rich.console import Console

    from featurestore.registry.catalog import Catalog
    from featurestore.registry.plan import Step

HAS_CHANGES = 3

PromoteOption = Annotated[bool, typer.Option("--promote", help="Also let @prod lead to the versions given here.")]


def register(app: typer.Typer) -> None:
    app.command()(plan)
    app.command()(apply)
    app.command()(alias)


def plan(
    context: typer.Context,
    definitions: DefinitionsArgument = "",
    promote: PromoteOption = False,
    output: FormOption = None,
) -> None:
    """Shows what `apply` would change.

    Exit code 0: nothing, 3: there are changes, 4: a change that is refused.
    """
    from featurestore.registry.log import Registry
    from featurestore.registry.plan import plan as compare

    settings = load()
    found = compare(Registry(settings.lake).head(), read_definitions(settings, definitions), promote=promote)
    document = {
        "revision": found.base.revision,
        "changes": [_change(step) for step in found.steps],
        "breaking": bool(found.breaking),
    }
    Output(context, output).show(document, lambda out: _draw(out, found.steps))
    found.require_safe()
    if found.steps:
        say(f"{_count(found.steps)} after revision {found.base.revision}; `featurestore apply` makes them")
        raise typer.Exit(HAS_CHANGES)
    say(f"nothing to change: revision {found.base.revision} is what the definitions say")


def apply(
    context: typer.Context,
    definitions: DefinitionsArgument = "",
    promote: PromoteOption = False,
    output: FormOption = None,
) -> None:
    """Makes the definitions the next revision.

    Workers and read APIs follow within a second. The first apply of a service sets its @prod; later ones leave it
    unless --promote.
    """
    from featurestore.clock import SystemClock
    from featurestore.registry.log import Registry
    from featurestore.registry.plan import apply as publish
    from featurestore.registry.plan import plan as compare

    settings = load()
    registry, wanted = Registry(settings.lake), read_definitions(settings, definitions)
    before = registry.head()
    steps = compare(before, wanted, promote=promote).steps
    catalog = publish(registry, wanted, now=SystemClock().now(), promote=promote)
    document = {
        "revision": catalog.revision,
        "changes": [_change(step) for step in steps],
        "aliases": {service: dict(aliases) for service, aliases in catalog.aliases.items()},
    }
    Output(context, output).show(document, lambda out: _draw(out, steps))
    if catalog.revision == before.revision:
        say(f"nothing to change: revision {catalog.revision} is what the definitions say")
    else:
        say(f"revision {catalog.revision}: {_count(steps)}")
        _say_waiting(catalog)


def alias(
    context: typer.Context,
    service: Annotated[str, typer.Argument(help="As flight_delay.")],
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="As prod, canary.")],
    version: Annotated[int, typer.Argument(help="A published version of the service.", min=1)],
    output: FormOption = None,
) -> None:
    """Lets SERVICE@ALIAS lead to a version.

    That is also how a rollout is taken back.
    """
    from featurestore.clock import SystemClock
    from featurestore.registry.log import Registry
    from featurestore.registry.plan import set_alias

    settings = load()
    catalog = set_alias(Registry(settings.lake), service, name, version, now=SystemClock().now())
    document = {"service": service, "alias": name, "version": version, "revision": catalog.revision}
    Output(context, output).show(document, lambda out: out.print(f"{service}@{name} -> {service}@{version}"))


def _change(step: Step) -> dict[str, Any]:
    return {
        "kind": step.kind,
        "name": step.name,
        "detail": step.detail,
        "breaking": step.breaking,
        "hint": step.hint,
    }


def _draw(out: Console, steps: Sequence[Step]) -> None:
    if steps:
        marks = {True: "refused", False: ""}
        rows = [(step.kind, step.name, step.detail, marks[step.breaking]) for step in steps]
        print_table(out, ("kind", "name", "change", ""), rows)


def _count(steps: Sequence[Step]) -> str:
    return "1 change" if len(steps) == 1 else f"{len(steps)} changes"


def _say_waiting(catalog: Catalog) -> None:
    """New versions that no name leads to yet are easily forgotten."""
    for service, versions in catalog.services.items():
        newest, prod = max(versions), catalog.aliases.get(service, {}).get("prod")
        if prod != newest:
            say(f"{service}@prod stays at version {prod}; `featurestore alias {service} prod {newest}` moves it")
