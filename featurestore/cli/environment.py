"""What the verbs read from the environment, with the checks that only the command line can make."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.output import say
from featurestore.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from featurestore.config import Settings
    from featurestore.definitions.compile import Definitions

DEFAULT_DEFINITIONS = Path("definitions.py")

DefinitionsArgument = Annotated[
    str,
    typer.Argument(metavar="[DEFINITIONS]", help="A module or .py file; default FS_DEFINITIONS, then ./definitions.py.",
                   show_default=False),
]  # fmt: skip


def load(*parts: str, **overrides: Any) -> Settings:
    """The settings; warnings of libraries go to stderr from here on. `parts` are those the verb will talk to.

    Raises ConfigError for a part that is `embedded`, since an embedded part lives inside `dev` or `demo` only.
    """
    from featurestore.config import EMBEDDED, load_settings, variable
    from featurestore.telemetry import setup_logging

    setup_logging("json" if os.environ.get("FS_LOG") == "json" else "console", level=logging.WARNING)
    settings = load_settings(**overrides)
    for part in parts:
        if getattr(settings, part) == EMBEDDED:
            name = variable(part)
            raise ConfigError(
                f"{name}=embedded: an embedded part lives in the process group that started it, and this verb has none",
                hint=f"`featurestore dev` runs everything with embedded parts and prints the {name} to use beside it",
                field=name,
            )
    return settings


def definitions_target(settings: Settings, given: str) -> str:
    """Raises UsageError where nothing says which definitions are meant."""
    target = given or settings.definitions
    if not target and DEFAULT_DEFINITIONS.is_file():
        target = str(DEFAULT_DEFINITIONS)
        say(f"definitions: {target}")
    if not target:
        raise UsageError(
            "which definitions?",
            hint="name a module or .py file, or set FS_DEFINITIONS; `featurestore init DIR` makes a project with one",
            field="definitions",
        )
    return target


def read_definitions(settings: Settings, given: str) -> Definitions:
    """Raises DefinitionError with every fault of the file."""
    from featurestore.definitions.load import load_definitions

    return load_definitions(definitions_target(settings, given), settings.schemas)
