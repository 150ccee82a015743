"""Where words go: data to stdout as a table or as JSON, talk to stderr. Rich decides about colour (and NO_COLOR)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 160
"""Of tables that nobody looks at on a terminal: wide enough not to cut names."""


class Form(StrEnum):
    TABLE = "table"
    JSON = "json"


FormOption = Annotated[
    Form | None, typer.Option("--output", help="How data is written to stdout.", show_default="table")
]


@dataclass(frozen=True, slots=True)
class Options:
    """What was said before the verb."""

    form: Form = Form.TABLE
    debug: bool = False


class Output:
    """Data of one verb. The JSON document of a verb keeps its names between releases; the table is for people."""

    def __init__(self, context: typer.Context, form: Form | None) -> None:
        options = context.find_object(Options) or Options()
        self.form = form or options.form

    def show(self, document: Any, draw: Callable[[Console], None]) -> None:
        """The document as JSON, or what `draw` makes of it."""
        if self.form is Form.JSON:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        else:
            draw(console())


def console() -> Console:
    """stdout, for tables."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def talk_console() -> Console:
    """stderr, for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_table(out: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> None:
    """Columns whose name starts with `>` are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        # Text, not str: values are no markup.
        table.add_row(*(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in row))
    out.print(table)


def shown(value: Any) -> str:
    """A JSON value for a cell: null as `–`, numbers with separators of thousands."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e15 else str(value)
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def say(text: str) -> None:
    """A line of talk."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def say_error(error: FeatureStoreError) -> None:
    say(f"{_paint('error:', '1;31')} {error.message}")
    if error.hint:
        say(f"{_paint('hint:', '1;36')} {error.hint}")


def _paint(text: str, code: str) -> str:
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
