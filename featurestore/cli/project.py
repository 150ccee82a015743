"""`init`: a project to start from."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.output import say
from featurestore.errors import UsageError


def register(app: typer.Typer) -> None:
    app.command()(init)


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory, or an empty one.")],
) -> None:
    """Makes a new project that runs.

    Definitions, a contract, a test, settings, a compose file.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"{directory} is not empty" if directory.is_dir() else f"{directory} is a file",
            hint="name a directory that does not exist yet: nothing is ever overwritten",
            field="DIR",
        )
    with as_file(files("featurestore.cli") / "template") as template:
        try:
            shutil.copytree(template, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        except OSError as error:
            raise UsageError(f"{directory} cannot be made: {error.strerror}", field="DIR") from None
    # Under another name in the package, so that it does not act on the package's own repository.
    (directory / "gitignore").rename(directory / ".gitignore")
    (directory / "env.example").rename(directory / ".env.example")
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        typer.echo(path)
    say(f"""
try, in this order:
  cd {_quoted(directory)}
  python -m pytest                            the definitions, on a small table
  featurestore dev                            everything on this machine, until Ctrl-C; then, in another shell,
                                              paste the exports that it prints, and
  featurestore publish orders orders.jsonl
  featurestore lookup customer_profile customer_id=c-1""")


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
