"""`featurestore demo`: the whole path on a year of real flights, and the proof that its ends agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from featurestore.cli.demo.story import Demo
    from featurestore.cli.demo.talk import Talk

_TAIL_LINES = 15


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running afterwards, until Ctrl-C.")] = False,
    events: Annotated[
        int | None, typer.Option(help="Take only the first so many flights of the year.", min=1_000)
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(help="For lake, exports and logs, which then stay; default a temporary one.")
    ] = None,
) -> None:
    """Streams a year of real flights through everything, and proves that all paths agree.

    It needs no network and no other part: broker and Redis are embedded. Nothing is left behind.
    """
    import tempfile

    from featurestore.cli.demo.talk import Talk

    talk = Talk()
    if directory is not None:
        _run(talk, directory, events, keep=keep)
        return
    with tempfile.TemporaryDirectory(prefix="featurestore-demo-") as made:
        _run(talk, Path(made), events, keep=keep)


def _run(talk: Talk, directory: Path, events: int | None, *, keep: bool) -> None:
    from featurestore.cli.demo import story
    from featurestore.cli.output import say_error
    from featurestore.errors import FeatureStoreError

    directory.mkdir(parents=True, exist_ok=True)
    try:
        story.run(talk, directory, _schemas(), events, _stay if keep else None)
    except FeatureStoreError as error:
        _show_logs(talk, directory)
        say_error(error)
        raise typer.Exit(1) from None
    except Exception:
        _show_logs(talk, directory)
        raise


def _schemas() -> Path:
    """The contracts: beside the package where it carries them, else those of the checkout."""
    from featurestore.errors import ConfigError

    here = Path(__file__).parent
    for found in (here / "schemas", here.parents[2] / "schemas"):
        if (found / "flights.departures").is_dir():
            return found
    raise ConfigError("the demo's contract schemas/flights.departures is not here",
                      hint="run it from a checkout: make demo", field="schemas")  # fmt: skip


def _show_logs(talk: Talk, directory: Path) -> None:
    """The end of each part's log: where the reason usually is."""
    for log in sorted((directory / "logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        if lines:
            talk.bad(f"{log.stem} said last:")
            talk.say("\n".join(lines), style="dim")


def _stay(demo: Demo) -> None:
    """Prints what to try, and returns at Ctrl-C."""
    import shlex

    talk, stack = demo.talk, demo.stack
    answer = demo.answers[-1].question
    pairs = " ".join(f"{key}={value}" for key, value in answer.entity.items())
    columns = ",".join(f'"{key}":["{value}"]' for key, value in answer.entity.items())
    body = f'{{"service":"flight_delay","entities":{{{columns}}}}}'
    with talk.step("Yours", "Everything is still running. Ctrl-C stops it."):
        lines = [f"export {name}={shlex.quote(value)}" for name, value in stack.addresses.items()]
        lines += [
            f"featurestore lookup flight_delay {pairs} --at 2013-07-04T16:00:00Z",
            "featurestore status",
            f"curl -s {stack.url}/v1/lookup?shape=full -d '{body}'",
            f"curl -s {stack.url}/v1/views",
            f"less {shlex.quote(str(stack.logs / 'worker.log'))}",
        ]
        # Not wrapped: these are for copying.
        for line in lines:
            talk.console.print(f"   {line}", soft_wrap=True, markup=False, highlight=False)
        try:
            stack.wait()
        except KeyboardInterrupt:
            talk.say("stopping")
