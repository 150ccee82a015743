"""What the demo prints: steps that say what they show, tables, and a progress bar where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from featurestore.cli.output import print_table

_WIDTH = 132
"""Where nobody's terminal says otherwise: room for the widest table."""


class Talk:
    """Numbers the steps and keeps how long each took."""

    def __init__(self, console: Console | None = None) -> None:
        made = console or Console(highlight=False)
        if not made.is_terminal:
            made = Console(file=made.file, highlight=False, width=_WIDTH)
        self.console = made
        self.seconds: dict[str, float] = {}
        self._number = 0
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    @contextmanager
    def step(self, title: str, why: str) -> Iterator[None]:
        """A numbered step; `why` says in a sentence what it is good for."""
        self._number += 1
        self.console.print()
        if self.console.is_terminal:
            self.console.print(Rule(Text(f" {self._number}  {title} ", style="bold cyan"), align="left", style="cyan"))
        else:
            self.console.print(Text(f"== {self._number}. {title}"))
        self.say(why, style="dim")
        began = time.monotonic()
        yield
        self.seconds[title] = time.monotonic() - began

    def say(self, text: str, *, style: str = "") -> None:
        self.console.print(Padding(Text(text, style=style), (0, 0, 0, 3)))

    def good(self, text: str) -> None:
        self._marked(Text("✓", "bold green"), text)

    def bad(self, text: str) -> None:
        self._marked(Text("✗", "bold red"), text)

    def _marked(self, mark: Text, text: str) -> None:
        """Lines that do not fit go on under the text, not under the mark."""
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(mark, Text(text))
        self.console.print(Padding(grid, (0, 0, 0, 3), expand=False))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> None:
        """As `output.print_table`."""
        print_table(self.console, columns, rows, title=title)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Something that takes a while and cannot say how far it is."""
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(what):
            yield

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Gives a function that is told how many are done, and what is waited for; it shows the rate."""
        if not self.console.is_terminal:
            yield lambda done, note: None
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[rate]}"), TimeElapsedColumn())  # fmt: skip
        began = time.monotonic()
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total, rate="")

            def update(done: int, note: str) -> None:
                per_second = done / max(time.monotonic() - began, 1e-3)
                bar.update(task, completed=done, rate=f"{per_second:,.0f} events/s{note and ' · ' + note}")

            yield update
