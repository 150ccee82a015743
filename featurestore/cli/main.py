"""`featurestore`, also `fs`. stdout is data, stderr is talk.

Exit codes: 0 ok, 1 failed, 2 usage, 3 the plan has changes, 4 a breaking change is refused, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from featurestore.cli import compact, compare, data, demo, dlq, export, keys, load, operate, project, rebuild, rollout
from featurestore.cli import run as running
from featurestore.cli.output import Form, Options, say, say_error
from featurestore.errors import FeatureStoreError

FAILED, INTERRUPTED = 1, 130

app = typer.Typer(
    name="featurestore",
    help="A streaming feature store: one definition, the same value online at T and in the training set at T.",
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 the plan has changes, 4 a breaking change is refused.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for room in (project, demo, running, rollout, data, export, load, operate, dlq, rebuild, compare, compact, keys):
    room.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from featurestore.telemetry import package_version

        sys.stdout.write(f"featurestore {package_version()}\n")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    output: Annotated[Form, typer.Option(help="How data is written to stdout; verbs take it too.")] = Form.TABLE,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = Options(output, debug)


def main(arguments: Sequence[str]) -> int:
    """Runs one verb and returns the exit code; whatever goes wrong is said on stderr."""
    debug = "--debug" in arguments
    try:
        app(list(arguments), prog_name="featurestore")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except FeatureStoreError as error:
        if debug:
            traceback.print_exc()
        say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 — the last stop: a person reads this, not a traceback
        if debug:
            traceback.print_exc()
        text = str(error).strip().splitlines()
        say(f"error: unexpected {type(error).__name__}{': ' + text[0] if text else ''}")
        say("hint: this is a defect; `featurestore --debug …` shows the traceback for a report")
        return FAILED
    return 0


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
