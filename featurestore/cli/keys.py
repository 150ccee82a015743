"""`keys new`: what lets a caller into the read API."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.output import say
from featurestore.errors import ConfigError, UsageError


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Keys of those who may ask the read API.")
    group.callback()(_group)
    group.command()(new)
    app.add_typer(group, name="keys")


def _group() -> None:
    """Keys of those who may ask the read API."""


def new(
    name: Annotated[str, typer.Argument(help="Whose it is, as scoring. A second key of a name replaces no first one.")],
    scope: Annotated[
        list[str],
        typer.Option(help="lookup:SERVICE, lookup:* or admin; may be given several times.", show_default=False),
    ],
    expires: Annotated[str, typer.Option(help="After a duration, as 90d, or at an instant with its zone.")] = "",
    append: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Adds the key's line to this file, as FS_API_KEYS_FILE names it."),
    ] = None,
) -> None:
    """Makes an API key.

    The key goes to stdout, this once: only its hash is written down. The line for FS_API_KEYS_FILE goes to stderr.
    """
    from featurestore.serving.keys import new_key

    key, entry = new_key(name, scope, expires=_instant(expires))
    if append is not None:
        _append(append, entry.line)
        say(f"added to {append}: {entry.line}")
    else:
        say(f"for FS_API_KEYS_FILE: {entry.line}")
    sys.stdout.write(key + "\n")
    sys.stdout.flush()


def _instant(text: str) -> int | None:
    """µs, of what has not passed yet. Raises UsageError."""
    from featurestore.clock import SystemClock, parse_instant
    from featurestore.types import parse_duration

    if not text:
        return None
    now = SystemClock().now()
    try:
        instant = now + parse_duration(text)
    except ValueError:
        try:
            instant = parse_instant(text)
        except ValueError:
            hint = "as 90d, or as 2027-01-01T00:00:00Z"
            raise UsageError(f"{text!r} is no duration and no instant", hint=hint, field="expires") from None
    if instant <= now:
        raise UsageError(f"{text} has passed: the key would never be worth anything", field="expires")
    return instant - instant % 1_000_000


def _append(path: Path, line: str) -> None:
    """In one write: a running API reads the file whenever it changes. A new file is its owner's alone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            file.write(b"\n" * broken + line.encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", field="append") from None
